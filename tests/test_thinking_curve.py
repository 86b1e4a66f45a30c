"""Accuracy against tokens: the ends of the curve, and the threshold that fits a budget."""

import json

import numpy as np
import pytest
from cli_runner import run_cli
from tiny_runs import write_pairs

from gram_jax.errors import ReportError
from gram_jax.evals.results import read_results
from gram_jax.evals.thinking import ThinkingResults, ThoughtPairs, fit_gate

MARGIN = np.array([0.1, 3.0, 0.4, 2.0])
TOKENS = np.array([10.0, 30.0, 20.0, 40.0])
RIGHT = np.array([[False, True], [True, False], [False, True], [True, True]])
PAIRS = ThoughtPairs(MARGIN, TOKENS, RIGHT, RIGHT, np.arange(4))


@pytest.mark.parametrize(
    ("budget", "below"),
    [(0, 0.1), (2.5, 0.4), (7.4, 0.4), (7.5, 2.0), (17.5, 3.0), (24.9, 3.0), (25, None)],
)
def test_the_gate_is_the_largest_that_the_budget_allows(budget, below):
    assert fit_gate(MARGIN, TOKENS, budget) == below
    assert PAIRS.point(below).tokens <= budget


def test_the_ends_of_the_curve_are_no_thought_and_always_thought():
    first, *between, last = PAIRS.curve()
    assert (first.below, first.tokens, first.accuracy) == (0.0, 0.0, 0.5)
    assert (last.below, last.tokens, last.accuracy) == (None, 25.0, 0.75)
    assert [(x.below, x.tokens, x.accuracy) for x in between] == [
        (0.4, 2.5, 0.75), (2.0, 7.5, 1.0), (3.0, 17.5, 1.0),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_fits_and_measures_on_different_prompts(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    template = r"Reasons:\n{rationale}\nThe verdict:\n"
    run_cli(
        "spec", tmp_path / "judge.json", "--model", "tiny-random", "--template", "default",
        "--rationale", template, "--stop", "t", "--max-rationale", 16, "--max-length", 256,
    )  # fmt: skip
    options = ("--spec", tmp_path / "judge.json", "--votes", 2)
    done = run_cli(
        "think", "tiny-random", pairs, "--budget", 40, "--out", tmp_path / "out", *options
    )
    assert done.status == 0, done.output
    found = read_results(tmp_path / "out", ThinkingResults)
    assert found is not None
    assert found.fitted + found.pairs == 8 and found.rationales == 8 * 4
    assert found.curve[0].tokens == 0 and found.curve[-1].thought == 1
    path = tmp_path / "out" / ThinkingResults.FILE
    saved = path.read_text()
    path.write_text(saved.replace('"budget": 40', '"budget": 41'))
    with pytest.raises(ReportError, match="checksum"):
        read_results(tmp_path / "out", ThinkingResults)
    path.write_text(saved)
    below = found.gate.below or 1e9
    done = run_cli(
        "evaluate", "tiny-random", pairs, "--out", tmp_path / "e", *options, "--think-below", below
    )
    assert done.status == 0, done.output
    settings = json.loads((tmp_path / "e" / "evaluation.json").read_text())["settings"]
    assert json.loads(settings["think"])["below"] == below
    scores = tmp_path / "scores.jsonl"
    for more in ((), ("--overwrite",)):  # the same bytes again
        done = run_cli("score", pairs, scores, "--model", "tiny-random", *options, *more)
        assert done.status == 0 and "rationales of" in done.output, done.output
        written = scores.read_bytes()
    assert scores.read_bytes() == written and len(written.splitlines()) == 8
