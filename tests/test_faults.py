"""The test bed of faults: its files, and how far rules that do not understand a response get on them."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from demo_data import is_right, split_texts

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"
HIGHEST = 0.56  # 360 pairs out of distribution: two standard errors above 0.5


@pytest.fixture(scope="module")
def faults():
    """The module faults, imported from the benchmark's folder."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        import faults

        yield faults
    finally:
        sys.path[:] = before
        for name in ("faults", "surface"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def files(faults):
    return faults.make_faults(0)


def test_labeled_unlabeled_and_unseen_kinds_are_all_kinds_of_the_demo_and_disjoint(faults, files):
    parts = [*faults.LABELED, *faults.UNLABELED, *faults.UNSEEN]
    assert sorted(parts) == sorted(faults.KINDS) and len(set(parts)) == len(parts)
    for split in faults.SPLITS:
        counts = Counter(row["source"] for row in files[split.name])
        assert counts == dict.fromkeys(split.kinds, split.pairs)


def test_the_right_response_is_right_and_the_other_wrong(files):
    for name, rows in files.items():
        for row in rows if name != "unlabeled_train" else ():
            assert is_right(row["source"], row["prompt"], row["chosen"]), row
            assert not is_right(row["source"], row["prompt"], row["rejected"]), row


def test_prompts_occur_once_and_unlabeled_pairs_show_the_right_response_on_both_sides(files):
    prompts = [row["prompt"] for rows in files.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    rows = files["unlabeled_train"]
    first = [is_right(row["source"], row["prompt"], row["response_a"]) for row in rows]
    assert all(
        is_right(row["source"], row["prompt"], row["response_b"]) != right
        for row, right in zip(rows, first, strict=True)
    )
    assert 0.45 < sum(first) / len(rows) < 0.55


def test_the_tests_have_texts_of_their_own(faults):
    training, heldout = split_texts(0)
    for part in ("topics", "sentences", "lists", "refusals", "questions"):
        assert not [x for x in getattr(heldout, part) if x in getattr(training, part)]


def test_rules_without_understanding_do_not_judge_out_of_distribution(faults, files):
    """In distribution a classifier of n-grams knows refusals and broken JSON; length says nothing anywhere."""
    tests = {
        split.name: list(faults.as_texts(files[split.name]))
        for split in faults.SPLITS
        if split.test
    }
    found = faults.controls(list(faults.as_texts(files["preference_train"])), tests)
    outside = [name for name in tests if name != "preference_valid"]
    for rule, shares in found.items():
        mean = sum(len(tests[name]) * shares[name] for name in outside)
        assert mean / sum(len(tests[name]) for name in outside) < HIGHEST, rule
    assert all(abs(share - 0.5) < 0.04 for share in found["the longer response"].values())
    assert found["classifier of words and n-grams"]["preference_valid"] > 0.6


def test_the_same_seed_gives_the_same_bytes(faults, files, tmp_path):
    faults.write_faults(tmp_path)
    for name, rows in files.items():
        assert [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] == rows
    assert faults.make_faults(1) != files
