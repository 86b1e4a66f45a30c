"""Reading the columns of a row. Each function returns a checked value or raises BadField."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gram_jax.judge.messages import BadField, Seen, text_value
from gram_jax.limits import MAX_TEXT

Fields = Mapping[str, Any]
LARGEST = sys.float_info.max

# Columns that say something about a row and are no part of what is judged.
IDS = ("id", "pair_id", "pair_uid", "prompt_id", "question_id", "uid")
SOURCES = ("source", "subset", "domain")


@dataclass(frozen=True)
class Unreadable:
    """A value that a source holds and Python does not: text that is not UTF-8, a time out of range."""

    why: str


def column(row: Fields, path: str) -> Any:
    """The value of a required column. "a.b" is a field inside a column, "a[].b" that field of every item of a list."""
    if path in row:
        return row[path]
    if "[]" in path:
        before, after = path.split("[]", 1)
        items = column(row, before)
        if not isinstance(items, list | tuple):
            raise BadField(before, "a list", items)
        if not after:
            return list(items)
        return [_inside(item, after[1:], f"{before}[{at}]") for at, item in enumerate(items)]
    first, *rest = path.split(".", 1)
    if first not in row:
        raise BadField(first, "this field", Seen(f"only the fields {', '.join(map(str, row))}"))
    return _inside(row[first], rest[0], first) if rest else row[first]


def _inside(value: Any, path: str, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise BadField(where, f"an object with {path}", value)
    return column(value, path)


def text_of(row: Fields, field: str) -> str:
    """A column of text."""
    return text_value(column(row, field), field)


def optional_text(row: Fields, field: str) -> str:
    """A column of text, or "" if it is missing or null."""
    return "" if row.get(field) is None else text_of(row, field)


def list_of(row: Fields, field: str) -> list[Any]:
    """A column that is a list."""
    value = column(row, field)
    if not isinstance(value, list | tuple):
        raise BadField(field, "a list", value)
    return list(value)


def number_value(value: Any, field: str) -> float:
    """The value if it is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -LARGEST < value < LARGEST:
        raise BadField(field, "a finite number", value)
    return float(value)


def optional_number(row: Fields, field: str) -> float | None:
    """A finite number, or None if the column is missing or null."""
    return None if row.get(field) is None else number_value(row[field], field)


def id_of(row: Fields) -> str:
    """The id of a row, "" if it has none."""
    for field in IDS:
        value = row.get(field)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            check_encodable(row, [str(value)])
            return str(value)
    return ""


def source_of(row: Fields) -> str:
    """The data set or subset that a row states, or ""."""
    for field in SOURCES:
        if isinstance(row.get(field), str):
            check_encodable(row, [row[field]])
            return row[field]
    return ""


def check_encodable(row: Fields, texts: Sequence[str]) -> None:
    """Raises BadField for a row if one of its texts is too long or has a lone surrogate.

    A lone surrogate is the half of a character that was cut; it cannot be tokenized.
    """
    if (longest := max(map(len, texts), default=0)) > MAX_TEXT:
        expected = (
            f"texts of at most {MAX_TEXT:,} characters (GRAM_JAX_MAX_TEXT_MILLION_CHARACTERS)"
        )
        raise BadField("the row", expected, Seen(f"{longest:,}"))
    if not all(map(_is_encodable, texts)):
        # text inside JSON text has no path of its own
        field, text = next(_damaged(row, ""), ("the row", "".join(texts)))
        at = next(i for i, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
        raise BadField(
            field, f"text without lone surrogates (position {at})", text[max(0, at - 10) : at + 11]
        )


def _is_encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _damaged(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, text) of every text of a row that UTF-8 cannot encode."""
    if isinstance(value, str) and not _is_encodable(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _damaged(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _damaged(item, f"{path}[{at}]")
