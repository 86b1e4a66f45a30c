"""Reading the fields of a row. Each function returns a checked value or raises BadField."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gram_jax.judge.messages import (
    BadField,
    Prompt,
    Seen,
    checked_prompt,
    read_messages,
    read_prompt,
    response_text,
    split_conversations,
    text_value,
)
from gram_jax.judge.messages import (
    common_length as common_length,
)
from gram_jax.limits import MAX_TEXT

Fields = Mapping[str, Any]
LARGEST = sys.float_info.max


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


def number_value(value: Any, field: str) -> float:
    """The value if it is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -LARGEST < value < LARGEST:
        raise BadField(field, "a finite number", value)
    return float(value)


def optional_number(row: Fields, field: str) -> float | None:
    """A finite number, or None if the field is missing or null."""
    return None if row.get(field) is None else number_value(row[field], field)


def text_of(row: Fields, field: str) -> str:
    """A field of text."""
    return text_value(need(row, field), field)


def need(row: Fields, field: str) -> Any:
    """The value of a required field."""
    if field not in row:
        raise BadField(field, "this field", Seen(f"only the fields {', '.join(map(str, row))}"))
    return row[field]


def optional_text(row: Fields, field: str) -> str:
    """A field of text, or "" if it is missing or null."""
    return "" if row.get(field) is None else text_of(row, field)


def texts_of(row: Fields, field: str) -> tuple[str, ...]:
    """A field that is a list of texts."""
    value = need(row, field)
    if not isinstance(value, list | tuple):
        raise BadField(field, "a list of texts", value)
    return tuple(text_value(item, f"{field}[{i}]") for i, item in enumerate(value))


messages_value, prompt_value, split_shared = read_messages, checked_prompt, split_conversations
answer_value = response_text


def question_of(row: Fields, field: str) -> Prompt:
    """A prompt field: text, or a list of messages."""
    return read_prompt(need(row, field), field)


def id_of(row: Fields) -> str:
    """The id of a row, "" if it has none."""
    for field in ("id", "pair_id", "prompt_id", "uid"):
        value = row.get(field)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return text_value(str(value), field)
    return ""


def source_of(row: Fields) -> str:
    """The data set or subset that a row states, or ""."""
    for field in ("source", "subset", "domain"):
        if isinstance(row.get(field), str):
            return text_value(row[field], field)
    return ""
