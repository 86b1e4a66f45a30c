"""A parser for each published form of preference and pair data.

A parser takes the fields of one row and returns its records, or raises BadField. `records` adds the row's id, source
and weight. `schemas` detects the form of a row; rendered GRAM rows are in gram_rows.py.
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
    messages_value,
    need,
    number_value,
    optional_number,
    optional_text,
    prompt_value,
    question_of,
    split_shared,
    text_of,
    text_value,
    texts_of,
)
from gram_jax.data.records import Candidates, Comparison, Label
from gram_jax.judge.messages import Message, Prompt

BOTH = ("chosen", "rejected")


def _chosen(row: Fields, prompt: Prompt, chosen: str, rejected: str) -> list[Comparison]:
    return [Comparison(prompt, chosen, rejected, 0, optional_number(row, "margin"))]


def trl_standard(row: Fields) -> list[Comparison]:
    return _chosen(
        row, question_of(row, "prompt"), text_of(row, "chosen"), text_of(row, "rejected")
    )


def trl_repeated(row: Fields) -> list[Comparison]:
    """Both responses repeat the prompt, which is removed."""
    prompt = text_of(row, "prompt")
    answers = []
    for field in BOTH:
        text = text_of(row, field)
        if not text.startswith(prompt):
            raise BadField(field, "text that starts with the prompt, as the other rows do", text)
        answers.append(text[len(prompt) :])
    return _chosen(row, question_of(row, "prompt"), *answers)


def trl_implicit(row: Fields) -> list[Comparison]:
    """The prompt is the common beginning in whole words: "blue" and "black" have none."""
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


def trl_conversational(row: Fields) -> list[Comparison]:
    """Messages: responses to a prompt, or whole conversations with or without a prompt column."""
    chosen, rejected = (messages_value(need(row, f), f) for f in BOTH)
    given = row.get("prompt")
    if given is None or (isinstance(given, str) and len(chosen) > 1):
        prompt, *answers = split_shared(chosen, rejected, BOTH)
        # The prompt column repeats a turn of the conversation, so it is not added again.
        if given is not None and all(message.content != given for message in prompt):
            raise BadField("prompt", "the text of a turn of chosen", given)
        return _chosen(row, prompt, *answers)
    prompt = question_of(row, "prompt")
    if len(chosen) > 1 and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _chosen(row, prompt, answer_value(chosen, "chosen"), answer_value(rejected, "rejected"))


def ultrafeedback(row: Fields) -> list[Comparison]:
    """Whole conversations; the margin is the difference between the scores of the two responses."""
    (pair,) = trl_conversational(row)
    high, low = (optional_number(row, f) for f in ("score_chosen", "score_rejected"))
    if high is None or low is None:
        return [pair]
    if high < low:
        raise BadField("score_chosen", f"at least score_rejected ({low})", high)
    return [replace(pair, label="tie" if high == low else 0, margin=high - low)]


def hh_rlhf(row: Fields) -> list[Comparison]:
    """One transcript for each response, split at the last assistant turn; both are equal up to there."""
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


def unified_feedback(row: Fields) -> list[Comparison]:
    first, second = (messages_value(need(row, f), f) for f in ("conv_A", "conv_B"))
    prompt, a, b = split_shared(first, second, ("conv_A", "conv_B"))
    x, y = (optional_number(row, f) for f in ("conv_A_rating", "conv_B_rating"))
    if x is None or y is None:
        return [Comparison(prompt, a, b)]
    return [Comparison(prompt, a, b, _label(x - y), abs(x - y))]


def _label(first_minus_second: float) -> Label:
    if first_minus_second == 0:
        return "tie"
    return 0 if first_minus_second > 0 else 1


def helpsteer3(row: Fields) -> list[Comparison]:
    prompt = question_of(row, "context")
    preference = number_value(need(row, "overall_preference"), "overall_preference")
    if preference not in range(-3, 4):
        raise BadField("overall_preference", "a whole number from -3 to 3", preference)
    label = _label(-preference)  # negative: response 1 is better
    first, second = text_of(row, "response1"), text_of(row, "response2")
    return [Comparison(prompt, first, second, label, abs(preference))]


def factory_alpaca(row: Fields) -> list[Comparison]:
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


def factory_sharegpt(row: Fields) -> list[Comparison]:
    prompt = messages_value(need(row, "conversations"), "conversations")
    if system := optional_text(row, "system"):
        prompt = (Message("system", system), *prompt)
    answers = []
    for field in BOTH:
        value = need(row, field)
        value = [value] if isinstance(value, Mapping) else value
        answers.append(answer_value(messages_value(value, field), field))
    return _chosen(row, prompt_value(prompt, "conversations"), *answers)


def pairs(row: Fields) -> list[Comparison]:
    a, b = text_of(row, "response_a"), text_of(row, "response_b")
    return [Comparison(question_of(row, "prompt"), a, b)]


_LABELS: dict[str | None, Label] = {
    **dict.fromkeys(("a", "response_a", "a>b"), 0),
    **dict.fromkeys(("b", "response_b", "b>a"), 1),
    **dict.fromkeys(("tie", "a=b"), "tie"),
}


def labeled_pairs(row: Fields) -> list[Comparison]:
    (pair,) = pairs(row)
    label = row["label"]
    if label is None or label == "":
        return [pair]
    plain = label.replace(" ", "").lower() if isinstance(label, str) else None
    if plain not in _LABELS:
        raise BadField("label", '"A", "B" or "tie" ("A": response_a is better)', label)
    return [replace(pair, label=_LABELS[plain], margin=optional_number(row, "margin"))]


def candidates(row: Fields) -> list[Candidates]:
    responses = texts_of(row, "responses")
    if not responses:
        raise BadField("responses", "at least one response", list(responses))
    return [Candidates(question_of(row, "prompt"), responses)]


def prompts_alone(row: Fields) -> list[Candidates]:
    return [Candidates(question_of(row, "prompt"), ())]


def graded_candidates(row: Fields) -> Candidates:
    """A number for each response in `scores`, or true and false in `correct`."""
    (record,) = candidates(row)
    if len(record.responses) < 2:
        raise BadField("responses", "at least two responses", list(record.responses))
    given = [field for field in ("scores", "correct") if row.get(field) is not None]
    if len(given) != 1:
        raise BadField("scores", "scores or correct, a value for each response", Seen(given))
    field, count = given[0], len(record.responses)
    values = row[field]
    if not isinstance(values, list | tuple) or len(values) != count:
        raise BadField(field, f"a list of {count} values, one for each response", values)
    if field == "correct" and any(value not in (0, 1) for value in values):
        raise BadField(field, "true or false for each response", values)
    values = [int(x) if isinstance(x, bool) else x for x in values]
    return replace(record, grades=tuple(number_value(x, field) for x in values))


def judgebench(row: Fields) -> list[Comparison]:
    label = text_of(row, "label")
    plain = label.replace(" ", "")
    if plain not in ("A>B", "B>A", "A=B"):
        raise BadField("label", '"A>B" or "B>A"', label)
    a, b = text_of(row, "response_A"), text_of(row, "response_B")
    return [Comparison(question_of(row, "question"), a, b, _LABELS[plain.lower()])]


STYLES = ("concise", "plain", "markdown")


def rm_bench(row: Fields) -> list[Comparison]:
    """Three styles of each response: nine pairs, whose ids name the styles of both."""
    for field in BOTH:
        if len(texts := texts_of(row, field)) != len(STYLES):
            raise BadField(field, f"three responses ({', '.join(STYLES)})", list(texts))
    return _every_pair(row, str(row.get("domain") or ""), STYLES, STYLES)


def reward_bench_2(row: Fields) -> list[Comparison]:
    """One or more correct responses and several incorrect ones: each correct one with each incorrect one."""
    return _every_pair(row, "", *(range(len(texts)) for texts in _right_and_wrong(row)))


def graded_reward_bench_2(row: Fields) -> Candidates:
    """All responses of a row, graded 1 and 0."""
    right, wrong = _right_and_wrong(row)
    grades = (1.0,) * len(right) + (0.0,) * len(wrong)
    return Candidates(question_of(row, "prompt"), right + wrong, grades)


def _right_and_wrong(row: Fields) -> list[tuple[str, ...]]:
    for field in BOTH:
        if not texts_of(row, field):
            raise BadField(field, "at least one response", [])
    return [texts_of(row, field) for field in BOTH]


def _every_pair(
    row: Fields, source: str, good_names: Sequence[Any], bad_names: Sequence[Any]
) -> list[Comparison]:
    """Each chosen response with each rejected one; the pair's id has the names of both."""
    prompt, name = question_of(row, "prompt"), id_of(row)
    return [
        Comparison(prompt, good, bad, 0, id=name and f"{name}[{i},{j}]", source=source)
        for i, good in zip(good_names, texts_of(row, "chosen"), strict=True)
        for j, bad in zip(bad_names, texts_of(row, "rejected"), strict=True)
    ]
