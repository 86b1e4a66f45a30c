"""GRAM's rendered rows, which hold a whole judge prompt and its verdict: taken apart again."""

from gram_jax.data.comparison import Comparison, Label
from gram_jax.data.fields import (
    BadField,
    Fields,
    Seen,
    id_of,
    optional_text,
    prompt_value,
    source_of,
    text_of,
)
from gram_jax.judge.messages import Message
from gram_jax.judge.recover import render, row_prompt, take_apart
from gram_jax.judge.template import GRAM_QUESTION, GRAM_RESPONSES

_VERDICTS: dict[str, Label] = {"A": 0, "B": 1}


def gram(row: Fields) -> list[Comparison]:
    """A row with the published delimiters.

    Stage 1 has the question in `instruction` and both responses in `output`; stage 2 has all three in `instruction`
    and the verdict in `output`.
    """
    instruction = _prompt(row)
    output = text_of(row, "output")
    verdict = _VERDICTS.get(output.strip())
    field = "output" if verdict is None else "instruction"
    first, second = (
        _between(output if verdict is None else instruction, start, end, field)
        for start, end in GRAM_RESPONSES
    )
    if verdict is None:
        question = instruction
        if GRAM_QUESTION in question:
            question = _once(question, GRAM_QUESTION, "instruction")[1]
    else:
        question = _between(instruction, GRAM_QUESTION, GRAM_RESPONSES[0][0], field)
    prompt = prompt_value((Message("user", question.strip("\n")),), "instruction")
    return [Comparison(prompt, first, second, verdict, id=id_of(row), source=source_of(row))]


def _prompt(row: Fields) -> str:
    return row_prompt(
        {"instruction": text_of(row, "instruction"), "input": optional_text(row, "input")}
    )


def rendered(template: str, labels: tuple[str, str], row: Fields) -> list[Comparison]:
    """A judge prompt of another template than the published one, and its verdict."""
    text, output = _prompt(row), text_of(row, "output")
    found = take_apart(template, text)
    if found is None or render(template, *found) != text:
        expected = "the template that the first rows share, none of its delimiter lines in a field"
        raise BadField("instruction", expected, text)
    if output not in labels:
        raise BadField("output", f"one of {', '.join(map(repr, labels))}", output)
    question, first, second = found
    prompt = prompt_value((Message("user", question),), "instruction")
    verdict: Label = 0 if output == labels[0] else 1
    return [Comparison(prompt, first, second, verdict, id=id_of(row), source=source_of(row))]


def is_published(row: Fields) -> bool:
    try:
        return bool(gram(row))
    except BadField:
        return False


def _between(text: str, start: str, end: str, field: str) -> str:
    return _once(_once(text, start, field)[1], end, field)[0]


def _once(text: str, mark: str, field: str) -> tuple[str, str]:
    """Text before and after a mark; standing twice, it would let the row be read in two ways."""
    if text.count(mark) != 1:
        raise BadField(
            field, f"{mark.strip()!r} exactly once", Seen(f"it {text.count(mark)} times")
        )
    before, _, after = text.partition(mark)
    return before, after
