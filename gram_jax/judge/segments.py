"""A layout compiled for tokenizing: constant segments tokenized once, and fields with the literal text around them.

The tokens of the segments, one after another, are the tokens of the whole text (`TextEncoder.dialogue`). Segments meet
at a control token, or at a line break before a word or sign, where tokenizers split. A text is tokenized together with
the line breaks after it, because many tokenizers join these to a full stop, and with the next character, whose token is
then removed: GPT-2's tokenizer makes two tokens of "\\n\\n" before a word and one at the end of a text. A text that
begins with blanks is tokenized together with the line before it.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.judge.template import CUT, Layout
from gram_jax.judge.tokens import Piece, Place, TextEncoder, TextEnds


class FieldContext(NamedTuple):
    """The literal text that is tokenized with a field.

    prefix, suffix, following: text before and after it, and the character that follows. place: of the prefix, or of a
    field without one. head: the line before a field that begins a line, for a field that begins with blanks.
    """

    prefix: str = ""
    suffix: str = ""
    following: str = ""
    place: Place = "inside"
    head: Piece | None = None

    def piece(self, text: str) -> Piece:
        """The text to tokenize for a field."""
        whole = self.prefix + text + self.suffix
        if self.head is not None and whole[:1].isspace():
            return Piece(self.head.text + whole, self.following, self.head.place)
        return Piece(whole, self.following, self.place)

    def takes_head(self, text: str) -> bool:
        """Whether the text begins with blanks, also an empty one before a line break."""
        return self.head is not None and (text or self.suffix)[:1].isspace()


class Segment(NamedTuple):
    """Part of a layout: constant tokens (i32 [n]), or a field with its context.

    weight: loss weight of its tokens as targets. With a field, `tokens` are those of its context's head.
    """

    weight: float
    tokens: np.ndarray
    field: str = ""
    context: FieldContext = FieldContext()


@lru_cache(maxsize=64)
def compile_layout(encoder: TextEncoder, layout: Layout) -> tuple[Segment, ...]:
    """Divide a layout into segments and tokenize the constant ones."""
    segments: list[Segment] = []
    place: Place = "first"
    head, prefix = "", ""  # of the next field
    parts = list(_parts(encoder, layout))
    for (kind, value, weight), following in zip(parts, [*parts[1:], None], strict=True):
        if kind == "control":
            segments.append(Segment(weight, np.array([value], np.int32)))
            place = "section"
        elif kind == "field":
            line = Piece(head, "", place) if head else None
            tokens = encoder.text_batch([line])[0] if line else np.zeros(0, np.int32)
            context = FieldContext(prefix, place="inside" if head else place, head=line)
            segments.append(Segment(weight, tokens, value, context))
            head, prefix, place = "", "", "inside"
        else:
            if segments and segments[-1].field:
                suffix, value = _after_breaks(value)
                last = segments.pop()
                context = last.context._replace(suffix=suffix, following=value[:1])
                segments.append(last._replace(context=context))
            if following is not None and following[0] == "field":
                value, head, prefix = _before_field(value)
            if value:
                segments.append(Segment(weight, encoder.text(value, (head + prefix)[:1], place)))
                place = "inside"
    return tuple(segments)


def _parts(encoder: TextEncoder, layout: Layout) -> Iterator[tuple[str, Any, float]]:
    """("control", token), ("text", text) and ("field", name), each with its weight; texts side by side are one text."""
    parts: list[tuple[str, Any, float]] = []
    for part in layout:
        if part.kind == "frame":
            for value in encoder.sections(part.value):
                kind = "text" if isinstance(value, str) else "control"
                parts.append((kind, value, part.weight))
        else:
            parts.append((part.kind, part.value, part.weight))
    for (kind, weight), run in groupby(parts, lambda part: (part[0], part[2])):
        if kind == "text":
            yield kind, "".join(value for _, value, _ in run), weight
        else:
            yield from run


def _before_field(text: str) -> tuple[str, str, str]:
    """(a constant text, the line before a field that begins a line, the text that is tokenized with the field).

    The tokens of blank lines depend on the field, so they and the line before them are tokenized with it.
    """
    start = text.rfind("\n") + 1
    if text[:start].endswith("\n\n"):
        start = text.rstrip("\n").rfind("\n") + 1
    elif start == len(text):
        start = text[:-1].rfind("\n") + 1
        return text[:start], text[start:], ""
    return text[:start], "", text[start:]


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
        self.const_tokens = sum(len(x.tokens) for x in self.segments)
        self._context = {x.field: x.context for x in self.segments if x.field}
        self._heads = {x.context: x.tokens for x in self.segments if x.field}
        self.fields = tuple(self._context)
        # A response is measured in the context of every response, so that the truncation of a pair does not depend on
        # the order shown. In most templates these contexts are equal.
        responses = tuple(dict.fromkeys(self._context[x] for x in self.fields if x != "prompt"))
        self._measured = {
            name: (context,) if name == "prompt" else responses
            for name, context in self._context.items()
        }
        self._tokens: dict[Piece, np.ndarray] = {}
        self._found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        self._lengths: dict[tuple[str, str], int] = {}
        self._ends: dict[tuple[str, int], TextEnds] = {}

    def add(self, texts: Iterable[tuple[str, str]]) -> None:
        """Tokenize the (field, text) pairs that are new."""
        wanted = (
            context.piece(text)
            for field, text in dict.fromkeys(texts)
            for context in self._measured[field]
        )
        new = [piece for piece in dict.fromkeys(wanted) if piece not in self._tokens]
        self._tokens.update(zip(new, self.encoder.text_batch(new), strict=True))

    def tokens(self, field: str, text: str) -> tuple[np.ndarray, np.ndarray]:
        """i32 [n] each: the line before a field and the field with the literal text around it, or () and both."""
        if (key := (field, text)) not in self._found:
            self._found[key] = self._get(self._context[field], text)
        return self._found[key]

    def length(self, field: str, text: str) -> int:
        """Number of tokens that the text adds to the line before it, in the context in which these are the most."""
        if (key := (field, text)) not in self._lengths:
            self._lengths[key] = max(
                sum(map(len, self._get(x, text))) - len(self._heads[x])
                for x in self._measured[field]
            )
        return self._lengths[key]

    def ends(self, text: str, most: int) -> TextEnds:
        """Where the first and last `most` tokens of a text end, as of TextEncoder.text_ends."""
        if (key := (text, most)) not in self._ends:
            self._ends[key] = self.encoder.text_ends(text, most)
        return self._ends[key]

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

    def _get(self, context: FieldContext, text: str) -> tuple[np.ndarray, np.ndarray]:
        piece, head = context.piece(text), self._heads[context]
        if piece not in self._tokens:
            self._tokens[piece] = self.encoder.text_batch([piece])[0]
        return head[: 0 if context.takes_head(text) else None], self._tokens[piece]
