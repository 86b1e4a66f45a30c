"""Tuples, rows of any form and records are inputs of Python functions; anything else is refused with its index."""

import json
from pathlib import Path

import pytest
from fake_judge import FakeJudge
from tiny_runs import tiny_recipe, train, write_pairs

from gram_jax.data.inputs import lists_of, pairs_of
from gram_jax.data.overlap import count_overlap
from gram_jax.data.reading import read_records
from gram_jax.data.records import Candidates, Comparison
from gram_jax.errors import DataError, GramWarning
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.encode import encode_items
from gram_jax.judge.messages import Message, as_prompt
from gram_jax.judge.spec import make_spec
from gram_jax.rewards.forms import Rewards
from gram_jax.rewards.trl import GroupJudge
from gram_jax.scoring.files import check_files
from gram_jax.scoring.scorer import Scorer

ASKED = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
QUESTION = (Message("user", "Why?"),)


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


PAIRS = [
    ("Why?", "a", "b"),
    ["Why?", "a", "b"],
    ([ASKED], "a", "b"),
    (QUESTION, said("a"), said("b")),
    {"prompt": "Why?", "chosen": "a", "rejected": "b"},
    {"question": [ASKED], "response_a": "a", "response_b": "b"},
    {"chosen": [ASKED, *said("a")], "rejected": [ASKED, *said("b")]},
    Comparison(QUESTION, "a", "b", label=1),
]


def test_every_form_of_a_pair_is_the_same_comparison():
    found = [(tuple(as_prompt(prompt)), first, second) for prompt, first, second in pairs_of(PAIRS)]
    assert found == [(QUESTION, "a", "b")] * len(PAIRS)


LISTS = [
    ("Why?", ["a", "b"]),
    ([ASKED], (said("a"), "b")),
    {"prompt": "Why?", "responses": ["a", "b"]},
    {"prompt": "Why?", "chosen": "a", "rejected": "b"},
    Candidates(QUESTION, ("a", "b")),
]


def test_every_form_of_a_list_is_the_same_list():
    found = [(tuple(as_prompt(prompt)), [*texts]) for prompt, texts in lists_of(LISTS)]
    assert found == [(QUESTION, ["a", "b"])] * len(LISTS)


