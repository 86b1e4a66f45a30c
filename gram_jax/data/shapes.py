"""Where prompt and responses are in a row: side by side, or the prompt inside the responses.

Each function takes a row, the columns of a schema and the notes of what is not shown, and returns the prompt and two
responses.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from gram_jax.data.fields import Fields, column, list_of, optional_text, text_of
from gram_jax.judge.messages import (
    AFTER_RESPONSE,
    BadField,
    Message,
    Notes,
    Prompt,
    Seen,
    checked_prompt,
    common_length,
    read_messages,
    read_prompt,
    read_response,
    response_text,
    split_conversations,
    text_value,
)

# Names of a column with the prompt; a row may have one of them.
PROMPTS = ("prompt", "question", "query", "problem", "input")
BOTH = ("chosen", "rejected")
Parts = tuple[Prompt, str, str]
Columns = Sequence[str]  # prompt (or its alternatives as "a|b"), first and second response


def alternative(row: Fields, path: str) -> str | None:
    """The column that a row has of "a|b|c", None if it has none. Raises BadField if it has two that differ."""
    names = _given(row, path)
    for other in names[1:]:
        if row[other] != row[names[0]]:
            found = Seen(f"another value in {names[0]}, and either may be meant")
            raise BadField(other, f"one column (--map {names[0]}={other} chooses it)", found)
    return names[0] if names else None


def _given(row: Fields, path: str) -> list[str]:
    """The columns of "a|b|c" that a row has: those that are not empty, else those that are not null."""
    names = [name for name, root in _names(path) if row.get(root) is not None]
    return [name for name in names if row.get(name) != ""] or names if len(names) > 1 else names


@cache
def _names(path: str) -> tuple[tuple[str, str], ...]:
    """(path, column) of each alternative."""
    return tuple((name, name.split(".")[0]) for name in path.split("|") if name)


def prompt_at(row: Fields, path: str, notes: Notes | None = None) -> Prompt:
    """The prompt in a column: text, messages, or a transcript of Human and Assistant."""
    name = alternative(row, path) or path.split("|")[0]
    value = column(row, name)
    if isinstance(value, str) and re.match(r"\n*Human:", value) and "\n\nAssistant:" in value:
        turns = transcript_turns(value, name)
        if turns[-1].role == "assistant" and not turns[-1].content:
            turns = turns[:-1]  # where the response begins
        return checked_prompt(turns, name)
    return read_prompt(value, name, notes)


def beside(row: Fields, columns: Columns, notes: Notes) -> Parts:
    """A prompt, and responses as text or messages; messages may repeat the prompt."""
    prompt, first, second = columns
    one, other = column(row, first), column(row, second)
    if prompt and isinstance(one, str) and isinstance(other, str):
        return prompt_at(row, prompt, notes), one, other
    seen = Counter[str]()
    whole = [_conversation(x, field, seen) for x, field in ((one, first), (other, second))]
    if all(whole):
        notes.update(seen)
        found = split_conversations(whole[0], whole[1], (first, second), notes)
        _check_shown(row, _given(row, prompt), found[0])
        return found
    if not prompt:
        field = first if not whole[0] else second
        raise BadField(field, "a conversation that begins with the prompt", column(row, field))
    answers = read_response(one, first, notes), read_response(other, second, notes)
    return prompt_at(row, prompt, notes), *answers


def _conversation(value: Any, field: str, notes: Notes) -> Prompt:
    """The messages of a response, if they begin with the prompt."""
    if isinstance(value, str | None):
        return ()
    if isinstance(value, list | tuple | Mapping):
        turns = read_messages(value, field, notes)
        return turns if turns[0].role in ("system", "user") else ()
    raise BadField(field, "text or a list of messages", value)


def _check_shown(row: Fields, names: Sequence[str], prompt: Prompt) -> None:
    """Raises BadField unless one of the prompt columns repeats turns of the conversations, if there is one."""
    contents = [turn.content for turn in prompt]
    for name in names:
        given = row[name]
        asked = prompt_at(row, name) if isinstance(given, str) else read_messages(given, name)
        if all(turn.content in contents for turn in asked):
            return
    if names:
        raise BadField(names[0], "the text of a turn of chosen", row[names[0]])


def shared_text(row: Fields, columns: Columns, notes: Notes) -> Parts:
    """Two texts; the prompt is their common beginning in whole words: "blue" and "black" have none."""
    _, first, second = columns
    one, other = text_of(row, first), text_of(row, second)
    same = common_length(one, other)
    if same < max(len(one), len(other)):
        while same and not one[same - 1].isspace():
            same -= 1
    shared = one[:same]
    if not shared.strip():
        raise BadField(second, f"a beginning that {first} shares (there is no prompt)", other)
    return checked_prompt((Message("user", shared.rstrip()),), first), one[same:], other[same:]


def repeated(row: Fields, columns: Columns, notes: Notes) -> Parts:
    """Both responses repeat the prompt, which is removed."""
    asked, *answers = columns
    prompt, texts = text_of(row, asked), []
    for field in answers:
        text = text_of(row, field)
        if not text.startswith(prompt):
            raise BadField(field, "text that starts with the prompt, as the other rows do", text)
        texts.append(text[len(prompt) :])
    return prompt_at(row, asked), texts[0], texts[1]


def transcripts(row: Fields, columns: Columns, notes: Notes) -> Parts:
    """Two transcripts of Human and Assistant; a prompt column may repeat their beginning."""
    _, first, second = columns
    one, other = (transcript_turns(text_of(row, field), field) for field in (first, second))
    found = split_conversations(one, other, (first, second), notes)
    _check_shown(row, _given(row, "|".join(PROMPTS)), found[0])
    return found


def transcript_turns(text: str, field: str) -> Prompt:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    before, *pieces = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.lstrip("\n"))
    if before.strip() or not pieces:
        raise BadField(field, 'a transcript that starts with "Human:"', text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(roles[speaker], said.strip())
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    )


def lists_of_turns(row: Fields, columns: Columns, notes: Notes) -> Parts:
    """The user's turns and the answers of each model, as lists with a text for each turn, or as their JSON."""
    asked, *answers = (_texts_of_json(row, name) for name in columns)
    for name, said in zip(columns[1:], answers, strict=True):
        if len(said) != len(asked):
            raise BadField(name, f"{len(asked)} responses, one for each turn", Seen(str(len(said))))
    first, second = (
        read_messages(
            [
                turn
                for user, assistant in zip(asked, said, strict=True)
                for turn in (
                    {"role": "user", "content": user},
                    {"role": "assistant", "content": assistant},
                )
            ],
            name,
            notes,
        )
        for name, said in zip(columns[1:], answers, strict=True)
    )
    return split_conversations(first, second, (columns[1], columns[2]), notes)


