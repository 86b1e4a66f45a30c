"""The chat format around a user's text, rendered once by the tokenizer's chat template and stored as text."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gram_jax.errors import JudgeError
from gram_jax.judge.tokens import tokenizer_name

# Some templates write today's date into the prompt. A score must not depend on the day, so the date is pinned: to
# the default of Llama 3's template.
PINNED_DATE = datetime.date(2024, 7, 26)

_ASKS_DATE = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")

# Letters only: templates trim blanks and some look for markup.
_USER, _ANSWER, _AGAIN = "SENTINELUSERTEXT", "SENTINELANSWERTEXT", "SENTINELUSERAGAIN"
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


@dataclass(frozen=True)
class ChatFrame:
    """The literal strings of a chat with one question.

    prefix: everything up to the user's text, with the beginning-of-text token and the system turn if there are any.
    generation_prompt: from the end of the user's text to the assistant's first token.
    end_of_turn: the token that closes the assistant's turn.
    """

    prefix: str
    generation_prompt: str
    end_of_turn: str


def chat_frame(
    tokenizer: Any, *, system: str | None, thinking: bool, date: datetime.date = PINNED_DATE
) -> ChatFrame:
    """The frame that the tokenizer's chat template puts around a single user message.

    system: None leaves the system turn to the template (several have a default); "" drops the
      system turn with any date in it, as in the reference GRAM training on Llama; other text
      becomes the system turn. Raises JudgeError if there is no template or it does not show the
      user's text exactly once.
    """
    opening = [{"role": "system", "content": system}] if system else []
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}

    def render(messages: list[dict[str, str]], prompt: bool) -> str:
        return _render(tokenizer, messages, prompt, thinking, date)

    prefix, generation_prompt = _around(render([*opening, user], True), _USER, tokenizer)
    dialogue = render([*opening, user, answer, {"role": "user", "content": _AGAIN}], True)
    between = _around(_around(dialogue, _AGAIN, tokenizer)[0], _ANSWER, tokenizer)[1]
    closing = _around(render([*opening, user, answer], False), _ANSWER, tokenizer)[1]
    if system == "":
        prefix = _without_system(tokenizer, prefix, between, closing)
    end_of_turn = closing.strip() or (tokenizer.eos_token or "")
    if not end_of_turn:
        raise JudgeError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template puts nothing after the assistant's turn and "
            "there is no eos_token. Set eos_token, so that an answer has an end."
        )
    return ChatFrame(prefix, generation_prompt, end_of_turn)


def dialogue_frames(
    tokenizer: Any,
    roles: Sequence[str],
    *,
    system: str | None,
    thinking: bool,
    date: datetime.date = PINNED_DATE,
) -> tuple[str, ...]:
    """The literal strings around the texts of a conversation: one more than there are turns.

    The last one ends at the assistant's next token. system: as in `chat_frame`, for conversations that do not begin
    with a system turn. Raises JudgeError if the template does not accept these roles, or does not show every text once
    and in order.
    """
    own = bool(roles) and roles[0] == "system"
    opening = [{"role": "system", "content": system}] if system and not own else []
    marks = [f"SENTINELTURN{at:05d}".translate(_LETTERS) for at in range(len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    rest = _render(tokenizer, [*opening, *turns], True, thinking, date)
    frames = []
    for mark in marks:
        frame, rest = _around(rest, mark, tokenizer)
        frames.append(frame)
    if system == "" and roles[0] == "user":
        frames[0] = chat_frame(tokenizer, system="", thinking=thinking, date=date).prefix
    return (*frames, rest)


def frame_shows_date(tokenizer: Any, *, thinking: bool) -> bool:
    """Whether the template writes a date into the prompt of a single user message."""
    message = [{"role": "user", "content": _USER}]
    day, other = PINNED_DATE, datetime.date(1999, 12, 31)
    return _render(tokenizer, message, True, thinking, day) != _render(
        tokenizer, message, True, thinking, other
    )


def _render(
    tokenizer: Any,
    messages: list[dict[str, str]],
    prompt: bool,
    thinking: bool,
    date: datetime.date,
) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise JudgeError(
            f"tokenizer {tokenizer_name(tokenizer)} has no chat template, so there is no place for the verdict. Use an "
            "instruction-tuned model, or put chat_template.jinja beside tokenizer.json."
        )
    template = _pin_date(tokenizer.get_chat_template(), date)
    try:
        # Templates ignore the last two if they do not use them.
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=prompt,
            enable_thinking=thinking,
            date_string=date.strftime("%d %b %Y"),
        )
    except Exception as error:  # jinja raises many kinds, and templates raise their own
        raise JudgeError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template fails on the roles "
            f"{[m['role'] for m in messages]}: {error}"
        ) from error


def _pin_date(template: str, date: datetime.date) -> str:
    """The template with the pinned date in place of every call that asks for today's.

    Such calls are replaced in the text, because transformers has no parameter for the function.
    """
    pinned = _ASKS_DATE.sub(lambda call: repr(date.strftime(call[2])), template)
    if re.search(r"strftime_now\s*\(", pinned):
        raise JudgeError(
            "the chat template asks for today's date in a format that it computes, so the date cannot be pinned. "
            "Write the format into the call, as in strftime_now('%d %b %Y')."
        )
    return pinned


def _around(rendered: str, sentinel: str, tokenizer: Any) -> tuple[str, str]:
    if rendered.count(sentinel) != 1:
        raise JudgeError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template shows a message {rendered.count(sentinel)} "
            "times instead of once; the frame cannot be taken from it."
        )
    before, after = rendered.split(sentinel)
    return before, after


def _without_system(tokenizer: Any, before: str, between: str, closing: str) -> str:
    """The user's header as it stands after an earlier turn, behind the beginning-of-text token if there is one."""
    header = between.removeprefix(closing)
    if header == between or not before.endswith(header):
        raise JudgeError(
            f"tokenizer {tokenizer_name(tokenizer)}: cannot tell the system turn from the user's header in {before!r}. "
            "Leave `system` unset, or give a system text."
        )
    bos = tokenizer.bos_token or ""
    starts = bos and before.startswith(bos) and not header.startswith(bos)
    return (bos if starts else "") + header
