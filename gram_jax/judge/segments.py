"""A layout compiled for tokenizing: constant segments tokenized once, and fields with the literal text around them.

The tokens of the segments, one after another, are the tokens of the whole text. Byte-level tokenizers cut between a
line break and a following word or sign, so that is where the segments meet; a text is tokenized together with the line
breaks after it, because many tokenizers join those to a full stop. The next character matters too ("\\n\\n" before a
word is two tokens in GPT-2's way of cutting, one at the end of a text), so it is shown to the tokenizer and its token
is removed again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.judge.template import CUT, Layout
from gram_jax.judge.tokens import TextEncoder


class FieldContext(NamedTuple):
    """The literal text that is tokenized with a field, before and after it, and the character that follows."""

    prefix: str
    suffix: str
    following: str


@dataclass(frozen=True)
class ConstSegment:
    """Tokens that are the same in every example. i32 [n]."""

    tokens: np.ndarray
    weight: float


@dataclass(frozen=True)
class FieldSegment:
    """A field of the layout, tokenized with its context."""

    field: str
    context: FieldContext
    weight: float


@dataclass(frozen=True)
class EncodePlan:
    """A layout as segments.

    const_tokens: number of tokens that are the same in every example; weights: f32 [segments].
    """

    segments: tuple[ConstSegment | FieldSegment, ...]
    const_tokens: int
    weights: np.ndarray


@lru_cache(maxsize=64)
def make_encode_plan(encoder: TextEncoder, layout: Layout) -> EncodePlan:
    """Cut a layout into segments and tokenize the constant ones."""
    segments: list[ConstSegment | FieldSegment] = []
    prefix = ""
    for at, part in enumerate(layout):
        following = layout[at + 1] if at + 1 < len(layout) else None
        if part.kind == "frame":
            segments.append(ConstSegment(encoder.frame(part.value), part.weight))
        elif part.kind == "field":
            segments.append(FieldSegment(part.value, FieldContext(prefix, "", ""), part.weight))
            prefix = ""
        else:
            text = part.value
            last = segments[-1] if segments else None
            if isinstance(last, FieldSegment):
                suffix, text = _after_breaks(text)
                context = last.context._replace(suffix=suffix, following=text[:1])
                segments[-1] = FieldSegment(last.field, context, last.weight)
            if following is not None and following.kind == "field":
                text, prefix = _before_field(text)
            if text:
                segments.append(ConstSegment(encoder.text(text, prefix[:1]), part.weight))
    return EncodePlan(
        segments=tuple(segments),
        const_tokens=sum(len(x.tokens) for x in segments if isinstance(x, ConstSegment)),
        weights=np.array([segment.weight for segment in segments], np.float32),
    )


def _before_field(text: str) -> tuple[str, str]:
    """Split before the line of the field, or before the last line with words if blank lines come between.

    The tokens of blank lines depend on the field.
    """
    start = text.rfind("\n") + 1
    if text[:start].endswith("\n\n"):
        start = text.rstrip("\n").rfind("\n") + 1
    return text[:start], text[start:]


def _after_breaks(text: str) -> tuple[str, str]:
    """Split behind the first run of line breaks; everything comes before if there is none."""
    end = text.find("\n")
    if end < 0:
        return text, ""
    while end < len(text) and text[end] == "\n":
        end += 1
    return text[:end], text[end:]


class TokenTable:
    """Tokens of texts as fields of a layout: each text is tokenized once, all new texts in one call.

    fields: the names of the fields in the order of the layout.
    """

    def __init__(self, encoder: TextEncoder, layout: Layout):
        self.encoder = encoder
        self.plan = make_encode_plan(encoder, layout)
        self._context = {
            x.field: x.context for x in self.plan.segments if isinstance(x, FieldSegment)
        }
        self.fields = tuple(self._context)
        # A response is measured in the context of every response, so that the truncation of a pair
        # does not depend on the order shown. In most templates these contexts are equal.
        responses = tuple(dict.fromkeys(self._context[x] for x in self.fields if x != "prompt"))
        self._measured = {
            name: (context,) if name == "prompt" else responses
            for name, context in self._context.items()
        }
        self._tokens: dict[tuple[str, str], np.ndarray] = {}

    def add(self, texts: Iterable[tuple[str, str]]) -> None:
        """Tokenize the (field, text) pairs that are new."""
        wanted = (
            (context.prefix + text + context.suffix, context.following)
            for field, text in texts
            for context in self._measured[field]
        )
        new = list(dict.fromkeys(key for key in wanted if key not in self._tokens))
        self._tokens.update(zip(new, self.encoder.text_batch(new), strict=True))

    def tokens(self, field: str, text: str) -> np.ndarray:
        """i32 [n]: the tokens of a field's text with the literal text around it."""
        return self._get(self._context[field], text)

    def length(self, field: str, text: str) -> int:
        """Number of tokens of the text, in the context that takes most of them."""
        return max([len(self._get(context, text)) for context in self._measured[field]])

    def total(self, texts: Mapping[str, str]) -> int:
        """Number of tokens of the whole example."""
        return self.plan.const_tokens + sum(
            [self.length(field, text) for field, text in texts.items()]
        )

    def check_room(self, budget: int) -> None:
        """Raises JudgeError if a budget of tokens cannot hold the layout and the marks of truncation."""
        least = self.total(dict.fromkeys(self.fields, CUT.strip()))
        if least > budget:
            raise JudgeError(
                f"max_length = {budget} leaves no room for the texts: chat format and template alone take "
                f"{self.plan.const_tokens} tokens. The least that works is {least}, a useful length is 512 or more."
            )

    def _get(self, context: FieldContext, text: str) -> np.ndarray:
        key = (context.prefix + text + context.suffix, context.following)
        if key not in self._tokens:
            self._tokens[key] = self.encoder.text(*key)
        return self._tokens[key]
