"""Pairs without annotators: continuations of texts, and corruptions of responses."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from cli_runner import run_cli

from gram_jax.data.reading import read_records
from gram_jax.data.records import Comparison
from gram_jax.data.self_supervised import continuation_pairs, corrupted_pairs
from gram_jax.errors import DataError
from gram_jax.judge.messages import as_prompt

TEXTS = [" ".join(f"t{number}w{at}" for at in range(60)) for number in range(21)]


def records(count: int, words: int) -> list[Comparison]:
    texts = [" ".join(f"r{at}w{word}" for word in range(words)) for at in range(2 * count)]
    return [
        Comparison(as_prompt(f"p{at}?"), texts[2 * at], texts[2 * at + 1], id=f"n{at}")
        for at in range(count)
    ]


def test_each_continuation_is_chosen_once_and_rejected_once():
    pairs = continuation_pairs(TEXTS, seed=0, words=20)
    assert len(pairs) == 20
    assert Counter(p.chosen for p in pairs) == Counter(p.rejected for p in pairs)
    for pair in pairs:
        beginning = pair.prompt[-1].content.split("\n\n")[1].split()
        text = beginning[0].partition("w")[0]
        assert len(beginning) == 20
        assert pair.chosen.split() == [f"{text}w{at}" for at in range(20, 40)]
        assert pair.rejected.partition("w")[0] != text


def test_continuations_depend_on_the_seed_and_not_on_the_order_of_the_texts():
    once, again = (
        {(p.chosen, p.rejected) for p in continuation_pairs(texts, seed=0, words=20)}
        for texts in (TEXTS, TEXTS[::-1])
    )
    assert once == again
    assert once != {(p.chosen, p.rejected) for p in continuation_pairs(TEXTS, seed=1, words=20)}
    with pytest.raises(DataError, match="1 of 2"):
        continuation_pairs([TEXTS[0], "too short"], seed=0, words=20)


def test_a_corruption_is_a_beginning_a_permutation_or_the_response_of_another_prompt():
    given = records(90, 12)
    pairs = corrupted_pairs(given, seed=0)
    kinds = Counter(pair.source for pair in pairs)
    assert min(kinds[name] for name in ("cut", "shuffled", "swapped")) > 15
    assert sum(kinds.values()) == len(pairs) == 90
    for pair, record in zip(pairs, given, strict=True):
        assert pair.chosen in (record.first, record.second)
        if pair.source == "cut":
            assert pair.chosen.startswith(pair.rejected) and pair.rejected != pair.chosen
        elif pair.source == "shuffled":
            assert sorted(pair.rejected.split()) == sorted(pair.chosen.split())
        else:
            assert pair.rejected in {
                t for r in given if r is not record for t in (r.first, r.second)
            }


def test_short_responses_are_swapped_and_one_prompt_is_refused():
    assert {pair.source for pair in corrupted_pairs(records(9, 3), seed=0)} == {"swapped"}
    one = [replace(record, prompt=as_prompt("p?")) for record in records(4, 12)]
    with pytest.raises(DataError, match="two prompts"):
        corrupted_pairs(one, seed=0)


@pytest.mark.parametrize("method", ["continuations", "corruptions"])
def test_the_command_writes_preferences_that_training_reads(method, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"text": text} for text in TEXTS]
    if method == "corruptions":
        rows = [
            {"prompt": r.prompt[-1].content, "response_a": r.first, "response_b": r.second}
            for r in records(6, 12)
        ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("data", "pairs", source, out, "--method", method, "--words", 20)
    assert run_cli(*command).status == 0
    first = out.read_bytes()
    assert {record.label for record in read_records(str(out))[0]} == {0}
    assert run_cli(*command).status != 0  # the output exists
    assert run_cli(*command, "--overwrite").status == 0 and out.read_bytes() == first
