"""All prompt texts: judge template, stage-1 layout, baseline layout, delimiters.

A template is text with the fields {prompt}, {first} and {second}, each once and in this order; other braces are
literal. Delimiters are whole lines. guard.py escapes lines of the fields that look like delimiters.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from gram_jax.errors import JudgeError

FIELDS = ("prompt", "first", "second")
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")

# 45 tokens of SmolLM2's tokenizer. The blank lines before all delimiters are equal, so that a response has the same
# tokens in both places.
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

# The prompt of a pair of continuations (data/self_supervised.py).
CONTINUE = "Continue this text.\n\n{beginning}"

# Replaces the text that is removed from an overlong field.
CUT = " […] "


def default_template(labels: tuple[str, str]) -> str:
    """The default judge template; the responses are named by the judge's labels."""
    first, second = (label.strip() for label in labels)
    return _DEFAULT.replace("LABEL0", first).replace("LABEL1", second)


@dataclass(frozen=True)
class LayoutPart:
    """A part of a layout.

    kind: "frame", chat format with control tokens; "text", literal words; "field", the field named by `value`.
    weight: loss weight of the part's tokens as targets.
    """

    kind: Literal["frame", "text", "field"]
    value: str
    weight: float = 0.0


Layout = tuple[LayoutPart, ...]


def split_template(template: str) -> tuple[str, str, str, str]:
    """The literal text before, between and after the three fields. Raises JudgeError unless each occurs once."""
    head, *rest = _FIELD.split(template)
    found = rest[::2]
    for name in FIELDS:
        if found.count(name) != 1:
            raise JudgeError(
                f"a judge template has the field {{{name}}} exactly once; found it {found.count(name)} times. The "
                "fields are {prompt}, {first}, {second}; all other braces are literal text."
            )
    if tuple(found) != FIELDS:
        raise JudgeError(
            "the fields of a judge template are in the order {prompt}, {first}, {second}; found "
            f"{', '.join(found)}. Move them into this order."
        )
    between, middle, tail = rest[1::2]
    return head, between, middle, tail


def text_parts(text: str, weight: float = 0.0) -> Layout:
    """The literal and field parts of a text with {fields}."""
    values = enumerate(_FIELD.split(text))
    return tuple(
        LayoutPart("field" if i % 2 else "text", value, weight) for i, value in values if value
    )


def comparison_layout(template: str, chat_prefix: str, generation_prompt: str) -> Layout:
    """Stage 2 and scoring: the judge's whole prompt; the verdict is the token after it."""
    split_template(template)
    return _user_turn(chat_prefix, template, generation_prompt)


def pretraining_layout(template: str, chat_prefix: str, generation_prompt: str) -> Layout:
    """Stage 1: the tokens of a comparison, with a loss on everything after the prompt that is not the chat frame.

    The model learns to write the very text that stage 2 and scoring show it.
    """
    layout = comparison_layout(template, chat_prefix, generation_prompt)
    prompt = layout.index(LayoutPart("field", FIELDS[0]))
    return tuple(
        replace(part, weight=1.0) if at > prompt and part.kind != "frame" else part
        for at, part in enumerate(layout)
    )


def gram_pretraining_layout(chat_prefix: str, generation_prompt: str, end_of_turn: str) -> Layout:
    """Stage 1 of GRAM: the assistant answers the user's prompt with both responses, which carry the loss."""
    answers = text_parts(PRETRAINING_ASSISTANT, weight=1.0)
    end = LayoutPart("frame", end_of_turn, weight=1.0)
    return (*_user_turn(chat_prefix, PRETRAINING_USER, generation_prompt), *answers, end)


def response_layout(chat_prefix: str, generation_prompt: str, end_of_turn: str) -> Layout:
    """The baseline: a user's prompt and one response; the score is read at the end of the turn."""
    answer = (LayoutPart("field", "response"), LayoutPart("frame", end_of_turn))
    return (*_user_turn(chat_prefix, "{prompt}", generation_prompt), *answer)


def _user_turn(chat_prefix: str, text: str, generation_prompt: str) -> Layout:
    ends = LayoutPart("frame", chat_prefix), LayoutPart("frame", generation_prompt)
    return ends[0], *text_parts(text), ends[1]