def _texts_of_json(row: Fields, name: str) -> list[Any]:
    value = column(row, name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadField(name, "a JSON list of texts", value) from error
    if not isinstance(value, list | tuple) or not value:
        raise BadField(name, "a list of texts", value)
    return list(value)


def answered_conversation(row: Fields, columns: Columns, notes: Notes) -> Parts:
    """A conversation with the chosen answer, and another answer to it, as text or as a whole conversation."""
    whole, _, other = columns
    turns = read_messages(column(row, whole), whole, notes)
    value = column(row, other)
    seen: Notes = Counter()
    if another := _conversation(value, other, seen):
        notes.update(seen)
        return split_conversations(turns, another, (whole, other), notes)
    end = len(turns)
    while end and turns[end - 1].role != "assistant":
        end -= 1
    if end < len(turns):
        notes[AFTER_RESPONSE] += 1
    start = end - 1
    while start > 0 and turns[start - 1].role not in ("user", "system"):
        start -= 1
    if not end or start < 1:
        raise BadField(whole, "a conversation that ends with the assistant's turn", Seen("another"))
    prompt = checked_prompt(turns[:start], whole)
    return prompt, response_text(turns[start:end], whole), read_response(value, other, notes)


def instruction(row: Fields, columns: Columns, notes: Notes) -> Parts:
    """An instruction with an input and a history, as LLaMA-Factory has them."""
    first, second = (read_response(column(row, name), name, notes) for name in columns[1:])
    return instruction_of(row), first, second


def instruction_of(row: Fields) -> Prompt:
    """The turns of `history`, then `instruction` and `input`."""
    turns, history = [], row.get("history") or ()
    if not isinstance(history, list | tuple):
        raise BadField("history", "a list of questions and answers", history)
    for i, turn in enumerate(history):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadField(f"history[{i}]", "a question and an answer", turn)
        turns.append(Message("user", text_value(turn[0], f"history[{i}][0]")))
        turns.append(Message("assistant", text_value(turn[1], f"history[{i}][1]")))
    question = [text_of(row, "instruction"), optional_text(row, "input")]
    turns.append(Message("user", "\n".join(part for part in question if part)))
    return checked_prompt(tuple(turns), "instruction")


def several(row: Fields, path: str, notes: Notes) -> tuple[str, ...]:
    """A column with a list of responses."""
    values = list_of(row, path) if "[" not in path else column(row, path)
    return tuple(read_response(value, f"{path}[{at}]", notes) for at, value in enumerate(values))


def one_or_several(row: Fields, path: str, notes: Notes) -> tuple[str, ...]:
    """A column with one response, as text, or with a list of them."""
    if isinstance(column(row, path), str):
        return (text_of(row, path),)
    found = several(row, path, notes)
    if not found:
        raise BadField(path, "at least one response", [])
    return found
