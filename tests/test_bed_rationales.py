"""Structured rationales of the test bed: checked by code, and the comparison of a judge that writes them."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import compiled_programs  # noqa: F401

from gram_jax.data.examples import encode_rationales
from gram_jax.interop.models import load_tokenizer
from gram_jax.judge.encode import encode_fitting_items
from gram_jax.judge.spec import make_spec

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"


@pytest.fixture(scope="module")
def demonstration():
    """The module rationales, imported from the benchmark's folder."""
    sys.path.insert(0, str(FOLDER))
    try:
        import rationales

        yield rationales
    finally:
        sys.path.remove(str(FOLDER))
        for name in (
            "rationales",
            "rationale_rounds",
            "rationale_tasks",
            "bed",
            "bed_tasks",
            "intervals",
        ):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def asked(demonstration):
    """The options by default."""
    return demonstration.parse(["out"])


@pytest.fixture(scope="module")
def pairs(demonstration, asked, tmp_path_factory):
    """All pairs of the comparison by default."""
    bed = demonstration.make_bed(tmp_path_factory.mktemp("bed"), asked.pairs, asked.test_pairs)
    return [*bed.test, *bed.train]


def test_all_pairs_fit_with_their_rationales(demonstration, asked, pairs):
    tasks = demonstration.rationale_tasks
    tokenizer = load_tokenizer("smollm2-135m")
    length, most, template = asked.max_length, asked.max_rationale, demonstration.DEMO_TEMPLATE
    spec = make_spec(
        tokenizer, template=template, rationale="think", max_rationale=most, max_length=length
    )
    items = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    encoded = encode_fitting_items(tokenizer, spec.comparison, items, length)
    texts = [tasks.rationale(pair, 0, swapped=False) for pair in pairs]
    found = encode_rationales(tokenizer, spec, encoded, texts)
    # None is None, and the rows of equally many documents hold them.
    lengths = [[len(one.tokens) for one in kind] for kind in (encoded, found)]
    per_row = [row / np.mean(of) for row, of in zip(asked.row_lengths, lengths, strict=True)]
    assert max(map(max, lengths)) <= min(asked.row_lengths)
    assert per_row == pytest.approx([8.5, 8.5], abs=0.2)


def test_every_rationale_says_which_response_is_right(demonstration, asked, pairs):
    tasks = demonstration.rationale_tasks
    expected = (asked.pairs + asked.test_pairs) * len(tasks.KINDS)
    assert len({pair.prompt for pair in pairs}) == len(pairs) == expected
    for pair in pairs:
        first, second = (tasks.rationale(pair, 0, swapped=swapped) for swapped in (False, True))
        work, right, wrong = first.split("\n")
        assert right.startswith("A: ") and right.endswith(": yes"), first
        assert wrong.startswith("B: ") and wrong.endswith(": no"), first
        assert second.split("\n") == [work, "A" + wrong[1:], "B" + right[1:]]
        assert tasks.right_lines(first, first) == (True, True)
        assert tasks.right_lines(first, second) == (True, False)
        assert tasks.right_lines("It is A.", first) == (False, False)


@pytest.mark.parametrize(
    ("kind", "prompt", "chosen", "rejected", "written"),
    [
        (
            "add", "What is 60 + 53?", "It is 113.", "It is 115.",
            "60 + 50 = 110, 110 + 3 = 113\nA: 113: yes\nB: 115: no",
        ),
        (
            "sequence", "Which number comes before this sequence: 56, 59, 62, 65?", "53", "68",
            "59 - 56 = 3, 56 - 3 = 53\nA: 53: yes\nB: 68: no",
        ),
        (
            "sequence", "Which number comes after this sequence: 56, 59, 62, 65?", "68", "53",
            "65 - 62 = 3, 65 + 3 = 68\nA: 68: yes\nB: 53: no",
        ),
        (
            "sort_numbers", "Sort these numbers from large to small: 58, 84, 61", "84, 61, 58", "58, 61, 84",
            "down: 84, 61, 58\nA: 84, 61, 58: yes\nB: 58, 61, 84: no",
        ),
        (
            "position", "Which word is at the end in this list: brush, pliers, brown?", "It is brown.", "It is brush.",
            "1 brush, 2 pliers, 3 brown, last brown\nA: brown: yes\nB: brush: no",
        ),
        (
            "word_length", "Which of these words is the shortest: water, desk, orange?", "desk", "orange",
            "water 5, desk 4, orange 6, min desk\nA: desk: yes\nB: orange: no",
        ),
        (
            "starts_with", "Which of these words starts with the letter v: file, violet, hat?", "violet", "file",
            "f file, v violet, h hat, with v violet\nA: violet: yes\nB: file: no",
        ),
        (
            "item_count", "Give me five first names.", "Henry, Clara, Frank, Ida, Anna", "Emma, Frank",
            "asked 5\nA: 1 Henry, 2 Clara, 3 Frank, 4 Ida, 5 Anna, 5 of 5: yes\nB: 1 Emma, 2 Frank, 2 of 5: no",
        ),
    ],
)  # fmt: skip
def test_rationales_by_hand(demonstration, kind, prompt, chosen, rejected, written):
    tasks = demonstration.rationale_tasks
    pair = tasks.Pair(kind, 0, prompt, chosen, rejected)
    assert tasks.rationale(pair, 0, swapped=False) == written


