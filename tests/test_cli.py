"""The command line: help without jax, clear endings, the commands on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [sys.executable, "-c", "from gram_jax.cli import main; main()"]


def gram_jax(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XLA_FLAGS": "", "COLUMNS": "160"}
    return subprocess.run(
        [*RUN, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "good", "rejected": "bad"}\n')
    return path


def test_help_does_not_import_jax():
    code = "import sys; from gram_jax import cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert "evaluate" in gram_jax("--help").stdout


def test_a_missing_file_is_named_and_ends_with_status_2(tmp_path: Path):
    done = gram_jax("evaluate", "tiny-random", tmp_path / "nothing.jsonl")
    assert done.returncode == 2
    assert "nothing.jsonl" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_model_lists_what_a_model_may_be(pairs: Path):
    done = gram_jax("evaluate", "no-such-model", pairs)
    assert done.returncode == 2
    assert "smollm2-135m" in done.stderr


def test_an_unknown_recipe_key_names_the_nearest(tmp_path: Path):
    recipe = Path(__file__).parents[1] / "configs" / "smollm2-135m-judge.toml"
    done = gram_jax("train", recipe, "--set", "optimizer.learning_rat=1e-5")
    assert done.returncode == 2
    assert "learning_rate" in done.stderr


def test_score_evaluate_convert_and_inspect_a_tiny_model(pairs: Path, tmp_path: Path):
    scored = gram_jax("score", pairs, tmp_path / "scores.jsonl", "--model", "tiny-random")
    assert scored.returncode == 0, scored.stderr
    assert "score_chosen" in json.loads((tmp_path / "scores.jsonl").read_text())

    converted = gram_jax("convert", "tiny-random", tmp_path / "hf", "--dtype", "bfloat16")
    assert converted.returncode == 0, converted.stderr

    report = tmp_path / "report.json"
    evaluated = gram_jax("evaluate", tmp_path / "hf", pairs, "--out", report)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(report.read_text())["reports"][str(pairs)]["n"] == 1

    inspected = gram_jax("data", "inspect", pairs, "--model", "tiny-random")
    assert inspected.returncode == 0, inspected.stderr
    assert "⟦A⟧" in inspected.stdout or "⟦B⟧" in inspected.stdout
