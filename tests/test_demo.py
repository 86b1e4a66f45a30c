"""The demo on a tiny random model: the same function that `make demo FAST=1` calls."""

import importlib.util
import json
from pathlib import Path

import pytest
from cli_runner import run_cli

from gram_jax.demo.demo import ASSETS, HELDOUT, DemoResult, run_demo
from gram_jax.demo.transformers_check import compare_with_transformers
from gram_jax.errors import CheckpointError, StoppedError
from gram_jax.judge.spec import JudgeSpec
from gram_jax.recipes.reading import read_recipe
from gram_jax.scoring.scorer import Scorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Path, DemoResult]:
    """(folder, result) of one fast demo."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return folder, run_demo(folder, fast=True)


def test_the_demo_leaves_a_judge_that_scores_text(shown):
    _, result = shown
    judge = Scorer.load(result.judge)
    score = judge.score("Name a prime.", "Seven.", "Nine.")
    assert score.first + score.second == pytest.approx(1.0)
    assert judge.spec.hash == JudgeSpec.load(result.judge).hash


def test_the_demo_trains_both_stages_from_one_another(shown):
    folder, result = shown
    stage1, stage2 = (read_recipe(folder / name / "recipe.toml") for name in ("stage1", "stage2"))
    assert (stage1.stage, stage2.stage) == ("pretrain", "finetune")
    assert stage2.model.name_or_path == str(folder / "stage1")
    for stage in (stage1, stage2):
        lines = (Path(stage.run.output_dir) / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == stage.run.max_steps
    assert result.before.n == result.after.n == 28
    assert result.before.margin != result.after.margin


@pytest.mark.torch
def test_transformers_gives_the_exported_judge_the_same_scores(shown):
    pytest.importorskip("torch")
    assert shown[1].difference < 1e-4


def test_without_pytorch_the_demo_writes_the_check_and_skips_it(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    script = tmp_path / "check.py"
    assert compare_with_transformers(None, tmp_path / "judge", [], script) is None
    assert script.is_file()


def test_a_stopped_demo_names_the_command_that_resumes_it(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise StoppedError("stopped by Ctrl-C")

    monkeypatch.setattr("gram_jax.demo.demo.train", stopped)
    with pytest.raises(StoppedError, match=r"gram-jax demo --fast --folder \S+/demo$"):
        run_demo(tmp_path / "demo", fast=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "fast"}'])
def test_a_damaged_note_of_a_demo_is_a_clear_error(text, tmp_path):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"demo\.json"):
        run_demo(tmp_path, fast=True)


def test_a_finished_demo_is_shown_again_without_training_and_ends_with_a_table_and_commands(shown):
    folder, result = shown
    metrics = folder / "stage2" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    done = run_cli("demo", "--fast", "--folder", str(folder))
    assert done.status == 0, done.output
    assert metrics.stat().st_mtime_ns == before
    table, commands = done.output.split("Try next")
    (row,) = (line for line in table.splitlines() if "accuracy" in line)
    assert f"{result.before.accuracy:.2f}" in row and f"{result.after.accuracy:.2f}" in row
    lines = commands.strip().splitlines()
    assert [line.split()[1] for line in lines] == ["evaluate", "data", "score"]
    assert all(str(result.judge) in line for line in lines)
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_the_demo_keeps_out_of_other_folders(shown, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="holds no demo"):
        run_demo(tmp_path, fast=True)
    with pytest.raises(CheckpointError, match="fast demo"):
        run_demo(shown[0], fast=False)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_shipped_recipes_name_files_that_exist(stage):
    recipe = read_recipe(ASSETS / f"demo-{stage}.toml")
    root = ASSETS.parents[2]
    paths = [recipe.judge.template, *(source.path for source in recipe.data.train), HELDOUT]
    assert all((root / path).is_file() for path in paths)
