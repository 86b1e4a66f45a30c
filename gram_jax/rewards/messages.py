"""Prompts and completions of trainers as the judge's prompts and texts, and the response in a rendered conversation."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from gram_jax.errors import DataError
from gram_jax.judge.messages import (
    NO_CONTENT,
    PREFILL,
    Message,
    Notes,
    Prompt,
    as_prompt,
    read_messages,
    response_text,
)
from gram_jax.rewards.chats import ENDS, KNOWN_FORMATS, chat_turns, without_ends, without_starts

# Where objects hold a reference: verl's reward_model, and data sets of reasoning tasks.
LABEL_KEYS = ("reference", "ground_truth", "answer", "target", "solution", "response", "label")
UNKNOWN_FORMAT = "prompts in an unknown chat format, shown with their control tokens"
_CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜\s]{1,40}｜>|</?s>|<pad>|<bos>|<eos>|\[/?INST\]|<(?:start|end)_of_turn>"
)
# Characters of a query that must agree with the end of its prompt, if the beginning of the prompt was cut.
LEAST_OVERLAP = 16


def prompt_of(value: Any, notes: Notes | None = None) -> Prompt:
    """A prompt from plain text, from messages, or from text rendered in a chat format.

    Rendered text is parsed, since the judge has its own format; other text is a user's message. Turns of the assistant
    at the end are left out and counted. Raises DataError for anything but text and messages.

    >>> [message.content for message in prompt_of("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n")]
    ['Hi']
    """
    if isinstance(value, str):
        if not (turns := chat_turns(value)):
            if notes is not None and _CONTROL.search(value):
                notes[UNKNOWN_FORMAT] += 1
            return as_prompt(without_starts(value) or value)
        if turns[-1].role == "assistant" and not turns[-1].content.strip():
            turns = turns[:-1]  # where the response begins
    else:
        turns = read_messages(value, "prompt", notes)
    kept = turns
    while kept and kept[-1].role == "assistant":
        kept = kept[:-1]
    if notes is not None and any(turn.content for turn in turns[len(kept) :]):
        notes[PREFILL] += 1
    if not kept:
        raise DataError(f"a prompt without a user's turn: {type(value).__name__} {value!r:.120}")
    return kept


def completion_of(value: Any, notes: Notes | None = None, ends: Iterable[str] = ENDS) -> str:
    """A response from plain text, or from messages, as judge/messages.py shows them.

    End tokens of the policy are removed. No messages, and messages without content, are an empty response, which is
    counted.

    >>> completion_of([{"role": "assistant", "content": "Yes.<|im_end|>"}])
    'Yes.'
    """
    if isinstance(value, str):
        return without_ends(value, ends)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not value:
        if notes is not None:
            notes[NO_CONTENT] += 1
        return ""
    turns = read_messages(value, "completion", notes)
    shown = tuple(Message(turn.role, without_ends(turn.content, ends)) for turn in turns)
    return response_text(shown, "completion", notes)


def reference_of(label: Any) -> Any:
    """A reference from the label of a data set: text, a number, several texts, or an object that holds one of these.

    None for an empty label. Arrays are read as their lists. Raises DataError for an object without a known key.

    >>> reference_of({"style": "rule", "ground_truth": 4}), reference_of("")
    ('4', None)
    """
    if hasattr(label, "tolist"):  # an array, as loaders of parquet files pass lists
        label = label.tolist()
    if isinstance(label, Mapping) and not {"role", "from"} & label.keys():
        if (key := next((key for key in LABEL_KEYS if label.get(key) is not None), None)) is None:
            raise DataError(f"expected a label with one of the keys {', '.join(LABEL_KEYS)}")
        return reference_of(label[key])
    if isinstance(label, bool | int | float):
        return str(label)
    return None if label is None or label == "" or label == [] else label


def split_query(
    query: str, prompt: str = "", notes: Notes | None = None, ends: Iterable[str] = ENDS
) -> tuple[Prompt, str]:
    """(prompt, response) of a query, which is a prompt and its response as a trainer decoded them.

    prompt: the prompt as the trainer rendered it, or "" if only the query is known. Raises DataError if the response
    cannot be found.

    >>> split_query("<pad><s> [INST] Hi? [/INST] Hello.</s>", "<s>[INST] Hi? [/INST]")[1]
    'Hello.'
    """
    if not prompt:
        return conversation_of(query, ends)
    return prompt_of(prompt, notes), response_in(query, prompt, ends)


def response_in(query: str, prompt: str, ends: Iterable[str] = ENDS) -> str:
    """The text that follows a prompt in a query, without end tokens.

    The query may differ from the prompt as decoded tokens do: padding, beginning-of-text and other control tokens,
    blanks, Unicode normalisation, and a prompt whose beginning was cut. Raises DataError if the prompt is not found.
    """
    if query.startswith(prompt):
        return without_ends(query[len(prompt) :], ends)
    asked, _ = _plain_characters(prompt)
    found, places = _plain_characters(query)
    starts = [0] if found.startswith(asked) else list(islice(_overlaps(asked, found), 2))
    if len(starts) != 1:
        turns = chat_turns(query)
        if turns and len(turns) > 1 and turns[-1].role == "assistant":
            return without_ends(turns[-1].content, ends)
        places_found = "several such places were" if starts else "no such place was"
        raise DataError(
            f"expected a query that begins with its prompt, or with the end of it, and {places_found} found"
        )
    end = places[len(asked) - starts[0] - 1] if asked else 0
    rest = re.compile(rf"(?:\s*(?:{_CONTROL.pattern}))*").match(query, end)
    return without_ends(query[rest.end() if rest else end :], ends)


def _overlaps(asked: str, found: str) -> Iterator[int]:
    """Where the end of `asked` begins that `found` begins with, the longest first."""
    opening = found[:LEAST_OVERLAP]
    start = asked.find(opening) if len(opening) == LEAST_OVERLAP else -1
    while start >= 0:
        if found.startswith(asked[start:]):
            yield start
        start = asked.find(opening, start + 1)


def conversation_of(text: str, ends: Iterable[str] = ENDS) -> tuple[Prompt, str]:
    """(prompt, response) of a rendered conversation with its response at the end.

    Raises DataError if the chat format is not known or the last turn is not the assistant's.
    """
    turns = chat_turns(text)
    if turns is None or turns[-1].role != "assistant" or len(turns) < 2:
        raise DataError(
            f"expected a conversation in a known format ({KNOWN_FORMATS}) that ends with the assistant's response"
        )
    return turns[:-1], without_ends(turns[-1].content, ends)


def _plain_characters(text: str) -> tuple[str, list[int]]:
    """The letters and signs of a text, and the index after each of them.

    Left out is what tokenizers change: control tokens, blanks, marks of accents, and parts of damaged characters.
    """
    letters, places = [], []
    at = 0
    for control in [*_CONTROL.finditer(text), None]:
        stop = control.start() if control else len(text)
        for index in range(at, stop):
            for letter in unicodedata.normalize("NFKD", text[index]):
                if letter.isspace() or letter in "▁\ufffd":
                    continue
                if unicodedata.combining(letter):
                    if places and places[-1] == index:
                        places[-1] = index + 1
                    continue
                letters.append(letter)
                places.append(index + 1)
        at = control.end() if control else stop
    return "".join(letters), places
