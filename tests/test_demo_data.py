"""The demo's preferences: made by rule, verified by rule, and the same on every machine."""

import gzip
import json
import re

import pytest
from demo_data import ASSETS, KINDS, is_right, make_demo_data, split_texts, write_demo_data


def shipped(stem: str) -> list[dict[str, str]]:
    with gzip.open(ASSETS / f"{stem}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def preferences() -> list[dict[str, str]]:
    return shipped("demo_preferences") + shipped("demo_heldout")


def test_the_generator_makes_the_shipped_files():
    for stem, rows in make_demo_data().items():
        assert rows == shipped(stem), f"{stem}: run python tools/demo_data.py"


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first = write_demo_data(tmp_path / "a", seed=7)
    second = write_demo_data(tmp_path / "b", seed=7)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[0].read_bytes() != (ASSETS / first[0].name).read_bytes()


def test_every_chosen_response_is_right_and_every_rejected_one_wrong(preferences):
    for row in preferences:
        assert is_right(row["source"], row["prompt"], row["chosen"]), row
        assert not is_right(row["source"], row["prompt"], row["rejected"]), row


def test_faults_are_what_their_kind_says(preferences):
    looks = {
        "cut_off": lambda r: not r["rejected"].endswith("."),
        "valid_json": lambda r: (
            not r["rejected"].startswith('{"name": "') or _bad_json(r["rejected"])
        ),
        "letter_case": lambda r: r["rejected"].lower() == r["chosen"].lower(),
        "sorting": lambda r: sorted(r["rejected"].split(", ")) == sorted(r["chosen"].split(", ")),
        "echo": lambda r: not r["rejected"].endswith("!") and re.search("[?.]$", r["rejected"]),
        "one_word": lambda r: (" " in r["chosen"]) != (" " in r["rejected"]),
    }
    for row in preferences:
        assert looks.get(row["source"], bool)(row), row


def _bad_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return True
    return False


def test_no_prompt_and_no_text_of_the_heldout_examples_occurs_in_training():
    training, heldout = split_texts(0)
    for part in ("topics", "sentences", "lists", "refusals", "questions"):
        a, b = getattr(training, part), getattr(heldout, part)
        assert a and b and not [x for x in a if x in b]
    rows = make_demo_data()
    prompts = [row["prompt"] for part in rows.values() for row in part]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_length_does_not_give_the_answer_away(preferences, kind):
    rows = [row for row in preferences if row["source"] == kind]
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    shorter = sum(len(row["chosen"]) < len(row["rejected"]) for row in rows)
    assert abs(longer - shorter) <= 0.15 * len(rows)


def test_unlabeled_pairs_show_the_right_response_on_either_side():
    rows = shipped("demo_unlabeled")
    assert all(set(row) == {"id", "prompt", "response_a", "response_b"} for row in rows)
    kinds = [re.match(r"unlabeled-(\w+)-\d+", row["id"])[1] for row in rows]
    first = sum(is_right(k, r["prompt"], r["response_a"]) for k, r in zip(kinds, rows, strict=True))
    assert 0.4 < first / len(rows) < 0.6
