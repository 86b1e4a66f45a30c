"""The chat format around a user's text, rendered once by the tokenizer's chat template and stored as text."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gram_jax.errors import JudgeError
from gram_jax.judge.chat_template import render_chat_template
from gram_jax.judge.tokens import tokenizer_name

# Some templates write the current date into the prompt. The date is pinned to the default of Llama 3's template, so
# that scores do not change from day to day.
PINNED_DATE = datetime.date(2024, 7, 26)

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


def chat_frame(tokenizer: Any, *, system: str | None, thinking: bool) -> ChatFrame:
    """The strings that the tokenizer's chat template puts around a single user message.

    system: None leaves the system turn to the template (several have a default); "" drops the system turn with any date
    in it, as in the reference GRAM training on Llama; other text becomes the system turn. Raises JudgeError if there
    is no template or it does not show the user's text exactly once.
    """

    def frames(*roles: str, prompt: bool) -> list[str]:
        return _frames(tokenizer, roles, system=system, thinking=thinking, prompt=prompt)

    prefix, generation_prompt = frames("user", prompt=True)
    closing = frames("user", "assistant", prompt=False)[2]
    if system == "":
        between = frames("user", "assistant", "user", prompt=True)[2]
        prefix = _without_system(tokenizer, prefix, between, closing)
    end_of_turn = closing.strip() or (tokenizer.eos_token or "")
    if not end_of_turn:
        raise JudgeError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template puts nothing after the assistant's turn and "
            "there is no eos_token. Set eos_token, so that a response can end."
        )
    return ChatFrame(prefix, generation_prompt, end_of_turn)


def answer_frame(tokenizer: Any) -> tuple[str, str, str]:
    """The strings around a question and its answer in a rendered conversation: before, between and after them."""
    before, between, after = _frames(
        tokenizer, ("user", "assistant"), system=None, thinking=False, prompt=False
    )
    return before, between, after


def dialogue_frames(
    tokenizer: Any, roles: Sequence[str], *, system: str | None, thinking: bool
) -> tuple[str, ...]:
    """The literal strings around the texts of a conversation: one more than the number of turns.

    The last one ends at the assistant's next token. system: as in `chat_frame`, for conversations that do not begin
    with a system turn. Raises JudgeError if the template does not accept these roles, or does not show every text once
    and in order.
    """
    own = system if roles[0] != "system" else None
    frames = _frames(tokenizer, roles, system=own, thinking=thinking, prompt=True)
    if own == "" and roles[0] == "user":
        frames[0] = chat_frame(tokenizer, system="", thinking=thinking).prefix
    return tuple(frames)


def frame_shows_date(tokenizer: Any, *, thinking: bool) -> bool:
    """Whether the template writes a date into the prompt of a single user message."""
    message = [{"role": "user", "content": "text"}]
    dates = (PINNED_DATE, datetime.date(1999, 12, 31))
    return len({_render(tokenizer, message, True, thinking, date) for date in dates}) > 1


def _frames(
    tokenizer: Any, roles: Sequence[str], *, system: str | None, thinking: bool, prompt: bool
) -> list[str]:
    """The strings around the texts of these turns. prompt: with the beginning of the assistant's next turn."""
    opening = [{"role": "system", "content": system}] if system else []
    # Letters only: templates trim blanks and some look for markup.
    marks = [f"SENTINELTURN{at:05d}".translate(_LETTERS) for at in range(len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    rest = _render(tokenizer, [*opening, *turns], prompt, thinking, PINNED_DATE)
    frames = []
    for mark in marks:
        if rest.count(mark) != 1:
            raise JudgeError(
                f"tokenizer {tokenizer_name(tokenizer)}: its chat template shows a message {rest.count(mark)} times "
                "instead of once; the strings around it are not known."
            )
        frame, rest = rest.split(mark)
        frames.append(frame)
    return [*frames, rest]


def _render(
    tokenizer: Any,
    messages: list[dict[str, str]],
    prompt: bool,
    thinking: bool,
    date: datetime.date,
) -> str:
    name = f"tokenizer {tokenizer_name(tokenizer)}"
    if not getattr(tokenizer, "chat_template", None):
        raise JudgeError(
            f"{name} has no chat template, which determines the position of the verdict. Use an instruction-tuned "
            "model, or put chat_template.jinja next to tokenizer.json."
        )
    try:
        # Templates ignore the values that they do not use.
        return render_chat_template(
            tokenizer.get_chat_template(),
            messages,
            date,
            add_generation_prompt=prompt,
            enable_thinking=thinking,
            date_string=date.strftime("%d %b %Y"),
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # jinja raises many kinds, and templates raise their own
        roles = [message["role"] for message in messages]
        raise JudgeError(
            f"{name}: its chat template fails on the roles {roles}: {error}"
        ) from error


def _without_system(tokenizer: Any, before: str, between: str, closing: str) -> str:
    """The user's header as it follows an earlier turn, preceded by the beginning-of-text token if there is one."""
    header = between.removeprefix(closing)
    if header == between or not before.endswith(header):
        raise JudgeError(
            f"tokenizer {tokenizer_name(tokenizer)}: system turn and user's header cannot be separated in {before!r}. "
            "Leave `system` unset, or give a system text."
        )
    bos = tokenizer.bos_token or ""
    starts = bos and before.startswith(bos) and not header.startswith(bos)
    return (bos if starts else "") + header
