"""Inputs of the Python API, pairs and lists: tuples of texts or messages, rows of any schema, and records."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gram_jax.data.reading import parse_row
from gram_jax.data.records import Candidates, Comparison
from gram_jax.errors import DataError, GramWarning
from gram_jax.judge.messages import (
    Message,
    Notes,
    PromptLike,
    check_list,
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
    check_list(items, "a list of comparisons")
    for at, item in enumerate(items):
        place, notes = f"comparison {at}", Counter[str]()
        if isinstance(item, Mapping):
            (item,) = _only(parse_row(item, "pair", place, notes), place, Comparison)
        if isinstance(item, Comparison):
            yield item.prompt, item.first, item.second
        else:
            prompt, first, second = _fields(item, place, ("prompt", "first", "second"))
            yield (
                _prompt(prompt, place, notes),
                _response(first, f"{place}, first", notes),
                _response(second, f"{place}, second", notes),
            )
        _warn(notes)


def lists_of(items: Iterable[Any]) -> Iterator[ListTexts]:
    """(prompt, responses) of each item: such a tuple, a row as a mapping, or Candidates."""
    check_list(items, "a list of lists of responses")
    for at, item in enumerate(items):
        place, notes = f"list {at}", Counter[str]()
        if isinstance(item, Mapping):
            (item,) = _only(parse_row(item, "candidates", place, notes), place, Candidates)
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
        _warn(notes)


def _only(records: Sequence[Any], place: str, kind: type) -> Sequence[Any]:
    if len(records) != 1 or not isinstance(records[0], kind):
        raise DataError(
            f"{place}: a row with {len(records)} pairs; read_records reads such rows, and its records can be passed"
        )
    return records


def _fields(item: Any, place: str, names: tuple[str, ...]) -> Sequence[Any]:
    expected = f"({', '.join(names)}), a row of a known schema, or a record"
    if isinstance(item, str | bytes) or not isinstance(item, Sequence):
        raise DataError(f"{place}: expected {expected}, found {_shown(item)}")
    if len(item) != len(names):
        raise DataError(f"{place}: expected {expected}, found {len(item)} values: {_shown(item)}")
    return item


def _prompt(value: Any, place: str, notes: Notes) -> PromptLike:
    if isinstance(value, str) or (
        isinstance(value, tuple) and value and isinstance(value[0], Message)
    ):
        return value
    return read_messages(value, f"{place}, prompt", notes)


def _response(value: Any, place: str, notes: Notes) -> str:
    return value if isinstance(value, str) else read_response(value, place, notes)


def _warn(notes: Notes) -> None:
    for kind in notes:  # the same words every time: Python shows a repeated warning once
        warnings.warn(f"some comparisons have {kind}", category=GramWarning, stacklevel=3)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.100}"
