"""Encoding of texts as token ids; training and scoring both use this module."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gram_jax.judge.guard import layout_guard
from gram_jax.judge.messages import Message, check_list, render_turns, turns_of
from gram_jax.judge.segments import TokenTable
from gram_jax.judge.template import Layout
from gram_jax.judge.tokens import text_encoder
from gram_jax.judge.truncate import truncate_fields


@dataclass(frozen=True, eq=False)
class Encoded:
    """One encoded text.

    tokens: i32 [n]. The verdict of a comparison and the score of a response are read at the last token.
    weights: f32 [n], the loss weight of tokens[i] as a target (so weights[0] is 0); 0 outside stage 1.
    removed: number of tokens that truncation removed.
    escaped: number of escaped lines, which look like delimiters.
    replaced: number of lone surrogates that became U+FFFD.
    identical: both responses are equal, as given or after truncation.
    field_starts: the tokens at which the first and the second response begin; (0, 0) for one response.
    """

    tokens: np.ndarray
    weights: np.ndarray
    removed: int = 0
    escaped: int = 0
    replaced: int = 0
    identical: bool = False
    field_starts: tuple[int, int] = (0, 0)

    @property
    def shortened(self) -> bool:
        """Whether truncation removed tokens."""
        return self.removed > 0


def encode_items(
    tokenizer: Any, layout: Layout, items: Iterable[Sequence[Any]], max_length: int
) -> list[Encoded]:
    """Encode texts of a layout (JudgeSpec has three), each in at most `max_length` tokens.

    items: the fields of the layout in their order, (prompt, first, second) or (prompt, response); a prompt is text or
    messages. Longer items are truncated inside the responses, then inside the prompt, never at the tail, and equally
    in both orders. A text that occurs several times is tokenized once.
    """
    return ItemEncoder(tokenizer, layout, max_length).encode(items)


def encode_fitting_items(
    tokenizer: Any, layout: Layout, items: Iterable[Sequence[Any]], max_length: int
) -> list[Encoded | None]:
    """`encode_items` without truncation: None for an item of more than `max_length` tokens."""
    encoder = ItemEncoder(tokenizer, layout, max_length)
    return [encoder.whole(item) for item in encoder.prepare(items)]


class _FieldText(NamedTuple):
    """The text of a field as it is shown."""

    text: str
    escaped: int
    replaced: int


_Item = dict[str, _FieldText]


class ItemEncoder:
    """`encode_items` in several calls; every distinct text of all of them is cleaned and tokenized once."""

    def __init__(self, tokenizer: Any, layout: Layout, max_length: int):
        self.max_length = max_length
        self._encoder, self._guard = text_encoder(tokenizer), layout_guard(layout)
        self._table = TokenTable(self._encoder, layout)
        self._table.check_room(max_length)
        self._cleaned: dict[str, _FieldText] = {}

    def encode(self, items: Iterable[Sequence[Any]]) -> list[Encoded]:
        """Encode comparisons, as `encode_items` does."""
        return [self.truncated(item) for item in self.prepare(items)]

    def prepare(self, items: Iterable[Sequence[Any]]) -> list[_Item]:
        """The items by field as they are shown, their texts tokenized in one call."""
        fields, shown = self._table.fields, []
        for item in items:
            check_list(item, f"({', '.join(fields)})")
            shown.append(dict(zip(fields, map(self._clean, item), strict=True)))
        self._table.add((name, field.text) for item in shown for name, field in item.items())
        return shown

    def whole(self, item: _Item) -> Encoded | None:
        """The encoded item, or None if it does not fit."""
        texts = {name: field.text for name, field in item.items()}
        return self._encode(item, texts) if self._table.total(texts) <= self.max_length else None

    def truncated(self, item: _Item) -> Encoded:
        """The encoded item, shortened if it does not fit."""
        texts = {name: field.text for name, field in item.items()}
        removed = 0
        if (total := self._table.total(texts)) > self.max_length:
            space = self.max_length - self._table.const_tokens
            texts = truncate_fields(self._table, texts, space)
            removed = total - self._table.total(texts)
        return self._encode(item, texts, removed)

    def _encode(self, item: _Item, texts: Mapping[str, str], removed: int = 0) -> Encoded:
        tokens, weights, starts, size = [], [], {}, 0
        for segment in self._table.segments:
            found = segment.tokens
            if segment.field:
                head, body = self._table.tokens(segment.field, texts[segment.field])
                starts[segment.field] = size + len(head)
                found = np.concatenate([head, body])
            tokens.append(found)
            weights.append(np.full(len(found), segment.weight, np.float32))
            size += len(found)
        return Encoded(
            tokens=np.concatenate(tokens),
            weights=np.concatenate(weights),
            removed=removed,
            escaped=sum(field.escaped for field in item.values()),
            replaced=sum(field.replaced for field in item.values()),
            identical="first" in texts and texts["first"] == texts["second"],
            field_starts=(starts.get("first", 0), starts.get("second", 0)),
        )

    def _clean(self, value: Any) -> _FieldText:
        """A field's value as it is shown: text, or messages under their turn headers."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            return self._clean_text(value)
        turns = turns_of(value)
        parts = [self._clean_text(turn.content) for turn in turns]
        shown = [Message(turn.role, x.text) for turn, x in zip(turns, parts, strict=True)]
        text = render_turns(shown)
        return _FieldText(text, sum(x.escaped for x in parts), sum(x.replaced for x in parts))

    def _clean_text(self, text: Any) -> _FieldText:
        if not isinstance(text, str) or text not in self._cleaned:
            repaired, replaced = self._encoder.clean(text)
            self._cleaned[text] = _FieldText(*self._guard.escape(repaired), replaced)
        return self._cleaned[text]
