"""The demo on a tiny random model: the same function that `make demo FAST=1` calls."""

import importlib.util
import json
import re
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


def test_the_exported_judge_scores_text(shown):
    judge = Scorer.load(shown[1].judge)
    score = judge.score("Name a prime.", "Seven.", "Nine.")
    assert score.first + score.second == pytest.approx(1.0)
    assert judge.spec.hash == JudgeSpec.load(shown[1].judge).hash


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("demo.json", text) for text in ("{", "[]", '{"kind": "fast"}')),
        ("demo.json", '{"kind": "full", "compute_dtype": "float32"}'),
        ("thesis.txt", "precious"),
    ],
)
def test_a_folder_without_this_demo_is_rejected_and_unchanged(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*--folder"):
        run_demo(tmp_path, fast=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]


def test_a_finished_demo_prints_its_results_without_training(shown):
    folder, result = shown
    metrics = folder / "stage2" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    done = run_cli("demo", "--fast", "--folder", str(folder))
    assert done.status == 0, done.output
    assert metrics.stat().st_mtime_ns == before
    table, commands = done.output.split("Try next")
    accuracies = f"{result.before.accuracy:.2f} │ {result.after.accuracy:.2f}"
    assert accuracies in re.sub(" +", " ", table)
    lines = commands.strip().splitlines()
    assert [line.split()[1] for line in lines] == ["evaluate", "data", "score"]
    assert all(str(result.judge) in line for line in lines)
    assert result.plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_shipped_recipes_name_files_that_exist(stage):
    recipe = read_recipe(ASSETS / f"demo-{stage}.toml")
    root = ASSETS.parents[2]
    paths = [recipe.judge.template, *(source.path for source in recipe.data.train), HELDOUT]
    assert all((root / path).is_file() for path in paths)
