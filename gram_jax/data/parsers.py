"""What the fields of a row mean: a parser for each published form of preference and pair data.

A parser takes the fields of one row and returns what is in it, or raises BadField. schemas.py says which form a row
has; rendered GRAM rows are in gram_rows.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gram_jax.data.fields import (
    BadField,
    Fields,
    Seen,
    answer_value,
    common_length,
    id_of,
    message_value,
    messages_value,
    need,
    number_value,
    optional_number,
    optional_text,
    prompt_value,
    question_of,
    source_of,
    split_shared,
    text_of,
    text_value,
    texts_of,
)
from gram_jax.data.record_types import Message, Pair, Prompt, Several

BOTH = ("chosen", "rejected")


def _chosen(row: Fields, prompt: Prompt, chosen: str, rejected: str) -> list[Pair | Several]:
    margin = optional_number(row, "margin")
    return [Pair(prompt, chosen, rejected, 0, margin=margin, source=source_of(row), id=id_of(row))]


def trl_standard(row: Fields) -> list[Pair | Several]:
    return _chosen(
        row, question_of(row, "prompt"), text_of(row, "chosen"), text_of(row, "rejected")
    )


def trl_repeated(row: Fields) -> list[Pair | Several]:
    """Both responses repeat the prompt, which is taken off."""
    prompt = text_of(row, "prompt")
    answers = []
    for field in BOTH:
        text = text_of(row, field)
        if not text.startswith(prompt):
            raise BadField(field, "text that starts with the prompt, as the other rows do", text)
        answers.append(text[len(prompt) :])
    return _chosen(row, question_of(row, "prompt"), *answers)


def trl_implicit(row: Fields) -> list[Pair | Several]:
    """The shared beginning is the prompt, whole words of it: "blue" and "black" share no "bl"."""
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    same = common_length(chosen, rejected)
    if same < max(len(chosen), len(rejected)):
        while same and not chosen[same - 1].isspace():
            same -= 1
    shared = chosen[:same]
    if not shared.strip():
        raise BadField("rejected", "a beginning that chosen shares (there is no prompt)", rejected)
    prompt = prompt_value((Message("user", shared.rstrip()),), "chosen")
    return _chosen(row, prompt, chosen[same:], rejected[same:])


def trl_conversational(row: Fields) -> list[Pair | Several]:
    """Messages: responses to a prompt, or whole conversations with or without a prompt column."""
    chosen, rejected = (messages_value(need(row, f), f) for f in BOTH)
    given = row.get("prompt")
    if given is None or (isinstance(given, str) and len(chosen) > 1):
        prompt, *answers = split_shared(chosen, rejected, BOTH)
        # The prompt column repeats a turn of the conversation, so it must not be added again.
        if given is not None and all(message.content != given for message in prompt):
            raise BadField("prompt", "the text of a turn of chosen", given)
        return _chosen(row, prompt, *answers)
    prompt = question_of(row, "prompt")
    if len(chosen) > 1 and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _chosen(row, prompt, answer_value(chosen, "chosen"), answer_value(rejected, "rejected"))


def ultrafeedback(row: Fields) -> list[Pair | Several]:
    """chosen and rejected are whole conversations, the scores of the two give the margin."""
    (pair,) = trl_conversational(row)
    high, low = (optional_number(row, f) for f in ("score_chosen", "score_rejected"))
    if high is None or low is None:
        return [pair]
    if high < low:
        raise BadField("score_chosen", f"at least score_rejected ({low})", high)
    tie = high == low
    return [replace(pair, better=None if tie else 0, tie=tie, margin=high - low)]


def hh_rlhf(row: Fields) -> list[Pair | Several]:
    """One transcript each, split at the last assistant turn. Both must agree up to there."""
    parts = []
    for field in BOTH:
        text = text_of(row, field)
        before, found, answer = text.rpartition("\n\nAssistant:")
        if not found:
            raise BadField(field, 'a transcript with "\\n\\nAssistant:"', text)
        parts.append((before, answer.strip()))
    (shared, chosen), (other, rejected) = parts
    if shared != other:
        same = common_length(shared, other)
        raise BadField(
            "rejected",
            'the transcript of chosen up to the last "\\n\\nAssistant:"',
            Seen(f"a difference at character {same + 1}: {other[max(0, same - 20) : same + 20]!r}"),
        )
    return _chosen(row, prompt_value(_transcript(shared, "chosen"), "chosen"), chosen, rejected)


def _transcript(text: str, field: str) -> Prompt:
    before, *pieces = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.lstrip("\n"))
    if before.strip() or not pieces:
        raise BadField(field, 'a transcript that starts with "Human:"', text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(roles[speaker], said.strip())
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    )


def unified_feedback(row: Fields) -> list[Pair | Several]:
    first, second = (messages_value(need(row, f), f) for f in ("conv_A", "conv_B"))
    prompt, a, b = split_shared(first, second, ("conv_A", "conv_B"))
    x, y = (optional_number(row, f) for f in ("conv_A_rating", "conv_B_rating"))
    named = {"source": source_of(row), "id": id_of(row)}
    if x is None or y is None:
        return [Pair(prompt, a, b, None, **named)]
    return [Pair(prompt, a, b, _better(x - y), x == y, abs(x - y), **named)]


def _better(first_minus_second: float) -> int | None:
    return None if first_minus_second == 0 else int(first_minus_second < 0)


def helpsteer3(row: Fields) -> list[Pair | Several]:
    prompt = question_of(row, "context")
    preference = number_value(need(row, "overall_preference"), "overall_preference")
    if preference not in range(-3, 4):
        raise BadField("overall_preference", "a whole number from -3 to 3", preference)
    return [
        Pair(
            prompt,
            text_of(row, "response1"),
            text_of(row, "response2"),
            _better(-preference),  # negative: response 1 is the better one
            preference == 0,
            abs(preference),
            source=source_of(row),
            id=id_of(row),
        )
    ]


def factory_alpaca(row: Fields) -> list[Pair | Several]:
    turns = []
    if system := optional_text(row, "system"):
        turns.append(Message("system", system))
    for i, turn in enumerate(row.get("history") or ()):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadField(f"history[{i}]", "a question and an answer", turn)
        turns.append(Message("user", text_value(turn[0], f"history[{i}][0]")))
        turns.append(Message("assistant", text_value(turn[1], f"history[{i}][1]")))
    question = [text_of(row, "instruction"), optional_text(row, "input")]
    turns.append(Message("user", "\n".join(part for part in question if part)))
    prompt = prompt_value(tuple(turns), "instruction")
    return _chosen(row, prompt, text_of(row, "chosen"), text_of(row, "rejected"))


def factory_sharegpt(row: Fields) -> list[Pair | Several]:
    prompt = messages_value(need(row, "conversations"), "conversations")
    if system := optional_text(row, "system"):
        prompt = (Message("system", system), *prompt)
    answers = []
    for field in BOTH:
        value = need(row, field)
        messages = (
            (message_value(value, field),)
            if isinstance(value, Mapping)
            else messages_value(value, field)
        )
        answers.append(answer_value(messages, field))
    return _chosen(row, prompt_value(prompt, "conversations"), *answers)


def pairs(row: Fields) -> list[Pair | Several]:
    prompt = question_of(row, "prompt")
    a, b = text_of(row, "response_a"), text_of(row, "response_b")
    return [Pair(prompt, a, b, None, source=source_of(row), id=id_of(row))]


_VERDICTS = {"a": 0, "response_a": 0, "a>b": 0, "b": 1, "response_b": 1, "b>a": 1}
_TIES = ("tie", "a=b")


def labeled_pairs(row: Fields) -> list[Pair | Several]:
    (pair,) = pairs(row)
    label = row["label"]
    if label is None or label == "":
        return [pair]
    plain = label.replace(" ", "").lower() if isinstance(label, str) else None
    if plain not in _VERDICTS and plain not in _TIES:
        raise BadField("label", '"A", "B" or "tie" ("A": response_a is better)', label)
    return [
        replace(
            pair,
            better=_VERDICTS.get(plain),
            tie=plain in _TIES,
            margin=optional_number(row, "margin"),
        )
    ]


def candidates(row: Fields) -> list[Several]:
    responses = texts_of(row, "responses")
    if len(responses) < 2:
        raise BadField("responses", "at least two responses", list(responses))
    return [Several(question_of(row, "prompt"), responses, id_of(row), source=source_of(row))]


_GRADES = ("scores", "correct")


def graded_candidates(row: Fields) -> Several:
    """A number for each response in `scores`, or right and wrong in `correct`."""
    (several,) = candidates(row)
    given = [field for field in _GRADES if row.get(field) is not None]
    if len(given) != 1:
        raise BadField("scores", "scores or correct, a value for each response", Seen(given))
    (field,), values = given, row[given[0]]
    count = len(several.responses)
    if not isinstance(values, list | tuple) or len(values) != count:
        raise BadField(field, f"a list of {count} values, one for each response", values)
    if field == "correct" and any(value not in (0, 1) for value in values):
        raise BadField(field, "true or false for each response", values)
    grades = tuple(number_value(float(x) if x is True or x is False else x, field) for x in values)
    return replace(several, grades=grades)


def judgebench(row: Fields) -> list[Pair | Several]:
    label = text_of(row, "label")
    better = {"A>B": 0, "B>A": 1, "A=B": None}.get(label.replace(" ", ""), label)
    if isinstance(better, str):
        raise BadField("label", '"A>B" or "B>A"', label)
    a, b = text_of(row, "response_A"), text_of(row, "response_B")
    named = {"source": source_of(row), "id": id_of(row)}
    return [Pair(question_of(row, "question"), a, b, better, better is None, **named)]


STYLES = ("concise", "plain", "markdown")


def rm_bench(row: Fields) -> list[Pair | Several]:
    """Three styles of each response: nine pairs, whose ids name the styles of both."""
    for field in BOTH:
        if len(texts := texts_of(row, field)) != len(STYLES):
            raise BadField(field, f"three responses ({', '.join(STYLES)})", list(texts))
    return _every_pair(row, str(row.get("domain") or source_of(row)), STYLES, STYLES)


def reward_bench_2(row: Fields) -> list[Pair | Several]:
    """One or more right responses and several wrong ones: every right one against every wrong one."""
    return _every_pair(row, source_of(row), *(range(len(texts)) for texts in _right_and_wrong(row)))


def graded_reward_bench_2(row: Fields) -> Several:
    """All responses of a row, graded 1 and 0."""
    right, wrong = _right_and_wrong(row)
    grades = (1.0,) * len(right) + (0.0,) * len(wrong)
    return Several(question_of(row, "prompt"), right + wrong, id_of(row), grades, source_of(row))


def _right_and_wrong(row: Fields) -> list[tuple[str, ...]]:
    both = [texts_of(row, field) for field in BOTH]
    for field, texts in zip(BOTH, both, strict=True):
        if not texts:
            raise BadField(field, "at least one response", [])
    return both


def _every_pair(
    row: Fields, source: str, good_names: Sequence[Any], bad_names: Sequence[Any]
) -> list[Pair | Several]:
    """Each chosen response with each rejected one; their names stand in the pair's id."""
    prompt, name = question_of(row, "prompt"), id_of(row)
    return [
        Pair(prompt, good, bad, 0, source=source, id=f"{name}[{i},{j}]" if name else None)
        for i, good in zip(good_names, texts_of(row, "chosen"), strict=True)
        for j, bad in zip(bad_names, texts_of(row, "rejected"), strict=True)
    ]
