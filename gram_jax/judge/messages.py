"""Conversations: the one reader of messages, and the text of a conversation as a judge is shown it.

Data files, Python, the server and the trainers all read messages here. What a judge cannot be shown is an error that
names it (images, audio), or counted by one of the NOTES (reasoning, turns after the response, missing content).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gram_jax.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
# The names of the roles in other formats.
ROLE_NAMES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
} | {role: role for role in ROLES}

# What is read but not shown, or shown as an empty text; a Counter of these is passed with the messages.
REASONING = "reasoning not shown"
NO_CONTENT = "messages without content"
AFTER_RESPONSE = "turns after the response not shown"
PREFILL = "the assistant's turns at the end of a prompt not shown"
CONTROL = "texts with control tokens of a chat format, shown as text"
NOTES = (REASONING, NO_CONTENT, AFTER_RESPONSE, PREFILL, CONTROL)
Notes = Counter[str]
# Of the chat formats in use. A judge reads them as plain text.
_CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_header_id|>", "<|end|>",
                   "<|user|>", "<|assistant|>", "<start_of_turn>", "<end_of_turn>", "[/INST]", "<｜")  # fmt: skip

_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Where other formats hold the content of a message, and the arguments of a call.
_CONTENT_KEYS = ("content", "value", "text", "parts", "message")
ARGUMENT_KEYS = ("arguments", "parameters", "input", "args")
_CALL_KEYS = {"name", "id", "call_id", "type", "index", "function"}
MEDIA = ("images", "image", "videos", "video", "audios", "audio")


class Seen(str):
    """A description of the value found, shown in messages without quotes."""


class BadField(DataError):
    """The value of a field is not what is expected there."""

    def __init__(self, field: str, expected: str, found: Any):
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"field {field!r}: expected {expected}, found {_show(found)}")

    def __reduce__(self) -> tuple[type, tuple[str, str, Any]]:
        """Pickled with the description of the value, which need not be picklable."""
        return BadField, (self.field, self.expected, Seen(_show(self.found)))


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, Seen):
        return str(value)
    try:
        text = repr(value)
    except RecursionError:
        text = "nested too deeply"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


# The conversation before the response: at least one message; the last one is not the assistant's.
Prompt = tuple[Message, ...]
# A string is one user turn; otherwise messages with a role and a content (objects or mappings).
PromptLike = str | Sequence[Any]


def as_prompt(prompt: str | Iterable[Message]) -> Prompt:
    """A conversation of one user turn if `prompt` is text, else its messages."""
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)


def turns_of(prompt: PromptLike) -> Prompt:
    """The turns of text or messages. Raises BadField for anything else."""
    return as_prompt(prompt) if isinstance(prompt, str) else read_messages(prompt, "prompt")


def render_turns(turns: Sequence[Message]) -> str:
    """A conversation as text: a single user turn unchanged, several turns each under a header line.

    The map is injective if no content has a header line (guard.py escapes them).
    """
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return "\n".join(f"[{turn.role} turn]\n{turn.content}" for turn in turns)


def check_list(value: Any, what: str) -> None:
    """Raises DataError for a text, a mapping or a set: its letters, keys or unordered members are not the items."""
    if isinstance(value, str | bytes | Mapping | set | frozenset):
        raise DataError(f"expected {what}, found {type(value).__name__} {value!r:.60}")


def text_value(value: Any, field: str) -> str:
    """The value if it is text."""
    if not isinstance(value, str):
        raise BadField(field, "text", value)
    return value


def note_control_tokens(texts: Iterable[str], notes: Notes) -> None:
    """Count texts of one comparison that are rendered in a chat format, or hold its control tokens."""
    if any(token in text for text in texts for token in _CONTROL_TOKENS):
        notes[CONTROL] += 1


def read_messages(value: Any, field: str, notes: Notes | None = None) -> Prompt:
    """Messages from a list of {role, content} or {from, value}, mappings or objects; from one; or from their columns.

    Parts of text are joined, calls of tools are written as `render_call` does. Raises BadField for anything else, and
    for images, audio and video.
    """
    if hasattr(value, "tolist"):  # an array, as some loaders pass it
        value = value.tolist()
    if isinstance(value, Mapping):
        value = _rows_of(value, field)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        raise BadField(field, "a list of messages with role and content", value)
    notes = Counter() if notes is None else notes
    return tuple(_message(item, f"{field}[{at}]", notes) for at, item in enumerate(value))


def read_prompt(
    value: Any, field: str, notes: Notes | None = None, *, system: Any = None, tools: Any = None
) -> Prompt:
    """The conversation before a response, from text or messages; its last turn is the user's or a tool's.

    system: the text of a system turn that is stored apart; tools: the definitions of the tools, which are shown at the
    end of the system turn. Raises BadField for an empty prompt and one that ends with another turn.
    """
    if isinstance(value, str):
        turns: Prompt = (Message("user", text_value(value, field)),)
    elif value is None or isinstance(value, int | float):
        raise BadField(field, "text or a list of messages", value)
    else:
        turns = read_messages(value, field, notes)
    return checked_prompt(with_system(turns, system, tools), field)


def with_system(turns: Prompt, system: Any = None, tools: Any = None) -> Prompt:
    """The turns with a system turn of this text, and with the definitions of tools in it."""
    text = "" if system is None else text_value(system, "system")
    own = turns[0].content if turns and turns[0].role == "system" else ""
    if text and own and text != own:
        raise BadField("system", "the text of the system turn that the messages begin with", text)
    parts = [part for part in (own or text, _shown_tools(tools)) if part]
    rest = turns[1:] if turns and turns[0].role == "system" else turns
    return (Message("system", "\n\n".join(parts)), *rest) if parts else turns


def checked_prompt(prompt: Prompt, field: str) -> Prompt:
    """The prompt if its last turn is the user's or a tool's and not empty."""
    if not prompt:
        raise BadField(field, "at least one turn before the response", Seen("none"))
    if prompt[-1].role not in ("user", "tool"):
        last = Seen(f"the {prompt[-1].role}'s last")
        raise BadField(field, "a prompt that ends with the user's turn", last)
    if not prompt[-1].content.strip():
        raise BadField(field, "a prompt that is not empty", prompt[-1].content)
    return prompt


def read_response(value: Any, field: str, notes: Notes | None = None) -> str:
    """The text of a response, from text or from messages that begin with the assistant's or a tool's turn."""
    if isinstance(value, str):
        return text_value(value, field)
    if value is None or isinstance(value, int | float):
        raise BadField(field, "text or a list of messages", value)
    return response_text(read_messages(value, field, notes), field, notes)


def response_text(turns: Prompt, field: str, notes: Notes | None = None) -> str:
    """The text of the turns of a response: one turn as it is, several as `render_response` shows them.

    Turns after the assistant's last one are no part of it and are counted.
    """
    answered = _until_answer(turns, notes)
    if not answered:
        raise BadField(field, "an assistant's turn", Seen(f"{len(turns)} of other roles"))
    if answered[0].role not in ("assistant", "tool"):
        found = Seen(f"a {answered[0].role} turn first")
        raise BadField(field, "a response that begins with the assistant's turn", found)
    return render_response(answered)


def render_response(turns: Prompt) -> str:
    """Turns of a response as text: what the assistant said, and results of tools in the form of Qwen and Hermes.

    If the user spoke again, every turn is under its header, as in a prompt.
    """
    if all(turn.role in ("assistant", "tool") for turn in turns):
        said = (t.content if t.role == "assistant" else _tool_result(t.content) for t in turns)
        return "\n".join(text for text in said if text)
    return render_turns(turns)


def split_conversations(
    first: Prompt, second: Prompt, fields: tuple[str, str], notes: Notes | None = None
) -> tuple[Prompt, str, str]:
    """(shared prompt, first response, second response) of two whole conversations.

    The prompt is the turns that both begin with, up to the last before an assistant's turn.
    """
    first, second = (_until_answer(turns, notes) for turns in (first, second))
    for turns, field in zip((first, second), fields, strict=True):
        if not turns:
            raise BadField(field, "a conversation with the assistant's turn", Seen("none"))
    same = min(common_length(first, second), len(first) - 1, len(second) - 1)
    while same and first[same - 1].role not in ("user", "tool"):
        same -= 1
    if not same:
        raise BadField(fields[1], f"the turns that {fields[0]} begins with", Seen("others"))
    answer, other = (response_text(turns[same:], fields[0]) for turns in (first, second))
    return checked_prompt(first[:same], fields[0]), answer, other


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Number of equal items at the start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def render_call(name: str, arguments: Any) -> str:
    """A call of a tool as the chat templates of Qwen and Hermes write it.

    arguments: a mapping, or its JSON, which is written anew so that both give the same text; text that is not JSON
    stays as it is.

    >>> print(render_call("weather", '{"city":"Oslo"}'))
    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return _call(name, arguments)
    return _call(name, _json({} if arguments is None else arguments))


