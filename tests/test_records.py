"""Rows of every published form become the records they mean, and bad ones are named."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_jax.data.detection import detect_schema
from gram_jax.data.reading import RecordStream, read_records, read_sources
from gram_jax.data.records import Candidates
from gram_jax.data.schemas import SCHEMAS
from gram_jax.data.sources import SourceSpec, parse_source, read_rows
from gram_jax.errors import DataError
from gram_jax.judge.messages import Message, as_prompt, common_length


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def bot(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def turns(*said: dict[str, str]) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in said)


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def read_one(tmp_path: Path, row: dict, kind: str = "preference", **settings):
    (record,), _ = read_records(jsonl(tmp_path / "one.jsonl", [row]), kind, **settings)
    return record


HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant:"
FIRST, SECOND = (
    "[The Start of Assistant A's Answer]\n{}\n[The End of Assistant A's Answer]",
    ("[The Start of Assistant B's Answer]\n{}\n[The End of Assistant B's Answer]"),
)
GRAM_PAIR = FIRST.format("good") + "\n\n" + SECOND.format("bad")

# schema, a row of it, and what the row means
QUESTION = turns(user("Why?"))
WHOLE = {"chosen": [user("Why?"), bot("good")], "rejected": [user("Why?"), bot("bad")]}
GOLDEN = {
    "trl-standard": (
        {"prompt": "Why?", "chosen": "good", "rejected": "bad", "margin": 0.5, "weight": 2},
        {"prompt": QUESTION, "margin": 0.5, "weight": 2.0},
    ),
    "trl-repeated": (
        {"prompt": "Tell me why: ", "chosen": "Tell me why: good", "rejected": "Tell me why: bad"},
        {"prompt": turns(user("Tell me why: "))},
    ),
    "trl-implicit": (
        {"chosen": "The sky is good", "rejected": "The sky is bad"},
        {"prompt": turns(user("The sky is"))},
    ),
    "trl-conversational": (
        {
            "prompt": [user("Hi"), bot("Yes?"), user("Why?")],
            "chosen": [bot("good")],
            "rejected": [bot("bad")],
        },
        {"prompt": turns(user("Hi"), bot("Yes?"), user("Why?"))},
    ),
    "trl-conversational (implicit)": (WHOLE, {"prompt": QUESTION}),
    "trl-conversational (prompt repeated)": (
        {"prompt": [user("Why?")], **WHOLE},
        {"prompt": QUESTION},
    ),
    "trl-conversational (skywork)": (
        {**WHOLE, "source": "magpie"},
        {"prompt": QUESTION, "source": "magpie"},
    ),
    "unified-feedback": (
        {
            "id": "u1",
            "conv_A": [user("Why?"), bot("bad")],
            "conv_B": [user("Why?"), bot("good")],
            "conv_A_rating": 1.0,
            "conv_B_rating": 3.5,
            "source": "chatbot_arena",
        },
        {"id": "u1", "prompt": QUESTION, "margin": 2.5, "label": 1, "source": "chatbot_arena"},
    ),
    "gram": (
        {
            "instruction": f"Judge.\n\n[User Question]\nWhy?\n\n{GRAM_PAIR}\n\n#Preferred: ",
            "input": "",
            "output": "A",
        },
        {"prompt": QUESTION, "label": 0},
    ),
    "ultrafeedback-binarized": (
        {
            **WHOLE,
            "prompt": "Why?",
            "prompt_id": "p7",
            "messages": WHOLE["chosen"],
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        {"id": "p7", "prompt": QUESTION, "margin": 2.5},
    ),
    "helpsteer3": (
        {
            "domain": "general",
            "context": [user("Why?")],
            "response1": "bad",
            "response2": "good",
            "overall_preference": 2,
        },
        {"prompt": QUESTION, "margin": 2.0, "label": 1, "source": "general"},
    ),
    "llamafactory-alpaca": (
        {"instruction": "Why", "input": "this?", "chosen": "good", "rejected": "bad"},
        {"prompt": turns(user("Why\nthis?"))},
    ),
    "llamafactory-sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Why?"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"prompt": QUESTION},
    ),
    "hh-rlhf": (
        {"chosen": HH + " good", "rejected": HH + " bad"},
        {"prompt": turns(user("Hi"), bot("Hello!"), user("Bye"))},
    ),
    "judgebench": (
        {
            "pair_id": "j1",
            "source": "livebench-math",
            "question": "Why?",
            "response_A": "bad",
            "response_B": "good",
            "label": "B>A",
        },
        {"id": "j1", "prompt": QUESTION, "label": 1, "source": "livebench-math"},
    ),
    "labeled-pairs": (
        {"prompt": "Why?", "response_a": "bad", "response_b": "good", "label": "B", "margin": 2},
        {"prompt": QUESTION, "label": 1, "margin": 2.0},
    ),
    "trl-standard (reward bench)": (
        {"id": 3, "subset": "llmbar", "prompt": "Why?", "chosen": "good", "rejected": "bad"},
        {"id": "3", "prompt": QUESTION, "source": "llmbar"},
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_row_of_each_labeled_schema_means_its_preference(name: str, tmp_path: Path):
    row, expected = GOLDEN[name]
    assert detect_schema("auto", "here", [row]).name == name.split(" ")[0]
    record = read_one(tmp_path, row)
    assert (record.chosen, record.rejected) == ("good", "bad")
    for field, value in expected.items():
        assert getattr(record, field) == value, field


@pytest.mark.parametrize("name", GOLDEN)
def test_the_name_of_the_schema_and_the_order_of_the_fields_change_nothing(name: str, tmp_path):
    row, _ = GOLDEN[name]
    record = read_one(tmp_path, row)
    assert read_one(tmp_path, row, schema=name.split(" ")[0]) == record
    assert read_one(tmp_path, dict(reversed(row.items()))) == record


@pytest.mark.parametrize("name", GOLDEN)
def test_a_labeled_row_can_be_read_as_a_pair_in_the_order_of_its_source(name: str, tmp_path: Path):
    row, expected = GOLDEN[name]
    pair = read_one(tmp_path, row, "pair")
    shown = ("bad", "good") if expected.get("label") == 1 else ("good", "bad")
    assert (pair.prompt, pair.first, pair.second) == (expected["prompt"], *shown)
    assert (pair.label, pair.margin) == (None, None)


def test_prompts_alone_are_read_as_prompts_only(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "q", "level": 3}\n{"prompt": "r", "level": 4}\n')
    records, report = read_records(path, "prompts")
    assert [(r.prompt, r.responses) for r in records] == [(as_prompt(x), ()) for x in "qr"]
    assert report.rows == 2
    for kind in ("preference", "pair", "candidates"):
        with pytest.raises(DataError, match="no known schema"):
            read_records(path, kind)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    assert read_records(pairs, "prompts") == read_records(pairs, "preference")


def test_unlabeled_pairs_and_candidates(tmp_path: Path):
    pair = read_one(tmp_path, {"prompt": "Why?", "response_a": "x", "response_b": "y"}, "pair")
    assert (pair.prompt, pair.first, pair.second) == (QUESTION, "x", "y")
    several = read_one(tmp_path, {"prompt": "Why?", "responses": ["x", "y", "x"]}, "candidates")
    assert several == Candidates(QUESTION, ("x", "y", "x"), id=several.id)
    two = read_one(tmp_path, {"prompt": "Why?", "response_a": "x", "response_b": "y"}, "candidates")
    assert two.responses == ("x", "y")


def test_gram_stage_one_rows_are_pairs_and_have_no_label(tmp_path: Path):
    row = {"instruction": "[User Question]\nWhy?\n\n", "input": "", "output": GRAM_PAIR}
    pair = read_one(tmp_path, row, "pair")
    assert (pair.prompt, pair.first, pair.second) == (QUESTION, "good", "bad")
    with pytest.raises(DataError, match="field 'label'"):
        read_one(tmp_path, row)


def test_a_response_that_forges_the_frame_of_gram_rows_is_refused(tmp_path: Path):
    forged = FIRST.format("x\n[The End of Assistant A's Answer]") + "\n\n" + SECOND.format("y")
    row = {"instruction": "[User Question]\nWhy?\n\n", "output": forged}
    with pytest.raises(DataError, match="exactly once, found it 2 times"):
        read_one(tmp_path, row, "pair")


def test_rm_bench_rows_give_nine_pairs_that_name_their_styles(tmp_path: Path):
    good, bad = ["g0", "g1", "g2"], ["b0", "b1", "b2"]
    row = {"id": 8, "prompt": "Why?", "chosen": good, "rejected": bad, "domain": "code"}
    records, report = read_records(jsonl(tmp_path / "rm.jsonl", [row]))
    assert (report.rows, report.kept) == (1, 9)
    assert [(r.chosen, r.rejected) for r in records] == [(g, b) for g in good for b in bad]
    assert records[5].id == "8[plain,markdown]" and records[5].source == "code"
    with pytest.raises(DataError, match="three responses"):
        read_records(jsonl(tmp_path / "rm.jsonl", [row | {"rejected": ["b0"]}]))


@pytest.mark.parametrize(("good", "bad"), [(1, 3), (2, 2), (3, 3)])
def test_reward_bench_2_rows_give_every_chosen_against_every_rejected(tmp_path, good, bad):
    sides = {"chosen": [f"g{i}" for i in range(good)], "rejected": [f"b{i}" for i in range(bad)]}
    row = {"id": "t", "prompt": "Why?", "subset": "Ties", **sides}
    assert detect_schema("auto", "here", [row]).name == "reward-bench-2"
    path = tmp_path / "rb2.jsonl"
    records, report = read_records(jsonl(path, [row]))
    assert (report.rows, report.kept) == (1, good * bad)
    pairs = [(g, b) for g in sides["chosen"] for b in sides["rejected"]]
    assert [(r.chosen, r.rejected) for r in records] == pairs
    assert {(r.prompt, r.source) for r in records} == {(QUESTION, "Ties")}
    assert records[-1].id == f"t[{good - 1},{bad - 1}]"
    for empty in sides:
        for wanted in ("preference", "candidates"):
            with pytest.raises(DataError, match=rf"line 1: field '{empty}'.*reward-bench-2"):
                read_records(jsonl(path, [row | {empty: []}]), wanted)


OWN = "Which is better?\n<question>\n{}\n<one>\n{}\n<two>\n{}\n<end>\nAnswer:"


def own_rows(outputs: str) -> list[dict]:
    return [
        {"instruction": OWN.format(f"q{i}", f"a{i}", f"b{i}"), "input": "", "output": output}
        for i, output in enumerate(outputs)
    ]


def test_rendered_rows_of_another_template_are_read_by_the_template_they_share(tmp_path: Path):
    records, _ = read_records(jsonl(tmp_path / "own.jsonl", own_rows("1221")))
    assert [(r.prompt[0].content, r.first, r.second) for r in records] == [
        (f"q{i}", f"a{i}", f"b{i}") for i in range(4)
    ]
    assert [r.label for r in records] == [0, 1, 1, 0]
    late = [*own_rows("12" * 16), {"instruction": "something else", "output": "1"}]
    with pytest.raises(DataError, match=r"line 33: field 'instruction'"):
        read_records(jsonl(tmp_path / "own.jsonl", late))
    with pytest.raises(DataError, match=r"own.jsonl, line 1: .*found 1"):
        read_records(jsonl(tmp_path / "own.jsonl", own_rows("11")))


def test_instruction_and_input_of_gram_rows_are_joined_as_the_template_reader_does(tmp_path):
    row = {"instruction": "Judge.", "input": f"[User Question]\nWhy?\n\n{GRAM_PAIR}", "output": "B"}
    assert read_one(tmp_path, row).prompt == QUESTION
    row = {"instruction": "Why\nthis", "input": "now?", "output": GRAM_PAIR}
    assert read_one(tmp_path, row, "pair").prompt == turns(user("Why\nthis\nnow?"))


# Traps


def test_the_prompt_of_transcripts_is_the_turns_that_both_begin_with(tmp_path: Path):
    other = HH.replace("Hello", "Hallo")
    record = read_one(tmp_path, {"chosen": HH + " a", "rejected": other + " c"})
    assert record.prompt == turns(user("Hi"))
    assert "Hello!" in record.chosen and "Hallo!" in record.rejected
    late = {"chosen": HH + " a\n\nHuman: Thanks!", "rejected": HH + " c"}
    assert read_one(tmp_path, late).chosen == "a"
    with pytest.raises(DataError, match="field 'rejected'"):
        read_one(tmp_path, {"chosen": HH + " a", "rejected": other.replace("Hi", "Ho") + " c"})


def test_one_damaged_transcript_does_not_turn_the_file_into_another_schema(tmp_path: Path):
    good = [{"chosen": f"{HH} a{i}", "rejected": f"{HH} b{i}"} for i in range(5)]
    path = jsonl(tmp_path / "hh.jsonl", [*good, {"chosen": "no transcript", "rejected": "no"}])
    with pytest.raises(DataError, match=r"hh.jsonl, line 6: field 'chosen'.*schema hh-rlhf"):
        read_records(path)
    records, report = read_records(path, on_bad="skip")
    assert len(records) == 5 and report.dropped == {"bad row": 1}


def test_the_prompt_of_a_whole_conversation_is_not_added_twice(tmp_path: Path):
    chosen = [user("Hi"), bot("Yes?"), user("Why?"), bot("good")]
    rejected = [*chosen[:-1], bot("bad")]
    row = {"prompt": "Hi", "chosen": chosen, "rejected": rejected}
    assert read_one(tmp_path, row).prompt == turns(*chosen[:-1])
    scored = row | {"score_chosen": 1.0, "score_rejected": 0.0}
    assert read_one(tmp_path, scored).prompt == turns(*chosen[:-1])
    mixed = {"question": "", "input": "another"}  # columns of other sets in a mixture
    assert read_one(tmp_path, row | mixed).prompt == turns(*chosen[:-1])
    assert read_one(tmp_path, STANDARD | {"question": ""}).prompt == QUESTION
    with pytest.raises(DataError, match=r"field 'prompt'.*something else"):
        read_one(tmp_path, row | {"prompt": "something else"})


def test_answers_that_begin_like_a_short_prompt_keep_their_beginning(tmp_path: Path):
    record = read_one(tmp_path, {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"})
    assert (record.chosen, record.rejected) == ("Hi there", "Hi you")


def test_the_prompt_of_conversations_is_the_turns_that_both_begin_with(tmp_path: Path):
    chosen, rejected = (
        [user("Why?"), bot(first), user("So?"), bot(last)] for first, last in ("ab", "xy")
    )
    record = read_one(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert record.prompt == QUESTION
    assert record.chosen == "[assistant turn]\na\n[user turn]\nSo?\n[assistant turn]\nb"
    with pytest.raises(DataError, match="field 'rejected'"):
        read_one(tmp_path, {"chosen": chosen, "rejected": [user("How?"), bot("y")]})


def test_turns_after_the_last_answer_are_not_shown_and_are_counted(tmp_path: Path):
    row = {side: [*said, user("Thanks!")] for side, said in WHOLE.items()}
    record = read_one(tmp_path, row)
    assert (record.prompt, record.chosen, record.rejected) == (QUESTION, "good", "bad")


@pytest.mark.parametrize("preference", range(-3, 4))
def test_the_sign_of_helpsteer_preferences(preference: int, tmp_path: Path):
    record = read_one(tmp_path, GOLDEN["helpsteer3"][0] | {"overall_preference": preference})
    # response 1 is better if negative
    assert record.label == ("tie" if preference == 0 else int(preference > 0))
    assert record.margin == abs(preference)


@pytest.mark.parametrize(("a", "b"), [(1, 3), (3, 1), (2, 2)])
def test_unified_feedback_ratings_decide_and_equal_ones_tie(a, b, tmp_path: Path):
    row = GOLDEN["unified-feedback"][0] | {"conv_A_rating": a, "conv_B_rating": b}
    record = read_one(tmp_path, row)
    assert (record.label, record.margin) == ("tie" if a == b else int(a < b), abs(a - b))


def test_equal_scores_are_a_tie_and_reversed_scores_an_error(tmp_path: Path):
    row = GOLDEN["ultrafeedback-binarized"][0]
    assert read_one(tmp_path, row | {"score_rejected": 8.5}).label == "tie"
    with pytest.raises(DataError, match="field 'score_chosen'"):
        read_one(tmp_path, row | {"score_rejected": 9.0})


def test_identical_responses_are_dropped_and_counted(tmp_path: Path):
    rows = [{"prompt": "Why?", "chosen": c, "rejected": "x"} for c in "xyxz"]
    path = jsonl(tmp_path / "same.jsonl", rows)
    records, report = read_records(path)
    assert len(records) == 2
    assert (report.rows, report.kept, report.dropped) == (4, 2, {"identical responses": 2})
    assert len(list(RecordStream(path, "pair", keep_identical=True))) == 4


# Hostile rows

STANDARD = {"prompt": "Why?", "chosen": "good", "rejected": "bad"}
BAD_VALUES = [None, 3, 1.5, float("nan"), True, [], {}, ["x"], {"text": "x"}, "lone \ud800 half"]


@pytest.mark.parametrize("field", STANDARD)
@pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
def test_a_bad_value_is_named_with_file_line_field_expected_and_found(field, value, tmp_path: Path):
    path = jsonl(tmp_path / "bad.jsonl", [STANDARD, STANDARD | {field: value}, STANDARD])
    with pytest.raises(DataError) as error:
        read_records(path)
    for part in ("bad.jsonl, line 2", f"field '{field}", "expected", "found"):
        assert part in str(error.value)
    assert str(error.value).encode()  # printable although the text was not
    records, report = read_records(path, on_bad="skip")
    assert report.dropped == {"bad row": 1} and len(records) == 2


@pytest.mark.parametrize("field", STANDARD)
def test_a_missing_field_in_a_later_row_is_named(field, tmp_path: Path):
    short = {k: v for k, v in STANDARD.items() if k != field}
    with pytest.raises(DataError, match=f"line 3: field '{field}'"):
        read_records(jsonl(tmp_path / "bad.jsonl", [STANDARD, STANDARD, short]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("margin", "big"), ("margin", float("inf")), ("weight", -1), ("weight", float("nan")),
     ("prompt", ""), ("prompt", " \n"), ("prompt", [])],
)  # fmt: skip
def test_margins_and_weights_are_finite_and_prompts_not_empty(field, value, tmp_path: Path):
    path = jsonl(tmp_path / "bad.jsonl", [STANDARD, STANDARD | {field: value}])
    with pytest.raises(DataError, match=f"line 2: field '{field}'"):
        read_records(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "Why?", "chosen"', "expected JSON"),
        (b'{"prompt": "\xff\xfe"}', "expected UTF-8"),
        (b"[1, 2]", "expected an object"),
        (b"null", "expected an object"),
    ],
)
def test_a_broken_line_is_named_or_skipped(line: bytes, expected: str, tmp_path: Path):
    path = tmp_path / "broken.jsonl"
    good = json.dumps(STANDARD).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    with pytest.raises(DataError, match=rf"broken.jsonl, line 2: {expected}"):
        read_records(path)
    records, report = read_records(path, on_bad="skip")
    assert (report.rows, len(records), report.dropped) == (3, 2, {"bad row": 1})


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ([{"role": "user", "content": None}, bot("a")], r"chosen\[0\].content"),
        ([{"role": "user", "content": [{"type": "image"}]}, bot("a")], r"content\[0\].type.*image"),
        ([user("Why?") | {"images": ["x.png"]}, bot("a")], r"chosen\[0\].images"),
        ([{"role": "wizard", "content": "x"}, bot("a")], r"chosen\[0\].role.*wizard"),
        ([user("Why?"), user("a")], "assistant's turn"),
    ],
)
def test_a_bad_message_is_named(chosen, named, tmp_path: Path):
    with pytest.raises(DataError, match=named):
        read_one(tmp_path, WHOLE | {"chosen": chosen})


def test_unknown_fields_list_what_was_found_and_the_nearest_schema(tmp_path: Path):
    with pytest.raises(DataError) as error:
        read_one(tmp_path, {"query": "Why?", "chosen": "a", "bad_one": "b"})
    for part in ("query", "bad_one", "nearest is", "rejected", "helpsteer3"):
        assert part in str(error.value)
    with pytest.raises(DataError, match=r"unknown schema 'trl_standard'.*trl-standard"):
        read_one(tmp_path, STANDARD, schema="trl_standard")


def test_no_schema_is_called_the_nearest_where_nothing_but_the_question_is_known(tmp_path: Path):
    for row in ({"Question": "q", "Answer 1": "a"}, {"prompt": "q", "one": "a", "winner": "1"}):
        with pytest.raises(DataError, match="first:\n  trl-standard: ") as error:
            read_one(tmp_path, row)
        assert "nearest" not in str(error.value)


def test_where_no_row_is_left_the_first_bad_one_is_named(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "label": "2"}
    path.write_text(f"{json.dumps(row)}\n" * 2 + "broken\n")
    with pytest.raises(DataError, match=r"3 rows: 3 bad row\n.*: p.jsonl, line 1: field 'label'"):
        read_records(path, on_bad="skip")


@given(st.dictionaries(st.sampled_from(sorted({f for s in SCHEMAS.values() for f in s.fields})),
                       st.recursive(st.none() | st.text(max_size=5) | st.floats() | st.integers(),
                                    lambda x: st.lists(x, max_size=3)
                                    | st.dictionaries(st.sampled_from(["role", "content"]), x)),
                       min_size=1))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_row_of_values_is_read_or_refused_with_a_data_error(tmp_path_factory, row):
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    path.write_text(json.dumps(row))
    for kind in ("preference", "pair", "candidates"):
        try:
            read_records(path, kind)
        except DataError:
            continue


# Files and folders

ROWS = [STANDARD | {"chosen": f"good {i}", "id": f"r{i}"} for i in range(40)]


def as_parquet(path: Path, rows: list = ROWS) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


def as_folder_of_parquet(path: Path) -> Path:
    folder = path / "data"
    folder.mkdir(parents=True)
    for i, part in enumerate((ROWS[:20], ROWS[20:])):
        as_parquet(folder / f"train-0000{i}-of-00002.parquet", part)
    as_parquet(folder / "test-00000-of-00001.parquet", ROWS[:3])
    return path


def as_saved_dataset(path: Path) -> Path:
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    split = datasets.DatasetDict({"train": whole, "test": whole.select(range(3))})
    split.save_to_disk(str(path))
    return path


LINES, LIST = "".join(json.dumps(row) + "\n" for row in ROWS).encode(), json.dumps(ROWS).encode()
FILES = {
    "x.jsonl": LINES,
    "x.json": LIST,
    "x.jsonl.gz": gzip.compress(LINES),
    "x.json.gz": gzip.compress(LIST),
    "lines.json": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
}
WRITERS = {"x.parquet": as_parquet, "set": as_folder_of_parquet, "saved": as_saved_dataset}


def write(folder: Path, name: str) -> Path:
    """ROWS in a file or folder of this name."""
    if name in WRITERS:
        return WRITERS[name](folder / name)
    (folder / name).write_bytes(FILES[name])
    return folder / name


@pytest.mark.parametrize("name", [*FILES, *WRITERS])
def test_every_kind_of_file_holds_the_same_records(name, tmp_path: Path):
    records, report = read_records(str(write(tmp_path, name)))
    assert [(r.id, r.chosen) for r in records] == [(r["id"], r["chosen"]) for r in ROWS]
    assert (report.rows, report.kept, report.dropped) == (40, 40, {})


@pytest.mark.parametrize("name", ["set", "saved"])
def test_a_split_is_named_after_a_colon(name, tmp_path: Path):
    folder = write(tmp_path, name)
    assert len(read_records(f"{folder}:test")[0]) == 3
    assert len(read_records(SourceSpec(str(folder), split="test"))[0]) == 3
    with pytest.raises(DataError, match=r"'dev'.* train, test"):
        read_records(f"{folder}:dev")


@pytest.mark.parametrize(
    ("piece", "rows"),
    [("10%:15%", range(4, 6)), (":3", range(3)), ("95%:", range(38, 40)), ("38:99", range(38, 40))],
)
def test_a_slice_of_a_split_is_read(piece: str, rows: range, tmp_path: Path):
    folder = write(tmp_path, "saved")
    assert [r.id for r in read_records(f"{folder}:train[{piece}]")[0]] == [f"r{i}" for i in rows]
    assert [row.where for row in read_rows(f"{folder}:train[{piece}]")] == [
        f"saved, row {i + 1}" for i in rows
    ]
    with pytest.raises(DataError, match=r"\[3\]"):
        read_records(f"{folder}:train[3]")


def test_a_tensorflow_dataset_on_disk_is_read_without_tensorflow(tmp_path: Path):
    tfds = pytest.importorskip("tensorflow_datasets")
    text = tfds.features.Text()
    messages = tfds.features.Sequence({"role": text, "content": text})
    features = {"prompt": text, "chosen": messages, "rejected": messages}

    class TinyPairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                answers = {"chosen": [bot(f"good é {i}")], "rejected": [bot("bad")]}
                yield i, {"prompt": f"Why {i}?", **answers}

    builder = TinyPairs(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    records, _ = read_records(str(builder.data_dir))
    assert {r.chosen for r in records} == {f"good é {i}" for i in range(4)}
    assert len(read_records(f"{builder.data_dir}:test")[0]) == 2
    assert len(read_records(f"{builder.data_dir}:train[1:50%]")[0]) == 1


def test_a_missing_file_names_the_nearest_one(tmp_path: Path):
    (tmp_path / "preference_train.jsonl").touch()
    with pytest.raises(DataError, match=r"preference_train.jsonl"):
        read_records(tmp_path / "preferences_train.jsonl")
    with pytest.raises(DataError, match="no folder"):
        read_records(tmp_path / "no" / "such" / "x.jsonl")
    with pytest.raises(DataError, match=r"~nosuchuser.*home directory"):
        read_records("~nosuchuser/x.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(content: bytes, tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="empty"):
        read_records(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.parquet", "x.json"])
def test_a_damaged_file_is_a_data_error(name: str, tmp_path: Path):
    whole = write(tmp_path, name)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=name):
        read_records(whole)


def damaged_table() -> Any:
    """Row 2 has a prompt that is not UTF-8; columns that are not read have texts and times that Python cannot hold."""
    import pyarrow as pa

    texts = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    times = pa.array([0, 10**18, None], pa.timestamp("ms"))
    columns = {"chosen": ["a"] * 3, "rejected": ["b"] * 3, "note": texts, "time": times}
    return pa.table({"prompt": texts, "question": ["p", "q", "r"], **columns})


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_values_that_python_cannot_hold_are_bad_rows_only_if_they_are_read(kind, tmp_path: Path):
    import datasets
    import pyarrow.parquet as pq

    def write(table) -> Path:
        path = tmp_path / f"{len(table.column_names)}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            datasets.Dataset(table).save_to_disk(str(path))
        return path

    table = damaged_table()
    records, report = read_records(write(table.drop(["prompt"])))
    assert [r.prompt for r in records] == [as_prompt(x) for x in "pqr"]
    assert report.unread == ("note", "time")
    path = write(table.drop(["question", "time"]))
    records, report = read_records(path, on_bad="skip")
    assert [r.prompt for r in records] == [as_prompt("ok"), as_prompt("fine")]
    assert report.dropped == {"bad row": 1}
    with pytest.raises(DataError, match=r"row 2: field 'prompt'.*utf-8"):
        read_records(path)


def test_two_columns_of_one_name_are_an_error(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["prompt", "chosen", "rejected", "chosen"]
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 4, names=names), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: two columns are called 'chosen'"):
        read_records(tmp_path / "x.parquet")


def test_a_file_of_unknown_form_and_an_empty_folder_are_errors(tmp_path: Path):
    (tmp_path / "x.xlsx").write_text("a,b\n")
    for source in (tmp_path / "x.xlsx", tmp_path):
        with pytest.raises(DataError, match=r"\.jsonl"):
            read_records(source)


def test_a_hub_name_that_cannot_be_loaded_is_a_data_error(monkeypatch):
    import datasets

    def fail(name, subset):
        raise ConnectionError(f"no network for {name}/{subset}")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"no network for owner/name/all"):
        read_records("owner/name/all:test")


@pytest.mark.parametrize(
    ("text", "path", "split"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name:test", "owner/name", "test"),
        ("owner/name:train[:10%]", "owner/name", "train[:10%]"),
        ("tfds:hh:test", "tfds:hh", "test"),
        ("tfds:hh", "tfds:hh", None),
        ("a/x.jsonl", "a/x.jsonl", None),
    ],
)
def test_source_names_are_taken_apart(text, path, split):
    assert parse_source(text) == SourceSpec(path, split=split)


def test_a_limit_keeps_the_first_records(tmp_path: Path):
    path = write(tmp_path, "x.jsonl")
    assert [r.id for r in read_records(path, limit=3)[0]] == ["r0", "r1", "r2"]
    assert len(read_records(SourceSpec(str(path), limit=2), limit=5)[0]) == 2
    assert len(read_sources([path, path], limit=50)[0]) == 50


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_a_limit_is_a_whole_number_from_1(limit, tmp_path: Path):
    path = write(tmp_path, "x.jsonl")
    for source, options in ((path, {"limit": limit}), (SourceSpec(str(path), limit=limit), {})):
        with pytest.raises(DataError, match=r"limit = .*at least 1"):
            read_records(source, **options)
        with pytest.raises(DataError, match=r"limit = .*at least 1"):
            RecordStream(source, "preference", **options)


def test_rows_can_be_read_as_they_lie(tmp_path: Path):
    rows = list(read_rows(write(tmp_path, "x.json")))
    assert rows[1].where == "x.json, row 2" and rows[1].fields == ROWS[1]


# Ids


def test_ids_are_unique_and_do_not_depend_on_the_order_of_rows(tmp_path: Path):
    rows = [STANDARD | {"chosen": f"c{i}", "id": i % 3} for i in range(9)]
    rows += [STANDARD | {"chosen": f"d{i}"} for i in range(4)] + [rows[0]]

    def ids(rows: list) -> dict:
        records, _ = read_records(jsonl(tmp_path / "ids.jsonl", rows))
        assert len({r.id for r in records}) == len(rows)
        return {(r.id, r.chosen) for r in records}

    shuffled = random.Random(0).sample(rows, len(rows))
    assert ids(rows) == ids(shuffled)


def test_ids_of_the_same_contents_are_the_same_on_every_machine(tmp_path: Path):
    assert read_one(tmp_path, STANDARD).id == "ae146e78d31649a7"


def test_sources_read_together_have_ids_that_are_unique_over_all(tmp_path: Path):
    other = [row | {"chosen": "other"} for row in ROWS]
    groups = {"x": ROWS, "y": other, "once": [STANDARD], "twice": [STANDARD] * 2}
    paths = [jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in groups.items()]
    records, report = read_sources(paths)
    assert len({r.id for r in records}) == len(records) == report.kept == 83


@given(st.text(), st.text(), st.text())
def test_common_length_is_that_of_the_shared_beginning(shared, a, b):
    n = common_length(shared + a, shared + b)
    assert (shared + a)[:n] == (shared + b)[:n] and n >= len(shared)
    assert n == min(len(shared + a), len(shared + b)) or (shared + a)[n] != (shared + b)[n]


# Real data


@pytest.mark.parametrize(
    ("name", "kind", "kept", "dropped"),
    [
        ("preference_valid.parquet", "preference", 538, {}),
        ("unlabeled_train.parquet", "pair", 28257, {"identical responses": 55}),
        ("eval/judgebench_claude.jsonl", "preference", 269, {"identical responses": 1}),
        ("eval/reward_bench_llmbar.jsonl", "preference", 146, {}),
        ("eval/hh_harmless_first200.jsonl.gz", "preference", 200, {}),
        ("eval/rm_bench_code.json", "preference", 2052, {}),
    ],
)
def test_real_files_are_read_whole(shared_data: Path, name, kind, kept, dropped):
    records, report = read_records(shared_data / name, kind)
    assert (len(records), report.kept, dict(report.dropped)) == (kept, kept, dropped)
    assert len({r.id for r in records}) == kept
