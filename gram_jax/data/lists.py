"""Rows with lists of responses, with one graded response, and with a prompt alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gram_jax.data import shapes
from gram_jax.data.fields import Fields, column, id_of, number_value
from gram_jax.data.records import Candidates, Comparison
from gram_jax.data.shapes import BOTH, PROMPTS, alternative, prompt_at
from gram_jax.judge.messages import BadField, Notes, Prompt, Seen, read_messages

STYLES = ("concise", "plain", "markdown")
ASKED = "|".join(PROMPTS)
# A row with a prompt alone has one of these.
ALONE = "prompt|question|query|problem|instruction|input|messages|conversations"


def rm_bench(row: Fields, notes: Notes) -> list[Comparison]:
    """Three styles of each response: nine pairs, whose ids name the styles of both."""
    for name in BOTH:
        if len(texts := shapes.several(row, name, notes)) != len(STYLES):
            raise BadField(name, f"three responses ({', '.join(STYLES)})", list(texts))
    return _every_pair(row, notes, str(row.get("domain") or ""), STYLES, STYLES)


def right_and_wrong(row: Fields, notes: Notes) -> list[Comparison]:
    """Lists of correct and incorrect responses: each correct one is paired with each incorrect one."""
    sides = [shapes.one_or_several(row, name, notes) for name in BOTH]
    return _every_pair(row, notes, "", *map(range, map(len, sides)))


def graded_right_and_wrong(row: Fields, notes: Notes) -> Candidates:
    """All responses of a row, graded 1 and 0."""
    right, wrong = (shapes.one_or_several(row, name, notes) for name in BOTH)
    grades = (1.0,) * len(right) + (0.0,) * len(wrong)
    return Candidates(prompt_at(row, ASKED, notes), right + wrong, grades)


def _every_pair(
    row: Fields, notes: Notes, source: str, good_names: Sequence[Any], bad_names: Sequence[Any]
) -> list[Comparison]:
    """Each chosen response with each rejected one; the pair's id has the names of both."""
    prompt, name = prompt_at(row, ASKED, notes), id_of(row)
    right, wrong = (shapes.one_or_several(row, side, notes) for side in BOTH)
    return [
        Comparison(prompt, good, bad, 0, id=name and f"{name}[{i},{j}]", source=source)
        for i, good in zip(good_names, right, strict=True)
        for j, bad in zip(bad_names, wrong, strict=True)
    ]


def candidates(row: Fields, notes: Notes) -> list[Candidates]:
    """A list of responses without grades."""
    responses = shapes.several(row, "responses", notes)
    if not responses:
        raise BadField("responses", "at least one response", [])
    return [Candidates(prompt_at(row, ASKED, notes), responses)]


def graded_candidates(row: Fields, notes: Notes) -> Candidates:
    """A number for each response in `scores`, or true and false in `correct`."""
    (record,) = candidates(row, notes)
    given = [name for name in ("scores", "correct") if row.get(name) is not None]
    if len(given) != 1:
        raise BadField("scores", "scores or correct, a value for each response", Seen(given))
    name, count = given[0], len(record.responses)
    values = row[name]
    if not isinstance(values, list | tuple) or len(values) != count:
        raise BadField(name, f"a list of {count} values, one for each response", values)
    if name == "correct" and any(value not in (0, 1) for value in values):
        raise BadField(name, "true or false for each response", values)
    values = [int(x) if isinstance(x, bool) else x for x in values]
    return replace(record, grades=tuple(number_value(x, name) for x in values))


def nectar(row: Fields, notes: Notes) -> Candidates:
    """Answers with ranks, 1 the best."""
    responses = shapes.several(row, "answers[].answer", notes)
    ranks = [
        number_value(x, f"answers[{i}].rank") for i, x in enumerate(column(row, "answers[].rank"))
    ]
    if not responses:
        raise BadField("answers", "at least one answer", [])
    return Candidates(prompt_at(row, "prompt", notes), responses, tuple(-rank for rank in ranks))


def kto(row: Fields, notes: Notes) -> Candidates:
    """One response, and whether it is a good one."""
    good = row["label"]
    if good not in (0, 1):
        raise BadField("label", "true or false", good)
    prompt = prompt_at(row, ASKED, notes)
    response = shapes.read_response(row["completion"], "completion", notes)
    return Candidates(prompt, (response,), (float(good),))


def output_list(row: Fields, notes: Notes) -> list[Comparison]:
    """An output of two responses, the better one first."""
    answers = shapes.several(row, "output", notes)
    if len(answers) != 2:
        raise BadField("output", "two responses, the better one first", list(answers))
    return [Comparison(shapes.instruction_of(row), *answers, 0)]


def graded_pairs(record: Candidates, name: str = "") -> list[Comparison]:
    """Every pair of responses with different grades, the better one first. name: the id of the row."""
    texts, grades = record.responses, record.grades or ()
    ranked = sorted(range(len(grades)), key=lambda at: (-grades[at], at))
    binary = set(grades) <= {0.0, 1.0}
    return [
        Comparison(
            record.prompt,
            texts[i],
            texts[j],
            0,
            None if binary else grades[i] - grades[j],
            id=name and f"{name}[{i},{j}]",
            source=record.source,
        )
        for place, i in enumerate(ranked)
        for j in ranked[place + 1 :]
        if grades[i] > grades[j]
    ]


def prompt_alone(row: Fields, notes: Notes) -> list[Candidates]:
    """A prompt without responses; of a conversation, the turns before the last answer."""
    name = alternative(row, ALONE) or "prompt"
    if name in ("messages", "conversations"):
        turns: Prompt = read_messages(row[name], name, notes)
        while turns and turns[-1].role == "assistant":  # rows of supervised fine-tuning
            turns = turns[:-1]
        return [Candidates(shapes.checked_prompt(turns, name), ())]
    if name == "instruction":
        return [Candidates(shapes.instruction_of(row), ())]
    return [Candidates(prompt_at(row, name, notes), ())]
