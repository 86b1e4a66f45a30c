"""Conversations: a prompt as messages, and several turns as one text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gram_jax.errors import DataError

ROLES = ("system", "user", "assistant", "tool")

_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,40}")


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


def turns_of(prompt: PromptLike) -> tuple[tuple[str, str], ...]:
    """(role, content) of every turn. Raises DataError for anything but text and messages."""
    if isinstance(prompt, str):
        return (("user", prompt),)
    if not (turns := tuple(map(_role_and_content, prompt))):
        raise DataError("a prompt has at least one message; found an empty list.")
    return turns


def _role_and_content(message: Any) -> tuple[str, str]:
    if isinstance(message, str):
        raise DataError(
            f"a prompt is one text, or a list of messages with role and content; found a list with {message!r:.60}."
        )
    if isinstance(message, Mapping):
        role, content = message.get("role"), message.get("content")
    else:
        role, content = getattr(message, "role", None), getattr(message, "content", None)
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise DataError(
            f"a message's role is a word of at most 40 of A-Z, a-z, 0-9, '_', '.', '-'; found {role!r:.80}."
        )
    if not isinstance(content, str):
        raise DataError(
            f"the content of a {role} message is text; found {type(content).__name__} ({content!r:.60})."
        )
    return role, content


def render_turns(turns: Sequence[tuple[str, str]]) -> str:
    """A conversation as text: a single user turn unchanged, several turns each under a header line.

    The map is injective if no content has a header line (guard.py escapes them).
    """
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n".join(f"[{role} turn]\n{content}" for role, content in turns)