def _call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": {_json(name)}, "arguments": {arguments}}}\n</tool_call>'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _tool_result(content: str) -> str:
    return f"<tool_response>\n{content}\n</tool_response>"


def _shown_tools(tools: Any) -> str:
    """Definitions of tools, a list or its JSON, one a line."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            return text_value(tools, "tools") and f"<tools>\n{tools}\n</tools>"
    if not tools:
        return ""
    lines = "\n".join(map(_json, tools if isinstance(tools, list | tuple) else [tools]))
    return f"<tools>\n{text_value(lines, 'tools')}\n</tools>"


def _until_answer(turns: Prompt, notes: Notes | None) -> Prompt:
    """The turns up to the assistant's last one; those after it are counted."""
    end = len(turns)
    while end and turns[end - 1].role != "assistant":
        end -= 1
    if notes is not None and end and end < len(turns):
        notes[AFTER_RESPONSE] += 1
    return turns[:end]


def _rows_of(columns: Mapping[str, Any], field: str) -> list[Any]:
    """Messages stored as columns, or one message."""
    values = list(columns.values())
    if not values or not all(isinstance(value, list | tuple) for value in values):
        return [columns] if {"role", "from"} & columns.keys() else []
    if len({len(column) for column in values}) > 1:
        raise BadField(field, "columns of one length", columns)
    return [dict(zip(columns, item, strict=True)) for item in zip(*values, strict=True)]


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)


