"""Comparisons from GRAM's rendered rows, each a complete judge prompt and its verdict."""

from gram_jax.data.fields import Fields, optional_text, text_of
from gram_jax.data.records import Comparison, Label
from gram_jax.judge.messages import BadField, Message, Seen, checked_prompt
from gram_jax.judge.recover import render, row_prompt, take_apart
from gram_jax.judge.template import GRAM_QUESTION, GRAM_RESPONSES

_VERDICTS: dict[str, Label] = {"A": 0, "B": 1}


def gram(row: Fields) -> list[Comparison]:
    """A row with the published delimiters.

    Stage 1 has the question in `instruction` and both responses in `output`; stage 2 has all three in `instruction`
    and the verdict in `output`.
    """
    instruction, output = _prompt(row), text_of(row, "output")
    verdict = _VERDICTS.get(output.strip())
    field, text = ("output", output) if verdict is None else ("instruction", instruction)
    first, second = (_between(text, start, end, field) for start, end in GRAM_RESPONSES)
    if verdict is not None:
        question = _between(instruction, GRAM_QUESTION, GRAM_RESPONSES[0][0], field)
    elif GRAM_QUESTION in instruction:
        question = _once(instruction, GRAM_QUESTION, "instruction")[1]
    else:
        question = instruction
    return [_comparison(question.strip("\n"), first, second, verdict)]


def rendered(template: str, labels: tuple[str, str], row: Fields) -> list[Comparison]:
    """A row with a judge prompt of a template other than the published one, and its verdict."""
    text, output = _prompt(row), text_of(row, "output")
    found = take_apart(template, text)
    if found is None or render(template, *found) != text:
        expected = "the template that the first rows share, none of its delimiter lines in a field"
        raise BadField("instruction", expected, text)
    if output not in labels:
        raise BadField("output", f"one of {', '.join(map(repr, labels))}", output)
    return [_comparison(*found, 0 if output == labels[0] else 1)]


def is_published(row: Fields) -> bool:
    """Whether the row has the published delimiters."""
    try:
        return bool(gram(row))
    except BadField:
        return False


def _prompt(row: Fields) -> str:
    return row_prompt(
        {"instruction": text_of(row, "instruction"), "input": optional_text(row, "input")}
    )


def _comparison(question: str, first: str, second: str, label: Label | None) -> Comparison:
    prompt = checked_prompt((Message("user", question),), "instruction")
    return Comparison(prompt, first, second, label)


def _between(text: str, start: str, end: str, field: str) -> str:
    return _once(_once(text, start, field)[1], end, field)[0]


def _once(text: str, mark: str, field: str) -> tuple[str, str]:
    """The text before and after a mark. Raises BadField unless the mark occurs exactly once."""
    if text.count(mark) != 1:
        found = Seen(f"it {text.count(mark)} times")
        raise BadField(field, f"{mark.strip()!r} exactly once", found)
    before, _, after = text.partition(mark)
    return before, after
