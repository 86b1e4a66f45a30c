"""The demo's story on a tiny random model: the same function that `make demo FAST=1` calls."""

import importlib.util
import io
import json
from pathlib import Path

import pytest

from gram_jax.console import Console
from gram_jax.demo.demo import ASSETS, HELDOUT, DemoResult, _compare, run_demo
from gram_jax.errors import CheckpointError, StoppedError
from gram_jax.judge.spec import JudgeSpec
from gram_jax.recipes.reading import read_recipe
from gram_jax.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, DemoResult, str]:
    """(folder, result, what was printed) of one fast demo."""
    folder, printed = tmp_path_factory.mktemp("runs") / "demo", io.StringIO()
    result = run_demo(folder, fast=True, console=Console(file=printed))
    return folder, result, printed.getvalue()


def test_the_demo_leaves_a_judge_that_scores_text(told):
    _, result, _ = told
    judge = Scorer.load(result.judge)
    score = judge.score("Name a prime.", "Seven.", "Nine.")
    assert score.first + score.second == pytest.approx(1.0)
    assert judge.spec.hash == JudgeSpec.load(result.judge).hash


def test_the_demo_trains_both_stages_from_one_another(told):
    folder, result, _ = told
    stage1, stage2 = (read_recipe(folder / name / "recipe.toml") for name in ("stage1", "stage2"))
    assert (stage1.stage, stage2.stage) == ("pretrain", "finetune")
    assert stage2.model.name_or_path == str(folder / "stage1")
    for stage in (stage1, stage2):
        lines = (Path(stage.run.output_dir) / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == stage.run.max_steps
    assert result.before.n == result.after.n == 28
    assert result.before.margin != result.after.margin


def test_the_demo_ends_with_a_table_a_plot_and_three_commands(told):
    _, result, printed = told
    assert result.plot.read_bytes().startswith(b"\x89PNG")
    table, commands = printed.split("Try next")
    assert "before" in table and "95 % interval" in table
    lines = commands.strip().splitlines()
    assert len(lines) == 3
    assert [line.split()[1] for line in lines] == ["evaluate", "data", "score"]
    assert all(str(result.judge) in line for line in lines)


@pytest.mark.torch
def test_transformers_gives_the_exported_judge_the_same_scores(told):
    pytest.importorskip("torch")
    assert told[1].difference < 1e-4


def test_without_pytorch_the_demo_says_so(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    printed = io.StringIO()
    assert _compare(None, tmp_path / "judge", [], tmp_path, Console(file=printed)) is None
    assert "PyTorch is not installed" in printed.getvalue()
    assert (tmp_path / "check.py").is_file()


def test_a_stopped_demo_says_how_the_demo_goes_on(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise StoppedError("stopped by Ctrl-C. Go on with: gram-jax train recipe.toml")

    monkeypatch.setattr("gram_jax.demo.demo.train", stopped)
    with pytest.raises(StoppedError, match=r"gram-jax demo --fast --folder \S+/demo$"):
        run_demo(tmp_path / "demo", fast=True, console=Console(quiet=True))


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "fast"}'])
def test_a_damaged_note_of_a_demo_is_a_clear_error(text, tmp_path):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"demo\.json is damaged"):
        run_demo(tmp_path, fast=True, console=Console(quiet=True))


def test_a_finished_demo_is_told_again_without_training(told):
    folder, result, _ = told
    before = (folder / "stage2" / "metrics.jsonl").stat().st_mtime_ns
    printed = io.StringIO()
    again = run_demo(folder, fast=True, console=Console(file=printed))
    assert (folder / "stage2" / "metrics.jsonl").stat().st_mtime_ns == before
    assert again.after == result.after
    assert "going on with the demo" in printed.getvalue()


def test_the_demo_keeps_out_of_other_folders(told, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="holds no demo"):
        run_demo(tmp_path, fast=True, console=Console(quiet=True))
    with pytest.raises(CheckpointError, match="fast demo"):
        run_demo(told[0], fast=False, console=Console(quiet=True))


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_shipped_recipes_name_files_that_exist(stage):
    recipe = read_recipe(ASSETS / f"demo-{stage}.toml")
    root = ASSETS.parents[2]
    paths = [recipe.judge.template, *(source.path for source in recipe.data.train), HELDOUT]
    assert all((root / path).is_file() for path in paths)
