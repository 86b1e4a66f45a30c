"""Reading the fields of a row. Each function returns a checked value or raises BadField."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gram_jax.judge.messages import Message, Prompt

Fields = Mapping[str, Any]


class Seen(str):
    """A description of the value found, shown in messages without quotes."""


class BadField(Exception):
    """A field does not match its schema. The reader adds file and line."""

    def __init__(self, field: str, expected: str, found: Any):
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"field {field!r}: expected {expected}, found {_show(found)}")


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, Seen):
        return str(value)
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def text_value(value: Any, field: str) -> str:
    """The value if it is text that UTF-8 can encode (a lone surrogate cannot be tokenized)."""
    if not isinstance(value, str):
        raise BadField(field, "text", value)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            where = f"text without lone surrogates (position {error.start})"
            raise BadField(field, where, value[max(0, error.start - 10) : error.end + 10]) from None
    return value


def number_value(value: Any, field: str) -> float:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
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


_ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}


def messages_value(value: Any, field: str) -> Prompt:
    """Messages from [{role, content}], [{from, value}] or a dict of their columns."""
    if isinstance(value, Mapping) and all(isinstance(v, list | tuple) for v in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) > 1:
            raise BadField(field, "columns of one length", value)
        value = [dict(zip(value, item, strict=True)) for item in zip(*columns, strict=True)]
    if not isinstance(value, list | tuple) or not value:
        raise BadField(field, "a list of messages with role and content", value)
    return tuple(_message(item, f"{field}[{i}]") for i, item in enumerate(value))


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadField(field, "a message with role and content", value)
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    role = _ROLE_NAMES.get(str(value.get(role_key)).lower())
    if role is None:
        known = f"one of {', '.join(_ROLE_NAMES)}"
        raise BadField(f"{field}.{role_key}", known, value.get(role_key))
    return Message(role, text_value(value.get(content_key), f"{field}.{content_key}"))


def prompt_value(prompt: Prompt, field: str) -> Prompt:
    """The prompt if its last turn is the user's or a tool's and not empty."""
    if not prompt:
        raise BadField(field, "at least one turn before the response", Seen("none"))
    if prompt[-1].role not in ("user", "tool"):
        last = Seen(f"the {prompt[-1].role}'s last")
        raise BadField(field, "a prompt that ends with the user's turn", last)
    if not prompt[-1].content.strip():
        raise BadField(field, "a prompt that is not empty", prompt[-1].content)
    return prompt


def question_of(row: Fields, field: str) -> Prompt:
    """A prompt field: text, or a list of messages."""
    value = need(row, field)
    if isinstance(value, str):
        return prompt_value((Message("user", text_value(value, field)),), field)
    if isinstance(value, list | tuple | Mapping):
        return prompt_value(messages_value(value, field), field)
    raise BadField(field, "text or a list of messages", value)


def answer_value(messages: Prompt, field: str) -> str:
    """The text of the assistant turn after the prompt, which must be the only turn."""
    if len(messages) != 1:
        raise BadField(field, "one assistant turn after the prompt", Seen(f"{len(messages)} turns"))
    if messages[0].role != "assistant":
        raise BadField(field, "an assistant turn as response", Seen(f"a {messages[0].role} turn"))
    return messages[0].content


def split_shared(first: Prompt, second: Prompt, fields: tuple[str, str]) -> tuple[Prompt, str, str]:
    """(shared prompt, first response, second response) of two whole conversations."""
    if first[:-1] != second[:-1]:
        found = Seen(f"a difference at turn {common_length(first, second) + 1}")
        raise BadField(fields[1], f"the turns of {fields[0]} up to the last", found)
    prompt = prompt_value(first[:-1], fields[0])
    return prompt, answer_value(first[-1:], fields[0]), answer_value(second[-1:], fields[1])


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Number of equal items at the start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


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
