"""One preference in every published form is the same record, with the same tokens and label."""

import itertools
import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, SENTENCEPIECE, family_tokenizer

from gram_jax.data.inputs import pairs_of
from gram_jax.data.reading import (
    CONTEXT,
    Kind,
    RecordStream,
    expected_records,
    parse_row,
    read_records,
    rendered_rows,
)
from gram_jax.data.records import Comparison
from gram_jax.data.schemas import SCHEMAS
from gram_jax.errors import DataError, GramWarning
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.encode import encode_items
from gram_jax.judge.messages import (
    CONTROL,
    BadField,
    Message,
    Seen,
    as_prompt,
    read_messages,
    render_call,
)
from gram_jax.judge.spec import make_spec
from gram_jax.rewards.messages import completion_of, prompt_of

PAIRS = int(os.environ.get("PAIRS", "150"))  # 10,000 take two minutes
WORDS = ["a", "I", "naïve", "Ünïcode", "漢字", "🙂", "don't", "3.5", '"quoted"', "{brace}", "a|b", "<tag>", "[x]",
         "Human", "Assistant:", "tie", "\\n", "one\ntwo", "x\ty", "null", "0"]  # fmt: skip


@dataclass(frozen=True)
class Preference:
    """A system turn ("" for none), earlier turns, a question, the better and the worse response.

    swapped: whether the source has the worse response first.
    """

    system: str
    history: tuple[tuple[str, str], ...]
    question: str
    better: str
    worse: str
    swapped: bool
    tie: bool

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation before the response."""
        turns = [Message("system", self.system)] if self.system else []
        for user, assistant in self.history:
            turns += [Message("user", user), Message("assistant", assistant)]
        return (*turns, Message("user", self.question))

    @property
    def shown(self) -> tuple[str, str]:
        """The responses in the order of the source."""
        return (self.worse, self.better) if self.swapped else (self.better, self.worse)

    def word(self, first: Any, second: Any, tie: Any = None) -> Any:
        """What the source says of the responses, with its words."""
        return tie if self.tie else second if self.swapped else first


def text(draw: random.Random, words: int = 6) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, words)))


def preference(seed: int) -> Preference:
    draw = random.Random(seed)
    history = tuple((text(draw), text(draw)) for _ in range(draw.choice([0, 0, 0, 1, 2])))
    return Preference(
        system=text(draw) if draw.random() < 0.3 else "",
        history=history,
        question=text(draw),
        better=f"Yes {text(draw, 12)}",
        worse=f"no {text(draw, 12)}",
        swapped=draw.random() < 0.5,
        tie=draw.random() < 0.1,
    )


def messages(
    turns: Any, *, parts: bool = False, keys: tuple[str, str] = ("role", "content")
) -> list[dict]:
    names = {"user": "human", "assistant": "gpt"} if keys[0] == "from" else {}
    return [
        {
            keys[0]: names.get(turn.role, turn.role),
            keys[1]: [{"type": "text", "text": turn.content}] if parts else turn.content,
        }
        for turn in turns
    ]


def said(content: str) -> list[dict]:
    return messages([Message("assistant", content)])


def whole(pair: Preference, content: str) -> list[dict]:
    return messages((*pair.prompt, Message("assistant", content)))


def transcript(pair: Preference, content: str | None = None) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    lines = "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in pair.prompt)
    return f"{lines}\n\nAssistant:" + (f" {content}" if content is not None else "")


Form = Callable[[Preference], dict[str, Any] | None]
FORMS: dict[str, Form] = {}
PLAIN, LABELED, TIES = {"plain"}, {"labeled"}, {"ties"}
NEEDS: dict[str, set[str]] = {}


def form(name: str, *needs: str) -> Callable[[Form], Form]:
    """A form of rows. needs: "plain" (one user's turn), "turns" (no system turn), "preferred" (no tie)."""

    def add(write: Form) -> Form:
        FORMS[name], NEEDS[name] = write, set(needs)
        return write

    return add


def best(pair: Preference) -> dict[str, Any]:
    return {"chosen": pair.better, "rejected": pair.worse}


form("trl-standard", "plain", "preferred")(lambda p: {"prompt": p.question, **best(p)})
form("trl-standard question", "plain", "preferred")(lambda p: {"question": p.question, **best(p)})
form("trl-standard messages", "preferred")(lambda p: {"prompt": messages(p.prompt), **best(p)})


@form("trl-standard system", "preferred")
def _(pair: Preference) -> dict[str, Any] | None:
    if pair.history:
        return None
    return {"query": pair.question, "system_prompt": pair.system, **best(pair)}


form("trl-repeated", "plain", "preferred")(
    lambda p: (
        None
        if len(p.question.split()) <= 2
        else {
            "prompt": p.question,
            "chosen": p.question + p.better,
            "rejected": p.question + p.worse,
        }
    )
)
form("trl-implicit", "plain", "preferred")(
    lambda p: {"chosen": f"{p.question} {p.better}", "rejected": f"{p.question} {p.worse}"}
)


@form("trl-conversational", "preferred")
def _(pair: Preference) -> dict[str, Any]:
    return {
        "prompt": messages(pair.prompt),
        "chosen": said(pair.better),
        "rejected": said(pair.worse),
    }


@form("trl-conversational parts", "preferred")
def _(pair: Preference) -> dict[str, Any]:
    answers = [messages([Message("assistant", x)], parts=True) for x in (pair.better, pair.worse)]
    return {
        "prompt": messages(pair.prompt, parts=True),
        "chosen": answers[0],
        "rejected": answers[1],
    }


@form("trl-conversational columns", "preferred")
def _(pair: Preference) -> dict[str, Any]:
    def columns(turns: list[dict]) -> dict[str, list]:
        return {key: [turn[key] for turn in turns] for key in ("role", "content")}

    return {
        side: columns(whole(pair, x))
        for side, x in (("chosen", pair.better), ("rejected", pair.worse))
    }


@form("trl-conversational implicit", "preferred")
def _(pair: Preference) -> dict[str, Any]:
    thanks = {"role": "user", "content": "Thanks!"}
    return {
        "chosen": [*whole(pair, pair.better), thanks],
        "rejected": [*whole(pair, pair.worse), thanks],
    }


@form("trl-conversational tool columns", "preferred")
def _(pair: Preference) -> dict[str, Any]:
    empty = {"tool_calls": None, "name": None, "reasoning_content": ""}
    return {
        side: [turn | empty for turn in whole(pair, x)]
        for side, x in (("chosen", pair.better), ("rejected", pair.worse))
    }


form("hh-rlhf", "turns", "preferred")(
    lambda p: {"chosen": transcript(p, p.better), "rejected": transcript(p, p.worse)}
)
form("ultrafeedback-binarized")(
    lambda p: {
        "prompt": p.question, "chosen": whole(p, p.better), "rejected": whole(p, p.worse),
        "messages": whole(p, p.better), "score_chosen": 4.0, "score_rejected": 4.0 if p.tie else 1.5,
    }
)  # fmt: skip


def beside(first: str, second: str, write: Callable[[Preference], dict[str, Any]]) -> Form:
    return lambda p: {first: p.shown[0], second: p.shown[1], **write(p)}


form("labeled-pairs")(
    beside(
        "response_a",
        "response_b",
        lambda p: {"prompt": messages(p.prompt), "label": p.word("A", "B", "tie")},
    )
)
form("labeled-pairs integers", "preferred")(
    beside(
        "response_a", "response_b", lambda p: {"prompt": messages(p.prompt), "label": p.word(0, 1)}
    )
)
form("labeled-pairs winner", "plain")(
    beside(
        "response_a", "response_b",
        lambda p: {"instruction": p.question, "winner": p.word("model_a", "model_b", "tie (bothbad)")},
    )
)  # fmt: skip
form("judgebench", "plain")(
    beside(
        "response_A",
        "response_B",
        lambda p: {"question": p.question, "label": p.word("A>B", "B>A", "A=B")},
    )
)
form("helpsteer2", "plain")(
    beside(
        "response_1",
        "response_2",
        lambda p: {"prompt": p.question, "preference_strength": p.word(-2, 1, 0)},
    )
)
form("helpsteer3")(
    beside(
        "response1", "response2",
        lambda p: {"context": messages(p.prompt), "overall_preference": p.word(-3, 2, 0)},
    )
)  # fmt: skip
form("ppe", "plain")(
    beside(
        "response_1",
        "response_2",
        lambda p: {"prompt": p.question, "winner": p.word("model_a", "model_b", "tie")},
    )
)
form("pku-saferlhf", "plain", "preferred")(
    beside(
        "response_0",
        "response_1",
        lambda p: {"prompt": p.question, "better_response_id": p.word(0, 1)},
    )
)
form("shp", "plain", "preferred")(
    beside("human_ref_A", "human_ref_B", lambda p: {"history": p.question, "labels": p.word(1, 0)})
)
form("offsetbias", "plain", "preferred")(
    beside("output_1", "output_2", lambda p: {"instruction": p.question, "label": p.word(1, 2)})
)


@form("unified-feedback")
def _(pair: Preference) -> dict[str, Any]:
    first, second = (whole(pair, x) for x in pair.shown)
    return {
        "conv_A": first,
        "conv_B": second,
        "conv_A_rating": pair.word(2, 1, 1),
        "conv_B_rating": 1 + pair.word(0, 1, 0),
    }


@form("lmarena")
def _(pair: Preference) -> dict[str, Any]:
    first, second = (whole(pair, x) for x in pair.shown)
    return {
        "conversation_a": first,
        "conversation_b": second,
        "winner": pair.word("model_a", "model_b", "both_bad"),
    }


@form("lmsys-55k", "turns")
def _(pair: Preference) -> dict[str, Any]:
    asked = [*(user for user, _ in pair.history), pair.question]
    earlier = [answer for _, answer in pair.history]
    first, second = ([*earlier, x] for x in pair.shown)
    bits = {
        "winner_model_a": pair.word(1, 0, 0),
        "winner_model_b": pair.word(0, 1, 0),
        "winner_tie": int(pair.tie),
    }
    return {
        "prompt": json.dumps(asked),
        "response_a": json.dumps(first),
        "response_b": json.dumps(second),
        **bits,
    }


form("rmb", "preferred")(
    lambda p: {
        "conversation_input": messages(p.prompt),
        "chosen": {"answer": p.better, "llm_name": "x"}, "reject": {"answer": p.worse, "llm_name": "y"},
    }
)  # fmt: skip
form("openai-dpo", "preferred")(
    lambda p: {
        "input": {"messages": messages(p.prompt), "tools": []},
        "preferred_output": said(p.better), "non_preferred_output": said(p.worse),
    }
)  # fmt: skip
form("ms-swift", "preferred")(
    lambda p: {"messages": whole(p, p.better), "rejected_response": p.worse}
)
form("ms-swift-messages", "preferred")(
    lambda p: {"messages": whole(p, p.better), "rejected_messages": whole(p, p.worse)}
)
form("nectar", "turns", "preferred")(
    lambda p: {
        "prompt": transcript(p) + " ",
        "answers": [{"answer": p.worse, "rank": 2.0}, {"answer": p.better, "rank": 1.0}],
    }
)
form("reward-bench-2", "plain", "preferred")(
    lambda p: {"prompt": p.question, "chosen": p.better, "rejected": [p.worse]}
)
form("llamafactory-list", "plain", "preferred")(
    lambda p: {"instruction": p.question, "input": "", "output": [p.better, p.worse]}
)


@form("llamafactory-alpaca", "preferred")
def _(pair: Preference) -> dict[str, Any]:
    return {
        "instruction": pair.question, "input": "", "system": pair.system,
        "history": list(map(list, pair.history)), **best(pair),
    }  # fmt: skip


@form("llamafactory-sharegpt", "preferred")
def _(pair: Preference) -> dict[str, Any]:
    keys, (chosen, rejected) = (
        ("from", "value"),
        (
            messages([Message("assistant", x)], keys=("from", "value"))[0]
            for x in (pair.better, pair.worse)
        ),
    )
    turns = [turn for turn in pair.prompt if turn.role != "system"]
    return {
        "conversations": messages(turns, keys=keys),
        "system": pair.system,
        "chosen": chosen,
        "rejected": rejected,
    }


GRAM = (
    "[The Start of Assistant A's Answer]\n{}\n[The End of Assistant A's Answer]\n\n"
    "[The Start of Assistant B's Answer]\n{}\n[The End of Assistant B's Answer]"
)
form("gram", "plain", "preferred")(
    lambda p: {
        "instruction": f"Judge.\n\n[User Question]\n{p.question}\n\n{GRAM.format(*p.shown)}\n\n#Preferred: ",
        "input": "", "output": p.word("A", "B"),
    }
)  # fmt: skip


def rows_of(pair: Preference) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pair in every form that can hold it."""
    for name, write in FORMS.items():
        needs = NEEDS[name]
        if ("preferred" in needs and pair.tie) or ("turns" in needs and pair.system):
            continue
        if "plain" in needs and len(pair.prompt) > 1:
            continue
        if (row := write(pair)) is not None:
            yield name, row


def meaning(record: Comparison) -> tuple:
    if record.label == "tie":
        return record.prompt, frozenset((record.first, record.second)), "tie"
    return record.prompt, record.chosen, record.rejected


def test_every_form_of_a_preference_is_the_same_record():
    seen: Counter[str] = Counter()
    for seed in range(PAIRS):
        pair = preference(seed)
        wanted = pair.prompt, pair.better, pair.worse
        if pair.tie:
            wanted = pair.prompt, frozenset((pair.better, pair.worse)), "tie"
        for name, row in rows_of(pair):
            (record,) = parse_row(row, "preference", name, Counter())
            assert meaning(record) == wanted, (name, seed)
            (shown,) = pairs_of([row])  # as the Scorer takes it
            assert (shown[0], {*shown[1:]}) == (pair.prompt, {pair.better, pair.worse}), (
                name,
                seed,
            )
            seen[name] += 1
    assert len(seen) == len(FORMS) and min(seen.values()) >= PAIRS // 20


def test_every_form_of_a_preference_has_the_same_tokens(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    spec = make_spec(tokenizer, max_length=2048)
    for seed in range(12):
        tokens = set()
        for name, row in rows_of(preference(seed)):
            path = tmp_path / f"{name}{seed}.jsonl"
            path.write_text(json.dumps(row) + "\n", encoding="utf-8")
            (record,), _ = read_records(path)
            (encoded,) = encode_items(
                tokenizer, spec.comparison, [(record.prompt, *record.best_first)], spec.max_length
            )
            tokens.add((tuple(encoded.tokens.tolist()), record.label in (0, 1)))
        pairs = 2 if preference(seed).tie else 1  # a tie has two orders
        assert len(tokens) <= pairs


@pytest.mark.parametrize("prompt", ["q", None])
def test_reasoning_of_a_response_is_counted_once(prompt: str | None, tmp_path: Path):
    thought = {"role": "assistant", "content": "good", "reasoning_content": "hm"}
    asked = [] if prompt else [{"role": "user", "content": "q"}]
    row = {"prompt": prompt, "chosen": [*asked, thought], "rejected": [*asked, *said("bad")]}
    path = tmp_path / "thought.jsonl"
    path.write_text(json.dumps(row))
    (record,), report = read_records(path)
    assert record.chosen == "good" and report.notes == {"reasoning not shown": 1}


def test_every_schema_has_a_form():
    lists = {"rm-bench", "candidates", "kto", "pairs"}  # of tests/test_records.py
    assert {name.split(" ")[0] for name in FORMS} | lists == {s.name for s in SCHEMAS.values()}


def test_rows_of_a_prompt_with_good_and_bad_responses_are_pairs(tmp_path: Path):
    rows = [
        {"prompt": "p", "completion": "good", "label": True},
        {"prompt": "q", "completion": [{"role": "assistant", "content": "alone"}], "label": True},
        {"prompt": "p", "completion": "bad", "label": False},
        {"prompt": "p", "completion": "worse", "label": False},
    ]
    path = tmp_path / "kto.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, report = read_records(path)
    assert [(r.prompt, r.chosen, r.rejected) for r in records] == [
        (as_prompt("p"), "good", "bad"),
        (as_prompt("p"), "good", "worse"),
    ]
    assert (report.rows, report.dropped) == (4, {"responses without a better or worse one": 1})


def test_rows_that_belong_together_have_ids_in_any_order_and_are_counted_one_by_one(tmp_path):
    rows = [
        {"id": 1, "prompt": "p", "completion": "good", "label": True, "source": "x"},
        {"id": 2, "prompt": "p", "completion": "bad", "label": False, "source": "y"},
        {"id": 3, "prompt": "p", "completion": "worse", "label": False, "weight": 5},
        {"id": 4, "prompt": "q", "completion": "one", "label": True},
        {"id": 5, "prompt": "q", "completion": "two", "label": True},
    ]
    path = tmp_path / "kto.jsonl"
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 1, 0]):
        path.write_text("".join(json.dumps(rows[at]) + "\n" for at in order))
        records, report = read_records(path)
        assert {(r.id, r.rejected, r.source) for r in records} == {
            ("1>2", "bad", "x"),
            ("1>3", "worse", "x"),
        }
        assert {r.id for r in read_records(path, "candidates")[0]} == {"1", "4"}
        assert report.unread == ("weight",)
        stream, dropped = RecordStream(path, "preference"), []
        stream.on_drop = lambda row, why, dropped=dropped: dropped.append(row)
        assert len(list(stream)) == 2
        last = max(at for at, row in enumerate(order, start=1) if row > 2)
        assert dropped == [last, last] and sum(stream.report().dropped.values()) == 2


# Columns of other names


def test_other_columns_are_mapped_and_so_are_the_values_of_the_verdict(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"Frage": "p", "left": "good", "right": "bad", "wer": 1, "chosen": "x"},
        {"Frage": "q", "left": "bad", "right": "good", "wer": 2, "chosen": "x"},
        {"Frage": "r", "left": "same", "right": "as good", "wer": "gleich", "chosen": "x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"prompt": "Frage", "response_a": "left", "response_b": "right", "label": "wer"}
    own |= {"label:1": "A", "label:2": "B", "label:gleich": "tie"}
    records, _ = read_records(path, map=own)
    assert [r.label for r in records] == [0, 1, "tie"]
    assert records[1].chosen == "good"
    late = [*rows, rows[0] | {"wer": 3}, {"Frage": "s"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in late))
    with pytest.raises(DataError, match=r"line 4: field 'wer'.*1, 2, gleich"):
        read_records(path, map=own)
    _, report = read_records(path, map=own, on_bad="skip")
    assert (report.kept, report.dropped) == (3, {"bad row": 2})
    nested = {"prompt": "a.b", "responses": "answers[].text"}
    path.write_text(json.dumps({"a": {"b": "p"}, "answers": [{"text": "x"}, {"text": "y"}]}))
    assert read_records(path, "candidates", map=nested)[0][0].responses == ("x", "y")
    for wrong, named in (
        ({"promt": "Frage"}, "promt"),
        ({"label:1": "A"}, "label"),
        ({"prompt": "no"}, "'no'"),
    ):
        with pytest.raises(DataError, match=named):
            read_records(path, map=wrong)


PLAIN = {"prompt": "p", "chosen": "good", "rejected": "bad"}
SAFETY = {
    "prompt": "p",
    "response_0": "bad",
    "response_1": "good",
    "better_response_id": 0,
    "safe": 1,
}
ASSIGNED = {  # row, map, some fields of the record, the columns that are not read
    "the prompt stays": (
        {"question": "What is it?", "chosen": "It is A.", "rejected": "It is B.", "key": 7},
        {"id": "key"},
        {"prompt": as_prompt("What is it?"), "first": "It is A.", "id": "7"},
        (),
    ),
    "other fields stay": (
        PLAIN | {"system_prompt": "S", "rationale": "because", "context": "c", "gap": 2, "x": 1},
        {"margin": "gap"},
        {
            "prompt": (Message("system", "S"), *as_prompt("p")),
            "rationale": "because",
            "margin": 2.0,
        },
        ("context", "x"),
    ),
    "every field can be mapped": (
        PLAIN | {"why": "because", "persona": "S", "rationale": "no", "system": "no"},
        {"rationale": "why", "system_message": "persona"},
        {"prompt": (Message("system", "S"), *as_prompt("p")), "rationale": "because"},
        ("rationale", "system"),
    ),
    "columns of one meaning are replaced": (
        PLAIN | {"question": "no", "q": "new", "pair_id": "no", "key": "k"},
        {"prompt": "q", "id": "key"},
        {"prompt": as_prompt("new"), "id": "k"},
        ("prompt", "question"),
    ),
    "verdicts of other forms are left out": (
        SAFETY,
        {
            "prompt": "prompt",
            "response_a": "response_0",
            "response_b": "response_1",
            "label": "safe",
        }
        | {"label:0": "A", "label:1": "B"},
        {"label": 1, "chosen": "good"},
        ("better_response_id",),
    ),
    "a prompt in its own form": (
        {"instruction": "Why", "input": "this?", "up": "good", "down": "bad"},
        {"chosen": "up", "rejected": "down"},
        {"prompt": as_prompt("Why\nthis?"), "first": "good"},
        (),
    ),
    "a column with a dot in its name": (
        {"prompt": "p", "a.1": "good", "a.2": "bad", "a": "no"},
        {"chosen": "a.1", "rejected": "a.2"},
        {"first": "good", "second": "bad"},
        ("a",),
    ),
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_a_map_replaces_columns_of_the_same_meaning_and_keeps_all_others(name, tmp_path: Path):
    row, map, expected, unread = ASSIGNED[name]
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row))
    (record,), report = read_records(path, map=map)
    assert {field: getattr(record, field) for field in expected} == expected
    assert report.unread == unread
    assert CONTEXT in report.notes or "context" not in row


@pytest.mark.parametrize(
    ("row", "map", "named"),
    [
        (PLAIN | {"images": ["x.png"], "key": 1}, {"id": "key"}, "images"),
        (PLAIN | {"better": "A"}, {"chosen": "chosen", "label": "better"}, "reads no label"),
        (SAFETY | {"q": "new", "prompt": "p"}, {"weight": "q"}, "field 'weight'"),
        (
            {"history": "p", "human_ref_A": "x", "human_ref_B": "y", "labels": 1, "q": "new"},
            {"prompt": "q"},
            "reads no prompt",
        ),
    ],
)  # fmt: skip
def test_a_map_that_would_be_ignored_and_media_beside_it_are_errors(
    row, map, named, tmp_path: Path
):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=named):
        read_records(path, map=map)


VERDICT = {"prompt": "p", "response_a": "x", "response_b": "y"}


@pytest.mark.parametrize(
    ("verdicts", "label"),
    [
        ({"label": "A", "winner": None}, 0),
        ({"label": None, "winner": "model_b"}, 1),
        ({"label": None, "winner": "tie", "preference": None}, "tie"),
        ({"label": None, "winner": None}, None),
    ],
)
def test_null_verdicts_of_a_mixture_do_not_contradict_others(verdicts, label, tmp_path: Path):
    path = tmp_path / "mixed.jsonl"
    path.write_text(json.dumps(VERDICT | {"label": "A"}) + "\n" + json.dumps(VERDICT | verdicts))
    assert [r.label for r in read_records(path, "comparison")[0]] == [0, label]
    path.write_text(json.dumps(VERDICT | {"label": None, "winner": "A", "preference": "B"}))
    with pytest.raises(DataError, match=r"'preference': expected the verdict of winner"):
        read_records(path)


ONE_HOT = {"prompt": '["p"]', "response_a": '["x"]', "response_b": '["y"]', "winner_model_a": 0,
           "winner_model_b": 1, "winner_tie": 0}  # fmt: skip


def test_one_hot_verdicts_are_0_and_1_in_any_writing(tmp_path: Path):
    path = tmp_path / "arena.jsonl"
    bad = [None, float("nan"), 0.7, 1.9, -1, "yes", [1]]
    good = [
        {"winner_model_b": x, "winner_model_a": y} for x, y in ((1, "0"), ("1", 0.0), (True, 0))
    ]
    rows = [ONE_HOT | change for change in (*good, *({"winner_model_a": x} for x in bad))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, report = read_records(path, on_bad="skip")
    assert [r.label for r in records] == [1, 1, 1]
    assert report.dropped == {"bad row": len(bad)}
    with pytest.raises(DataError, match=r"line 4: field 'winner_model_a': expected 0 or 1"):
        read_records(path)


def test_the_error_of_a_field_is_the_same_after_pickling():
    for found in (None, "text", 5, Seen("none"), lambda: None):
        error = BadField("prompt", "text", found)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (BadField, str(error))
        assert (again.field, again.expected, again.status) == ("prompt", "text", 2)


@pytest.mark.parametrize("history", [5, "ab", {"a": "b"}])
def test_a_history_that_is_no_list_is_a_bad_row(history, tmp_path: Path):
    path = tmp_path / "alpaca.jsonl"
    for row in ({"chosen": "a", "rejected": "b"}, {"output": ["a", "b"]}):
        path.write_text(json.dumps({"instruction": "p", "history": history} | row))
        with pytest.raises(DataError, match="field 'history': expected a list"):
            read_records(path)


ANSWERS = {"chosen": "The a", "rejected": "The b"}


def test_rendered_rows_are_the_readable_ones_as_mapped(tmp_path: Path):
    good = [{"instruction": f"i{at}", "output": "A", "theirs": "x"} for at in range(100)]
    lines = ["broken", json.dumps({"instruction": "without output"}), *map(json.dumps, good)]
    path = tmp_path / "gram.jsonl"
    path.write_text("\n".join(lines))
    assert rendered_rows(path) == good[:64]
    assert [row["source"] for row in rendered_rows(path, map={"source": "theirs"})] == ["x"] * 64


def test_empty_columns_of_a_mixture_are_not_read(tmp_path: Path):
    empty = dict.fromkeys(("conversations", "messages", "responses", "instruction", "conv_A"))
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"} | empty
    path = tmp_path / "mixed.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert [r.chosen for r in read_records(path)[0]] == ["good"]


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
AMBIGUOUS = {
    "messages as JSON": ({"prompt": "p", "chosen": json.dumps(TALK), "rejected": "b"}, "chosen is text"),
    "messages of Python": ({"prompt": repr(TALK), "chosen": "a", "rejected": "b"}, "prompt is text"),
    "conversations as JSON": ({"chosen": json.dumps(TALK), "rejected": json.dumps(TALK)}, "chosen is text"),
    "two schemas": ({"prompt": "p", "responses": ["x", "y"]} | ANSWERS, "(?=.*candidates).*trl-standard"),
    "two prompts": ({"prompt": "p", "question": "q"} | ANSWERS, "(?=.*prompt).*question"),
    "a prompt that is not shown": ({"context": "c"} | ANSWERS, "trl-implicit.*context"),
    "two verdicts": (VERDICT | {"label": "A", "winner": "B"}, "winner.*label"),
    "a boolean label": (VERDICT | {"label": True}, "label"),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_rows_that_can_be_read_in_two_ways_are_refused_and_both_are_named(
    name: str, tmp_path: Path
):
    row, named = AMBIGUOUS[name]
    path = tmp_path / "two.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=named):
        read_records(path)


def read_row(tmp_path: Path, row: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row))
    (record,), report = read_records(path)
    return record, dict(report.notes)


@pytest.mark.parametrize("column", ["context", "history", "document"])
def test_a_context_beside_the_prompt_is_counted(column: str, tmp_path: Path):
    row = {"question": "q", column: "something that the question is about"} | ANSWERS
    assert read_row(tmp_path, row)[1] == {CONTEXT: 1}
    assert read_row(tmp_path, row | {column: ""})[1] == {}
    asked = {"instruction": "q", "input": "", "history": [["p", "a"]]} | ANSWERS
    assert read_row(tmp_path, asked)[1] == {}  # a schema that reads it


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"} | ANSWERS,
        {"prompt": "q", "chosen": "a<|eot_id|>", "rejected": "b<|eot_id|>"},
        {"chosen": "[INST] q [/INST] a", "rejected": "[INST] q [/INST] b"},
    ],
)
def test_texts_that_are_rendered_in_a_chat_format_are_counted(row, tmp_path: Path):
    assert read_row(tmp_path, row)[1] == {CONTROL: 1}
    with pytest.warns(GramWarning, match=CONTROL):
        list(pairs_of([row]))


@pytest.mark.parametrize("prompt", ["q", "\n\nHuman: q\n\nAssistant:", [TALK[0]]])
def test_transcripts_beside_their_prompt_are_read_without_it(prompt, tmp_path: Path):
    whole = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    record, _ = read_row(tmp_path, {"prompt": prompt} | whole)
    assert (record.prompt, *record.best_first) == (as_prompt("q"), "chosen", "rejected")
    with pytest.raises(DataError, match="prompt"):
        read_row(tmp_path, {"prompt": "another"} | whole)


def test_a_row_of_responses_with_the_same_rank_is_counted(tmp_path: Path):
    path = tmp_path / "ranks.jsonl"
    rows = [
        {"prompt": "q", "answers": [{"answer": x, "rank": rank} for x, rank in zip("ab", ranks, strict=True)]}
        for ranks in ((1, 2), (1, 1))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, report = read_records(path)
    assert len(records) == 1
    assert report.dropped == {"responses without a better or worse one": 1}


def test_a_prompt_with_two_equal_responses_is_a_prompt(tmp_path: Path):
    path = tmp_path / "equal.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "a"}))
    assert [record.prompt for record in read_records(path, "prompts")[0]] == [as_prompt("q")]


def test_the_number_of_records_is_expected_only_if_a_row_has_one(tmp_path: Path):
    def expected(kind: Kind, **row: Any) -> int | None:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": "q"} | row) + "\n")
        return expected_records(path, kind)

    assert expected("preference", chosen="a", rejected="b") == 1
    assert expected("preference", chosen="a", rejected=["b", "c"]) is None
    ranked = [{"answer": x, "rank": at} for at, x in enumerate("abc")]
    assert (
        expected("preference", answers=ranked) is None
        and expected("candidates", answers=ranked) == 1
    )
    assert expected("candidates", responses=["a", "b"]) == 1
    assert expected("candidates", completion="a", label=True) is None


def test_a_key_that_is_given_twice_is_a_bad_row(tmp_path: Path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"prompt": "p", "prompt": "q", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(DataError, match=r"line 1: .*'prompt' twice"):
        read_records(path)


@pytest.mark.parametrize("column", ["images", "videos"])
def test_rows_with_media_are_refused_by_name(column: str):
    row = {"prompt": "<image>Why?", "chosen": "a", "rejected": "b", column: ["x.png"]}
    with pytest.raises(DataError, match=column):
        parse_row(row, "preference", "here", Counter())


# Messages against chat templates

HERMES = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def random_messages(draw: random.Random, tools: bool) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    if draw.random() < 0.3:
        turns.append({"role": "system", "content": text(draw)})
    for _ in range(draw.randint(0, 2)):
        turns.append({"role": "user", "content": text(draw)})
        answer: dict[str, Any] = {"role": "assistant", "content": text(draw)}
        if tools and draw.random() < 0.7:
            calls = [
                {
                    "type": "function",
                    "function": {
                        "name": draw.choice(["add", "find_it"]),
                        "arguments": {text(draw, 1): text(draw)},
                    },
                }
                for _ in range(draw.randint(1, 2))
            ]
            answer = {
                "role": "assistant",
                "content": draw.choice(["", text(draw)]),
                "tool_calls": calls,
            }
            turns += [answer, {"role": "tool", "content": text(draw)}]
            answer = {"role": "assistant", "content": text(draw)}
        turns.append(answer)
    return [*turns, {"role": "user", "content": text(draw)}]


@pytest.mark.parametrize("name", [*FAMILIES, *SENTENCEPIECE, "hermes"])
def test_messages_are_rendered_as_the_chat_template_renders_them(name: str):
    tools = name == "hermes"
    tokenizer = family_tokenizer("smollm2" if tools else name)
    template = HERMES if tools else tokenizer.chat_template
    compared = 0
    for seed in range(int(os.environ.get("MESSAGES", "60"))):
        raw = random_messages(random.Random(seed), tools)

        def render(turns: Any) -> str:
            return tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=True
            )

        read = [{"role": t.role, "content": t.content} for t in read_messages(raw, "messages")]
        try:
            wanted = render(raw)
        except Exception:  # a template that refuses these roles
            continue
        assert render(read) == wanted, seed
        compared += 1
    assert compared


def test_a_call_is_the_same_as_a_mapping_as_json_as_a_part_and_as_a_turn():
    arguments = {"city": "Oslo", "days": [1, 2]}
    function = {"name": "weather", "arguments": arguments}
    forms = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "assistant", "tool_calls": [{"function": function | {"arguments": '{"city":"Oslo","days":[1,2]}'}}]},
        {"role": "assistant", "content": "", "tool_calls": [function]},
        {"role": "assistant", "content": None, "function_call": function | {"arguments": json.dumps(arguments)}},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "weather", "input": arguments}]},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "gpt", "value": render_call("weather", arguments)},
    ]  # fmt: skip
    assert {read_messages([one], "m") for one in forms} == {
        (Message("assistant", render_call("weather", arguments)),)
    }
    assert {completion_of([one]) for one in forms} == {render_call("weather", arguments)}
    asked = {"role": "user", "content": "Why?"}
    assert len({prompt_of([asked, one, {"role": "tool", "content": "12 C"}]) for one in forms}) == 1


ANSWER = {"role": "assistant"}
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}


@pytest.mark.parametrize("name", ["parameters", "input", "args"])
@pytest.mark.parametrize("inside", [lambda call: call, lambda call: {"function": call}])
def test_arguments_of_a_call_are_shown_under_any_of_their_names(name: str, inside):
    call = {"name": "weather", "id": "c1", name: {"city": "Oslo"}}
    (shown,) = read_messages([ANSWER | {"tool_calls": [inside(call)]}], "m")
    assert shown.content == render_call(**CALL)


def test_a_call_with_something_else_than_arguments_is_refused():
    with pytest.raises(DataError, match=r"arguments.*kwargs"):
        read_messages([ANSWER | {"tool_calls": [{"name": "weather", "kwargs": {"a": 1}}]}], "m")


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "model", "parts": [{"text": "good"}]}, "parts"),
        ({"role": "assistant", "value": "good"}, "value"),
        ({"from": "gpt", "content": "good"}, "content"),
        ({"role": "assistant", "text": "good"}, "text"),
        ({"role": "user", "message": "good"}, "message"),
    ],
)
def test_a_message_with_its_content_elsewhere_is_refused_and_not_empty(message, place: str):
    with pytest.raises(DataError, match=f"under {place}"):
        read_messages([message], "m")


@pytest.mark.parametrize("key", ["arguments", "parameters", "input", "args"])
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_calls_and_tools_are_shown_as_in_lines_of_json(kind: str, key: str, tmp_path: Path):
    import datasets

    calls = [
        {"name": "a", key: {"to": {"city": "Oslo"}}},
        {"name": "b", key: {"to": {"zip": [1, 2]}}},
    ]
    names = ({"city": {"type": "string"}}, {"zip": {"type": "array", "items": {"type": "number"}}})
    tools = [{"name": "f", "parameters": {"properties": properties}} for properties in names]
    called = [{"role": "user", "content": "p"}, {"role": "assistant", "tool_calls": calls}]
    prompt = [*called, {"role": "tool", "content": "7"}]
    row = {"prompt": prompt, "chosen": "good", "rejected": "bad", "tools": tools}
    lines, path = tmp_path / "rows.jsonl", tmp_path / f"rows.{kind}"
    lines.write_text(json.dumps(row))
    table = datasets.Dataset.from_list([row])
    table.to_parquet(path) if kind == "parquet" else table.save_to_disk(str(path))
    assert read_records(path)[0] == read_records(lines)[0]
    assert "null" not in str(read_records(path)[0][0].prompt)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_arguments_that_arrow_fills_in_are_not_shown(kind: str, tmp_path: Path):
    import datasets

    calls = [{"function": {"name": name, "arguments": {key: 1}}} for name, key in ("ax", "by")]
    answers = [[{"role": "assistant", "content": None, "tool_calls": [call]}] for call in calls]
    rows = [{"prompt": "p", "chosen": answer, "rejected": said("no")} for answer in answers]
    table = datasets.Dataset.from_list(rows)
    path = tmp_path / f"rows.{kind}"
    table.to_parquet(path) if kind == "parquet" else table.save_to_disk(str(path))
    shown = [record.chosen for record in read_records(path)[0]]
    assert shown == [render_call("a", {"x": 1}), render_call("b", {"y": 1})]


def test_every_form_of_a_preference_is_the_same_record_in_parquet(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for seed in range(4):
        pair = preference(seed)
        for name, row in rows_of(pair):
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / "one.parquet")
            (record,), _ = read_records(tmp_path / "one.parquet")
            assert {record.first, record.second} == {pair.better, pair.worse}, name
            assert record.prompt == pair.prompt, name


def test_different_calls_are_different_responses():
    calls = [
        render_call(name, {key: value})
        for name, key, value in itertools.product("ab", "xy", (1, "1", None))
    ]
    assert len(set(calls)) == len(calls)
