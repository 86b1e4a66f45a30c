"""A layout compiled for tokenizing: constant segments tokenized once, and fields with the literal text around them.

The tokens of the segments, one after another, are the tokens of the whole text. Segments meet at a line break before a
word or sign, where byte-level tokenizers split. A text is tokenized together with the line breaks after it, because
many tokenizers join these to a full stop, and with the next character, whose token is then removed: GPT-2's tokenizer
makes two tokens of "\\n\\n" before a word and one at the end of a text.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.judge.template import CUT, Layout
from gram_jax.judge.tokens import TextEncoder


class FieldContext(NamedTuple):
    """The literal text that is tokenized with a field, before and after it, and the character that follows."""

    prefix: str = ""
    suffix: str = ""
    following: str = ""


class Segment(NamedTuple):
    """Part of a layout: constant tokens (i32 [n]), or a field with its context.

    weight: loss weight of its tokens as targets.
    """

    weight: float
    tokens: np.ndarray | None = None
    field: str = ""
    context: FieldContext = FieldContext()


@lru_cache(maxsize=64)
def compile_layout(encoder: TextEncoder, layout: Layout) -> tuple[Segment, ...]:
    """Divide a layout into segments and tokenize the constant ones."""
    segments: list[Segment] = []
    prefix = ""
    for part, following in zip(layout, [*layout[1:], None], strict=True):
        text = part.value
        if part.kind == "frame":
            segments.append(Segment(part.weight, encoder.frame(text)))
        elif part.kind == "field":
            segments.append(Segment(part.weight, field=text, context=FieldContext(prefix)))
            prefix = ""
        else:
            if segments and segments[-1].field:
                suffix, text = _after_breaks(text)
                last = segments.pop()
                context = last.context._replace(suffix=suffix, following=text[:1])
                segments.append(last._replace(context=context))
            if following is not None and following.kind == "field":
                text, prefix = _before_field(text)
            if text:
                segments.append(Segment(part.weight, encoder.text(text, prefix[:1])))
    return tuple(segments)


def _before_field(text: str) -> tuple[str, str]:
    """Split before the line of the field, or before the last line with words if blank lines come between.

    The tokens of blank lines depend on the field.
    """
    start = text.rfind("\n") + 1
    if text[:start].endswith("\n\n"):
        start = text.rstrip("\n").rfind("\n") + 1
    return text[:start], text[start:]


def _after_breaks(text: str) -> tuple[str, str]:
    """Split after the first run of line breaks; the second part is empty if there is none."""
    line, breaks, rest = text.partition("\n")
    after = rest.lstrip("\n")
    return line + breaks + rest[: len(rest) - len(after)], after


class TokenTable:
    """Tokens of texts as fields of a layout: each text is tokenized once, all new texts in one call.

    fields: names of the fields in the order of the layout. const_tokens: number of tokens of the constant segments.
    """

    def __init__(self, encoder: TextEncoder, layout: Layout):
        self.encoder = encoder
        self.segments = compile_layout(encoder, layout)
        self.const_tokens = sum(len(x.tokens) for x in self.segments if x.tokens is not None)
        self._context = {x.field: x.context for x in self.segments if x.field}
        self.fields = tuple(self._context)
        # A response is measured in the context of every response, so that the truncation of a pair does not depend on
        # the order shown. In most templates these contexts are equal.
        responses = tuple(dict.fromkeys(self._context[x] for x in self.fields if x != "prompt"))
        self._measured = {
            name: (context,) if name == "prompt" else responses
            for name, context in self._context.items()
        }
        self._tokens: dict[tuple[str, str], np.ndarray] = {}
        self._ends: dict[str, np.ndarray] = {}

    def add(self, texts: Iterable[tuple[str, str]]) -> None:
        """Tokenize the (field, text) pairs that are new."""
        wanted = (_key(context, text) for field, text in texts for context in self._measured[field])
        new = list(dict.fromkeys(key for key in wanted if key not in self._tokens))
        self._tokens.update(zip(new, self.encoder.text_batch(new), strict=True))

    def tokens(self, field: str, text: str) -> np.ndarray:
        """i32 [n]: the tokens of a field's text with the literal text around it."""
        return self._get(self._context[field], text)

    def length(self, field: str, text: str) -> int:
        """Number of tokens of the text, in the context in which it has the most."""
        return max([len(self._get(context, text)) for context in self._measured[field]])

    def ends(self, text: str) -> np.ndarray:
        """As TextEncoder.text_ends."""
        if text not in self._ends:
            self._ends[text] = self.encoder.text_ends(text)
        return self._ends[text]

    def total(self, texts: Mapping[str, str]) -> int:
        """Number of tokens of the whole example."""
        return self.const_tokens + sum([self.length(field, text) for field, text in texts.items()])

    def check_room(self, budget: int) -> None:
        """Raises JudgeError if a budget of tokens cannot hold the layout and the marks of truncation."""
        least = self.total(dict.fromkeys(self.fields, CUT.strip()))
        if least > budget:
            raise JudgeError(
                f"max_length = {budget} is too small for the texts: chat format and template alone take "
                f"{self.const_tokens} tokens. The minimum is {least}, a useful length is 512 or more."
            )

    def _get(self, context: FieldContext, text: str) -> np.ndarray:
        key = _key(context, text)
        if key not in self._tokens:
            self._tokens[key] = self.encoder.text(*key)
        return self._tokens[key]


def _key(context: FieldContext, text: str) -> tuple[str, str]:
    return context.prefix + text + context.suffix, context.following
