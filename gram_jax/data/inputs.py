"""Inputs of the Python API, pairs and lists: tuples of texts or messages, rows of any schema, and records."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from gram_jax.data.reading import parse_row
from gram_jax.data.records import Candidates, Comparison
from gram_jax.errors import DataError, GramWarning
from gram_jax.judge.messages import (
    Message,
    Notes,
    PromptLike,
    as_prompt,
    check_list,
    checked_prompt,
    note_control_tokens,
    read_messages,
    read_response,
)

PairTexts = tuple[PromptLike, str, str]  # prompt, first response, second response
ListTexts = tuple[PromptLike, Sequence[str]]  # prompt, responses


def pairs_of(items: Iterable[Any]) -> Iterator[PairTexts]:
    """(prompt, first, second) of each item: such a tuple, a row as a mapping, or a Comparison.

    Raises DataError, with the index of the item, for anything else and for rows that are no single pair.

    >>> list(pairs_of([{"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine."}]))
    [((Message(role='user', content='Name a prime.'),), 'Seven.', 'Nine.')]
    """
    for place, item, notes in _items(items, "comparison", "pair", Comparison):
        if isinstance(item, Comparison):
            yield item.prompt, item.first, item.second
        else:
            prompt, first, second = _fields(item, place, ("prompt", "first", "second"))
            yield (
                _prompt(prompt, place, notes),
                _response(first, f"{place}, first", notes),
                _response(second, f"{place}, second", notes),
            )


def lists_of(items: Iterable[Any]) -> Iterator[ListTexts]:
    """(prompt, responses) of each item: such a tuple, a row as a mapping, or Candidates."""
    for place, item, notes in _items(items, "list", "candidates", Candidates):
        if isinstance(item, Candidates):
            yield item.prompt, item.responses
        else:
            prompt, responses = _fields(item, place, ("prompt", "responses"))
            check_list(responses, f"a list of responses in {place}")
            if not isinstance(responses, Iterable):
                raise DataError(f"{place}: expected a list of responses, found {_shown(responses)}")
            yield (
                _prompt(prompt, place, notes),
                [
                    _response(text, f"{place}, response {i}", notes)
                    for i, text in enumerate(responses)
                ],
            )


def _items(
    items: Iterable[Any], noun: str, kind: Literal["pair", "candidates"], record: type
) -> Iterator[tuple[str, Any, Notes]]:
    """(place, item, notes) of each item, rows as records. A warning follows for what the notes count."""
    check_list(items, f"a list of {noun}s")
    for at, item in enumerate(items):
        place, notes = f"{noun} {at}", Counter[str]()
        if isinstance(item, Mapping):
            item = _only(parse_row(item, kind, place, notes), place, record)
        yield place, item, notes
        for what in notes:  # the same words every time: Python shows a repeated warning once
            warnings.warn(f"some comparisons have {what}", category=GramWarning, stacklevel=3)


def _only(records: Sequence[Any], place: str, kind: type) -> Any:
    if len(records) != 1 or not isinstance(records[0], kind):
        raise DataError(
            f"{place}: a row with {len(records)} pairs; read_records reads such rows, and its records can be passed"
        )
    return records[0]


def _fields(item: Any, place: str, names: tuple[str, ...]) -> Sequence[Any]:
    expected = f"({', '.join(names)}), a row of a known schema, or a record"
    if isinstance(item, str | bytes) or not isinstance(item, Sequence):
        raise DataError(f"{place}: expected {expected}, found {_shown(item)}")
    if len(item) != len(names):
        raise DataError(f"{place}: expected {expected}, found {len(item)} values: {_shown(item)}")
    return item


def _prompt(value: Any, place: str, notes: Notes) -> PromptLike:
    prompt: Any = value
    if not isinstance(value, str) and not _are_messages(value):
        field = f"{place}, prompt"
        prompt = checked_prompt(read_messages(value, field, notes), field)
    note_control_tokens((turn.content for turn in as_prompt(prompt)), notes)
    return prompt


def _are_messages(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(x, Message) for x in value)


def _response(value: Any, place: str, notes: Notes) -> str:
    text = value if isinstance(value, str) else read_response(value, place, notes)
    note_control_tokens([text], notes)
    return text


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.100}"
