"""The tokens of a layout, part by part: what is fixed once, each text with its line breaks once.

Putting the parts side by side must give the tokens of the whole text. Byte-level tokenizers cut
between a line break and a following word or sign, so that is where the parts meet; a text is
tokenized together with the line breaks after it, because many tokenizers join those to a full stop.
What comes next matters too ("\\n\\n" before a word is two tokens in GPT-2's way of cutting, one at
the end of a text), so its first character is shown to the tokenizer and its token taken off again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.judge.template import CUT, Layout
from gram_jax.judge.tokens import TextEncoder


class Place(NamedTuple):
    """Where a field stands: the literal text that is tokenized with it, and the character that comes after."""

    prefix: str
    suffix: str
    following: str


@dataclass(frozen=True)
class Fixed:
    """Tokens that are the same in every example. i32 [n]."""

    tokens: np.ndarray
    weight: float


@dataclass(frozen=True)
class Slot:
    """A field and its place."""

    field: str
    place: Place
    weight: float


@dataclass(frozen=True)
class Plan:
    """A layout cut into parts. fixed: how many tokens are the same in every example; weights: f32, one a part."""

    parts: tuple[Fixed | Slot, ...]
    fixed: int
    weights: np.ndarray


@lru_cache(maxsize=64)
def make_plan(encoder: TextEncoder, layout: Layout) -> Plan:
    """Where a layout is cut for tokenizing, and the tokens of its fixed parts."""
    parts: list[Fixed | Slot] = []
    prefix = ""
    for at, piece in enumerate(layout):
        following = layout[at + 1] if at + 1 < len(layout) else None
        if piece.kind == "frame":
            parts.append(Fixed(encoder.frame(piece.value), piece.weight))
        elif piece.kind == "field":
            parts.append(Slot(piece.value, Place(prefix, "", ""), piece.weight))
            prefix = ""
        else:
            text = piece.value
            last = parts[-1] if parts else None
            if isinstance(last, Slot):
                suffix, text = _after_breaks(text)
                place = last.place._replace(suffix=suffix, following=text[:1])
                parts[-1] = Slot(last.field, place, last.weight)
            if following is not None and following.kind == "field":
                text, prefix = _before_field(text)
            if text:
                parts.append(Fixed(encoder.text(text, prefix[:1]), piece.weight))
    return Plan(
        parts=tuple(parts),
        fixed=sum(len(part.tokens) for part in parts if isinstance(part, Fixed)),
        weights=np.array([part.weight for part in parts], np.float32),
    )


def _before_field(text: str) -> tuple[str, str]:
    """Splits where a line begins: the line on which the field stands, or the last one with words if
    blank lines come between, because what they become depends on the field.
    """
    start = text.rfind("\n") + 1
    if text[:start].endswith("\n\n"):
        start = text.rstrip("\n").rfind("\n") + 1
    return text[:start], text[start:]


def _after_breaks(text: str) -> tuple[str, str]:
    """Splits behind the first run of line breaks (everything if there is none)."""
    end = text.find("\n")
    if end < 0:
        return text, ""
    while end < len(text) and text[end] == "\n":
        end += 1
    return text[:end], text[end:]


class PieceTable:
    """Tokens of texts in the slots of a layout, each tokenized once, all new ones together."""

    def __init__(self, encoder: TextEncoder, layout: Layout):
        self.encoder = encoder
        self.plan = make_plan(encoder, layout)
        self._place = {part.field: part.place for part in self.plan.parts if isinstance(part, Slot)}
        # Responses are measured at every place that a response can have, so that the cut of a pair
        # does not depend on the order shown. In most templates the places are alike, and then there
        # is one to measure.
        responses = tuple({place: None for name, place in self._place.items() if name != "prompt"})
        self._places = {
            name: (place,) if name == "prompt" else responses for name, place in self._place.items()
        }
        self._tokens: dict[tuple[str, str], np.ndarray] = {}

    def add(self, texts: Iterable[tuple[str, str]]) -> None:
        """Tokenizes (field, text) pairs that are not there yet."""
        wanted = (
            (place.prefix + text + place.suffix, place.following)
            for field, text in texts
            for place in self._places[field]
        )
        new = list(dict.fromkeys(key for key in wanted if key not in self._tokens))
        self._tokens.update(zip(new, self.encoder.text_batch(new), strict=True))

    def tokens(self, field: str, text: str) -> np.ndarray:
        """i32 [n]: the tokens of a field's text with the literal text around it."""
        return self._get(self._place[field], text)

    def length(self, field: str, text: str) -> int:
        """How many tokens the text takes, at the worst of the places that it may have."""
        return max([len(self._get(place, text)) for place in self._places[field]])

    def total(self, texts: Mapping[str, str]) -> int:
        """Tokens of the whole example."""
        return self.plan.fixed + sum([self.length(field, text) for field, text in texts.items()])

    def check_room(self, budget: int) -> None:
        """Raises JudgeError if a budget of tokens cannot hold the layout and the marks of cuts."""
        least = self.total(dict.fromkeys(self._place, CUT.strip()))
        if least > budget:
            raise JudgeError(
                f"max_length = {budget} leaves no room for the texts: chat format and template alone take "
                f"{self.plan.fixed} tokens. The least that works is {least}, a useful length is 512 or more."
            )

    def _get(self, place: Place, text: str) -> np.ndarray:
        key = (place.prefix + text + place.suffix, place.following)
        if key not in self._tokens:
            self._tokens[key] = self.encoder.text(*key)
        return self._tokens[key]