@pytest.mark.parametrize(
    ("items", "named"),
    [
        (["abc"], "comparison 0.*'abc'"),
        ([("p", "a", "b"), ("p", "a")], "comparison 1.*found 2 values"),
        ([("p", "a", "b", "c")], "comparison 0.*found 4 values"),
        ([("p", "a", 3)], "comparison 0, second"),
        ([(3, "a", "b")], "comparison 0, prompt"),
        ([{"prompt": "p", "one": "a"}], "comparison 0: no known schema"),
        ([{"prompt": "p", "responses": ["a", "b"]}], "comparison 0"),
        ([{"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "subset": "x"}], "comparison 0.*2 pairs"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "list of comparisons, found dict"),
        ("abc", "list of comparisons, found str"),
        ([None], "comparison 0.*NoneType"),
        ([([ASKED, *said("a")], "a", "b")], "comparison 0, prompt.*assistant"),
        ([((*QUESTION, ASKED), 3, "b")], "comparison 0, second|comparison 0, first"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_index(items, named):
    with pytest.raises(DataError, match=named):
        list(pairs_of(items))


@pytest.mark.parametrize("items", [["ab"], [("p", "abc")], [("p", 3)], [("p", ["a"], ["b"])], "ab"])
def test_a_string_is_no_list_of_responses(items):
    with pytest.raises(DataError):
        list(lists_of(items))


def test_a_text_is_no_list_of_prompts_responses_or_items():
    rewards = Rewards(FakeJudge())
    for prompts, completions in (("ab", ["x", "y"]), (["a", "b"], "xy"), ({"p": 1}, ["x"])):
        with pytest.raises(DataError, match="expected a list of"):
            rewards.of(prompts, completions)
    with pytest.raises(DataError, match="list of references"):
        rewards.of(["a", "b"], ["x", "y"], "rs")
    group = GroupJudge(FakeJudge())
    for wrong in (lambda: group.rank(["a"], ["xy"]), lambda: group.pairwise(["a"], ["xy"])):
        with pytest.raises(DataError, match="expected lists of prompts"):
            wrong()
    tokenizer = tiny_tokenizer()
    spec = make_spec(tokenizer, max_length=512)
    for item in ("ab", {"prompt": "p", "response": "r"}):
        with pytest.raises(DataError, match=r"expected \(prompt, response\)"):
            encode_items(tokenizer, spec.response, [item], 512)


@pytest.fixture(scope="module")
def judge() -> Scorer:
    with pytest.warns(GramWarning, match="default template"):
        return Scorer.load("tiny-random", compute_dtype="float32")


def test_a_scorer_scores_rows_as_the_texts_in_them(judge: Scorer):
    rows = [{"prompt": "Why?", "chosen": "a", "rejected": "b"}, Comparison(QUESTION, "a", "b")]
    assert judge.score_many(rows) == judge.score_many([("Why?", "a", "b")] * 2)
    assert next(iter(judge.rank_many([LISTS[2]]))).order == judge.rank("Why?", ["a", "b"]).order
    with pytest.raises(DataError, match="comparison 1"):
        judge.score_many([("Why?", "a", "b"), "abc"])


def test_identical_responses_have_exactly_even_probabilities(judge: Scorer):
    score = judge.score([ASKED], "the same", "the same")
    assert (score.first, score.second, score.margin) == (0.5, 0.5, 0.0)


def test_what_is_not_shown_is_a_warning(judge: Scorer):
    thought = [{"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    with pytest.warns(GramWarning, match="reasoning not shown"):
        shown = judge.score_many([("Why?", thought, "b")])
    assert shown == judge.score_many([("Why?", "a", "b")])
    with pytest.warns(GramWarning, match="surrogates"):
        judge.score("Why?", "half \ud83d", "b")


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "out.json", "out.jsonl.gz"])
def test_an_output_that_is_called_something_else_than_json_lines_is_refused(name, tmp_path: Path):
    source = tmp_path / "pairs.csv"
    source.write_text("prompt,chosen,rejected\nq,a,b\n")
    with pytest.raises(DataError, match="JSON lines"):
        check_files(str(source), tmp_path / name)
    assert check_files(str(source), tmp_path / "out.jsonl") == "preference"


# Evaluation data in the training data


def rows(path: Path, names: str) -> Path:
    written = [{"prompt": f"Say {x}.", "chosen": f"{x}!", "rejected": "no"} for x in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return path


def test_pairs_of_both_sources_are_counted_in_either_order(tmp_path: Path):
    train, _ = read_records(rows(tmp_path / "train.jsonl", "abcd"))
    valid, _ = read_records(rows(tmp_path / "valid.jsonl", "cdde"))
    assert count_overlap(train, [record.swapped() for record in valid]) == 3
    assert count_overlap(train, []) == count_overlap([], valid) == 0


@pytest.mark.parametrize("stage", ["finetune", "pretrain"])
def test_evaluation_pairs_in_the_training_data_stop_a_run_above_the_share_of_its_recipe(
    stage: str, tmp_path: Path, caplog
):
    held_out = write_pairs(tmp_path / "valid.jsonl", 3, seed=1)
    shared = write_pairs(tmp_path / "train.jsonl", 8).read_text().splitlines()[0]
    held_out.write_text(held_out.read_text() + shared + "\n")
    recipe = {"data__valid": [str(held_out)], "run__max_steps": 2}
    with pytest.raises(DataError, match=r"1 of the 4 pairs of data.valid \(25.00%\)"):
        train(tiny_recipe(stage, tmp_path / "run", **recipe))
    train(tiny_recipe(stage, tmp_path / "run", **recipe, data__max_overlap=0.25))
    assert "1 of the 4 pairs of data.valid" in caplog.text