def test_figures_are_means_over_pairs_and_seeds(demonstration, pairs):
    two = [pair for pair in pairs[:24] if pair.kind == "add"][:4]
    right = demonstration.Verdict(1.0, 1.0, 30.0, 0.0, 1.0, 0.5)
    wrong = demonstration.Verdict(0.0, 1.0, 10.0, 0.5, 0.0, 0.0)
    plain = demonstration.Verdict(0.0, 0.0)
    verdicts = {
        ("rationale", 5): [[right] * 4, [right, wrong, right, wrong]],
        ("label", 5): [[plain] * 4] * 2,
    }
    rows = {
        (r["judge"], r["kind"], r["metric"]): r
        for r in demonstration.figures_of(verdicts, two, [0, 1], [("rationale", "label")])
        if r["kind"] in ("all", "add")
    }
    assert rows["rationale", "add", "accuracy"]["value"] == 0.75
    assert rows["rationale", "all", "accuracy"]["by_seed"] == {"0": 1.0, "1": 0.5}
    assert rows["rationale", "add", "tokens"]["value"] == 25.0
    assert rows["rationale", "add", "no verdict"]["value"] == 0.125
    assert rows["rationale - label", "add", "accuracy"]["value"] == 0.75
    assert ("label", "add", "work right") not in rows
    text = demonstration.markdown(list(rows.values()), 5)
    assert "| add |" in text and "0.750" in text


@pytest.mark.slow
def test_the_comparison_runs_and_resumes(demonstration, tmp_path, monkeypatch):
    rounds = importlib.import_module("rationale_rounds")
    for module in (demonstration, demonstration.rationale_tasks, rounds):
        monkeypatch.setattr(module, "KINDS", ("add", "position", "item_count"))
    words = [
        str(tmp_path / "out"), "--model", "tiny-random", "--seeds", "0", "--pairs", "2", "--test-pairs", "2",
        "--steps", "2", "--points", "1", "--max-length", "320", "--max-rationale", "64", "--row-lengths", "640", "896",
    ]  # fmt: skip
    demonstration.main(words)
    results = tmp_path / "out" / "results.json"
    before = results.read_bytes()
    rows = json.loads(before)["figures"]
    assert {row["judge"] for row in rows} == {*demonstration.JUDGES, "rationale - label"}
    whole = next(
        r for r in rows if (r["judge"], r["kind"], r["metric"]) == ("rationale", "all", "tokens")
    )
    assert whole["value"] > 0 and whole["step"] == 2
    results.unlink()
    demonstration.main(words)
    assert results.read_bytes() == before
    monkeypatch.setattr(rounds, "ARMS", ("labeled", "self-training"))
    with pytest.raises(SystemExit):
        rounds.main([*words, "--seed", "1"])  # no such judge
    rounds.main([*words, "--new-pairs", "2", "--votes", "1", "--further-steps", "2"])
    found = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert found["accepted"]["all"] == {"pairs": 6, "accepted": 0, "right": 0}
    named = [(row["judge"], row["kind"], row["metric"]) for row in found["figures"]]
    assert len(set(named)) == len(named)
    assert {judge for judge, *_ in named} >= {"start", *rounds.ARMS}