def _message(item: Any, field: str, notes: Notes) -> Message:
    if isinstance(item, Message):
        return item
    role_key, content_key = ("role", "content")
    if _get(item, "role") is None and _get(item, "from") is not None:
        role_key, content_key = ("from", "value")
    given = _get(item, role_key)
    if isinstance(item, str) or (given is None and not isinstance(item, Mapping)):
        raise BadField(field, "a message with role and content", item)
    role = ROLE_NAMES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        raise BadField(f"{field}.{role_key}", f"one of {', '.join(ROLE_NAMES)}", given)
    for key in MEDIA:
        if _get(item, key):
            raise BadField(f"{field}.{key}", "a message of text: a judge reads no media", Seen(key))
    if any(_get(item, key) for key in _REASONING_KEYS):
        notes[REASONING] += 1
    content = _content(_get(item, content_key), f"{field}.{content_key}", notes)
    if given == "function_call":
        content = _written_call(content)
    content = _get(item, "refusal") if content is None and _get(item, "refusal") else content
    calls = _calls(item, field)
    if content is None:
        other = next((key for key in _CONTENT_KEYS if _get(item, key) is not None), None)
        if other or (role in ("system", "user") and not calls):
            found = Seen(f"it under {other}") if other else None
            raise BadField(f"{field}.{content_key}", "text or a list of parts", found)
    if content is None and not calls:
        notes[NO_CONTENT] += 1
    shown = "\n".join(part for part in (content, *calls) if part)
    return Message(role, text_value(shown, f"{field}.{content_key}"))


def _content(value: Any, field: str, notes: Notes) -> str | None:
    if value is None or isinstance(value, str):
        return value if value is None else text_value(value, field)
    if not isinstance(value, list | tuple):
        raise BadField(field, "text or a list of parts", value)
    texts, calls = [], []
    for at, part in enumerate(value):
        shown = _part(part, f"{field}[{at}]", notes)
        (calls if _get(part, "type") == "tool_use" else texts).append(shown)
    return "\n".join(text for text in ("".join(texts), *calls) if text)


def _part(part: Any, field: str, notes: Notes) -> str:
    """The text of a part of a content. Raises BadField for one that is not text."""
    if isinstance(part, str):
        return text_value(part, field)
    kind = _get(part, "type")
    if kind in _REASONING_PARTS:
        notes[REASONING] += 1
        return ""
    if kind == "tool_use":
        return render_call(text_value(_get(part, "name"), f"{field}.name"), _arguments(part, field))
    if kind == "tool_result":
        return _content(_get(part, "content"), f"{field}.content", notes) or ""
    if kind == "refusal":
        return text_value(_get(part, "refusal"), f"{field}.refusal")
    if kind in _TEXT_PARTS or (kind is None and isinstance(_get(part, "text"), str)):
        return text_value(_get(part, "text"), f"{field}.text")
    raise BadField(f"{field}.type", "text: a judge reads no images, audio or other parts", kind)


def _calls(item: Any, field: str) -> list[str]:
    """The calls of tools of a message."""
    given = _get(item, "tool_calls") or []
    if old := _get(item, "function_call"):
        given = [*given, old]
    if not isinstance(given, list | tuple):
        raise BadField(f"{field}.tool_calls", "a list of calls", given)
    calls = []
    for at, call in enumerate(given):
        what = _get(call, "function") or call
        name = text_value(_get(what, "name"), f"{field}.tool_calls[{at}].name")
        calls.append(render_call(name, _arguments(what, f"{field}.tool_calls[{at}]")))
    return calls


def _arguments(call: Any, field: str) -> Any:
    """The arguments of a call, under any of their names. Raises BadField if they may be under another one."""
    for key in ARGUMENT_KEYS:
        if (found := _get(call, key)) is not None:
            return found
    others = {key for key in call if call[key] is not None} if isinstance(call, Mapping) else set()
    if others := others - _CALL_KEYS - set(ARGUMENT_KEYS):
        found = Seen(f"only {', '.join(sorted(map(str, others)))}")
        raise BadField(f"{field}.arguments", "the arguments of the call", found)
    return None


def _written_call(content: str | None) -> str | None:
    """The content of a "function_call" turn: the JSON of a call or of several, or text."""
    try:
        found = json.loads(content or "")
        found = found if isinstance(found, list) else [found]
        calls = ((call["name"], _arguments(call, "call")) for call in found)
        return "\n".join(render_call(name, arguments) for name, arguments in calls)
    except (BadField, ValueError, TypeError, KeyError, RecursionError):
        return content
