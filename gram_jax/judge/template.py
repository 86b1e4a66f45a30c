"""All prompt text of the project: judge template, stage-1 layout, baseline layout, delimiters.

A template is text with the fields {prompt}, {first} and {second}, each once and in this order; other braces are
literal. Delimiters are whole lines. guard.py escapes lines of the fields that look like delimiters.
"""

import re
from dataclasses import dataclass
from typing import Literal

from gram_jax.errors import JudgeError

FIELDS = ("prompt", "first", "second")

# 45 tokens of the SmolLM2 tokenizer. The blank lines are the same before every delimiter, so that a
# response has the same tokens in both places.
_DEFAULT = """\
Compare two responses to a request.

[Request]
{prompt}

[Response LABEL0]
{first}

[Response LABEL1]
{second}

[Question]
Which response answers the request better? Answer LABEL0 or LABEL1."""

# Stage 1 of GRAM (arXiv 2506.14175, reference code): a user turn and an assistant turn.
GRAM_QUESTION = "[User Question]\n"
GRAM_RESPONSES = tuple(
    (f"[The Start of Assistant {name}'s Answer]\n", f"\n[The End of Assistant {name}'s Answer]")
    for name in "AB"
)
PRETRAINING_USER = GRAM_QUESTION + "{prompt}\n\n"
PRETRAINING_ASSISTANT = "\n\n".join(
    f"{start}{{{field}}}{end}"
    for field, (start, end) in zip(FIELDS[1:], GRAM_RESPONSES, strict=True)
)

# Put where text was cut out of an over-long field.
CUT = " […] "


def default_template(labels: tuple[str, str]) -> str:
    """The project's own judge template, naming the responses by the judge's labels."""
    first, second = (label.strip() for label in labels)
    return _DEFAULT.replace("LABEL0", first).replace("LABEL1", second)


@dataclass(frozen=True)
class LayoutPart:
    """A part of a layout.

    kind: "frame", chat format in which control tokens are recognised; "text", literal words; "field", the field
      that `value` names.
    weight: the loss weight of the part's tokens as targets.
    """

    kind: Literal["frame", "text", "field"]
    value: str
    weight: float = 0.0


Layout = tuple[LayoutPart, ...]


def split_template(template: str) -> tuple[str, str, str, str]:
    """The literal text before, between and after the three fields. Raises JudgeError unless each is there once."""
    for name in FIELDS:
        if template.count(f"{{{name}}}") != 1:
            raise JudgeError(
                f"a judge template has the field {{{name}}} exactly once; found it {template.count(f'{{{name}}}')} "
                "times. The fields are {prompt}, {first}, {second}; all other braces are literal text."
            )
    head, rest = template.split("{prompt}")
    if "{first}" not in rest or "{second}" not in rest.split("{first}")[1]:
        raise JudgeError(
            "the fields of a judge template stand in the order {prompt}, {first}, {second}: the prompt is read first "
            "and the first response is shown first. Move them into this order."
        )
    between, rest = rest.split("{first}")
    middle, tail = rest.split("{second}")
    return head, between, middle, tail


def text_parts(text: str, weight: float = 0.0) -> Layout:
    """The literal and field parts of a text with {fields}."""
    values = re.split(r"\{(" + "|".join(FIELDS) + r")\}", text)
    parts = (
        LayoutPart("field" if i % 2 else "text", value, weight)
        for i, value in enumerate(values)
        if i % 2 or value
    )
    return tuple(parts)


def comparison_layout(template: str, chat_prefix: str, generation_prompt: str) -> Layout:
    """Stage 2 and scoring: the judge's whole prompt; the verdict is the token after it."""
    split_template(template)
    return (
        LayoutPart("frame", chat_prefix),
        *text_parts(template),
        LayoutPart("frame", generation_prompt),
    )


def pretraining_layout(chat_prefix: str, generation_prompt: str, end_of_turn: str) -> Layout:
    """Stage 1: the user asks, the assistant writes both responses and carries the loss."""
    return (
        LayoutPart("frame", chat_prefix),
        *text_parts(PRETRAINING_USER),
        LayoutPart("frame", generation_prompt),
        *text_parts(PRETRAINING_ASSISTANT, weight=1.0),
        LayoutPart("frame", end_of_turn, weight=1.0),
    )


def response_layout(chat_prefix: str, generation_prompt: str, end_of_turn: str) -> Layout:
    """The baseline: a user's prompt and one response; the score is read at the end of the turn."""
    return (
        LayoutPart("frame", chat_prefix),
        LayoutPart("field", "prompt"),
        LayoutPart("frame", generation_prompt),
        LayoutPart("field", "response"),
        LayoutPart("frame", end_of_turn),
    )
