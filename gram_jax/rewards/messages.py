"""Prompts and completions of trainers as the judge's prompts and texts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gram_jax.errors import DataError
from gram_jax.judge.messages import ROLES, Message, Prompt, as_prompt

# Chat formats in which trainers render prompts: start of a turn with its role, and its end.
_FORMATS = (
    (r"<\|im_start\|>(\w+)\n", r"<\|im_end\|>"),
    (r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n", r"<\|eot_id\|>"),
    (r"<start_of_turn>(\w+)\n", r"<end_of_turn>"),
)
_ROLE = {"model": "assistant", "human": "user"}
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>")


def prompt_of(value: Any) -> Prompt:
    """A prompt from plain text, from messages ({"role", "content"}), or from text rendered in a chat format.

    Rendered text is parsed, since the judge has its own format: ChatML, Llama 3 and Gemma are known, other text is a
    user's message. Turns of the assistant at the end are dropped. Raises DataError for anything but text and messages.

    >>> [message.content for message in prompt_of("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n")]
    ['Hi']
    """
    text = isinstance(value, str)
    turns = (_turns(value) or ()) if text else tuple(map(_message, _messages(value)))
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns and not text:
        raise DataError(f"a prompt without a user's turn: {_shown(value)}")
    return turns or as_prompt(value)


def completion_of(value: Any) -> str:
    """A response from plain text, or from messages: those of the assistant, joined.

    Results of tools are left out; a tool call without text is empty. End tokens of the policy are removed.

    >>> completion_of([{"role": "assistant", "content": "Yes.<|im_end|>"}])
    'Yes.'
    """
    if isinstance(value, str):
        return without_ends(value)
    turns = list(map(_message, _messages(value)))
    said = [turn.content for turn in turns if turn.role == "assistant"]
    if turns and not said:
        raise DataError(f"a response without an assistant's turn: {_shown(value)}")
    return without_ends("\n".join(text for text in said if text))


def without_ends(text: str) -> str:
    """Without end tokens at its end.

    >>> without_ends("Yes.</s> <|im_end|>\\n")
    'Yes.'
    """
    while True:
        shorter = text.rstrip()
        for end in ENDS:
            shorter = shorter.removesuffix(end)
        if shorter == text:
            return text
        text = shorter


def conversation_of(text: str) -> tuple[Prompt, str]:
    """(prompt, response) of a rendered conversation with its response at the end.

    Raises DataError if the chat format is not known or the last turn is not the assistant's.
    """
    turns = _turns(text)
    if turns is None or turns[-1].role != "assistant" or len(turns) < 2:
        raise DataError(
            "expected a conversation in ChatML, Llama 3's or Gemma's format that ends with the assistant's response"
        )
    return turns[:-1], without_ends(turns[-1].content)


def _turns(text: str) -> Prompt | None:
    for start, end in _FORMATS:
        found = re.findall(rf"{start}(.*?)(?:{end}|\Z)", text, flags=re.DOTALL)
        turns = tuple(Message(_ROLE.get(role) or role, said) for role, said in found)
        if turns and all(turn.role in ROLES for turn in turns):
            return turns
    return None


def _messages(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return value
    raise DataError(f"expected text or a list of messages, found {_shown(value)}")


def _message(turn: Any) -> Message:
    if isinstance(turn, Message):
        return turn
    given = turn if isinstance(turn, Mapping) else {}
    content, role = given.get("content"), str(given.get("role", "assistant"))
    role = _ROLE.get(role, role)
    if content is None and given.get("tool_calls"):
        content = ""
    if isinstance(content, list | tuple):  # parts, as in multimodal chats
        content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    if not isinstance(content, str) or role not in ROLES:
        raise DataError(
            f"expected a message with role ({', '.join(ROLES)}) and content, found {_shown(turn)}"
        )
    return Message(role, content)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.120}"
