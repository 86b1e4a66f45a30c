"""What the fields of a row mean: one parser for each published form of preference and pair data.

A parser takes the fields of one row and returns the pairs in it, or raises BadField.
`detect_schema` chooses the parser from the fields that are there; a recipe may also name it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from gram_jax.data.record_types import Message, Prompt
from gram_jax.data.recover import recover_template, render, row_prompt, take_apart
from gram_jax.errors import DataError, JudgeError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses in the order of the source; better: 0 first, 1 second, None neither."""

    prompt: Prompt
    first: str
    second: str
    better: int | None
    tie: bool = False
    margin: float | None = None
    source: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Several:
    """Responses to be ranked; grades: how good they are, where the row says it."""

    prompt: Prompt
    responses: tuple[str, ...]
    id: str | None = None
    grades: tuple[float, ...] | None = None
    source: str = ""


@dataclass(frozen=True)
class Schema:
    """A published form of rows.

    fields: those a row must have; fits: whether the values of a row that has them are of this form. graded: the row as
    one list of graded responses, for forms that have such.
    """

    name: str
    fields: tuple[str, ...]
    labeled: bool
    parse: Callable[[Fields], Sequence[Pair | Several]]
    fits: Callable[[Fields], bool] = lambda row: True
    graded: Callable[[Fields], Several] | None = None


_BOTH = ("chosen", "rejected")


def _chosen(row: Fields, prompt: Prompt, chosen: str, rejected: str) -> list[Pair | Several]:
    margin = optional_number(row, "margin")
    return [Pair(prompt, chosen, rejected, 0, margin=margin, source=source_of(row), id=id_of(row))]


# Parsers, one for each schema


def _trl_standard(row: Fields) -> list[Pair | Several]:
    return _chosen(
        row, question_of(row, "prompt"), text_of(row, "chosen"), text_of(row, "rejected")
    )


def _trl_repeated(row: Fields) -> list[Pair | Several]:
    """Both responses repeat the prompt, which is taken off."""
    prompt = text_of(row, "prompt")
    answers = []
    for field in _BOTH:
        text = text_of(row, field)
        if not text.startswith(prompt):
            raise BadField(field, "text that starts with the prompt, as the other rows do", text)
        answers.append(text[len(prompt) :])
    return _chosen(row, question_of(row, "prompt"), *answers)


def _trl_implicit(row: Fields) -> list[Pair | Several]:
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


def _trl_conversational(row: Fields) -> list[Pair | Several]:
    """Messages: responses to a prompt, or whole conversations with or without a prompt column."""
    chosen, rejected = (messages_value(need(row, f), f) for f in _BOTH)
    given = row.get("prompt")
    if given is None or (isinstance(given, str) and len(chosen) > 1):
        prompt, *answers = split_shared(chosen, rejected, _BOTH)
        # The prompt column repeats a turn of the conversation, so it must not be added again.
        if given is not None and all(message.content != given for message in prompt):
            raise BadField("prompt", "the text of a turn of chosen", given)
        return _chosen(row, prompt, *answers)
    prompt = question_of(row, "prompt")
    if len(chosen) > 1 and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _chosen(row, prompt, answer_value(chosen, "chosen"), answer_value(rejected, "rejected"))


def _ultrafeedback(row: Fields) -> list[Pair | Several]:
    """chosen and rejected are whole conversations, the scores of the two give the margin."""
    (pair,) = _trl_conversational(row)
    high, low = (optional_number(row, f) for f in ("score_chosen", "score_rejected"))
    if high is None or low is None:
        return [pair]
    if high < low:
        raise BadField("score_chosen", f"at least score_rejected ({low})", high)
    tie = high == low
    return [replace(pair, better=None if tie else 0, tie=tie, margin=high - low)]


def _hh_rlhf(row: Fields) -> list[Pair | Several]:
    """One transcript each, split at the last assistant turn. Both must agree up to there."""
    parts = []
    for field in _BOTH:
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


def _unified_feedback(row: Fields) -> list[Pair | Several]:
    first, second = (messages_value(need(row, f), f) for f in ("conv_A", "conv_B"))
    prompt, a, b = split_shared(first, second, ("conv_A", "conv_B"))
    x, y = (optional_number(row, f) for f in ("conv_A_rating", "conv_B_rating"))
    named = {"source": source_of(row), "id": id_of(row)}
    if x is None or y is None:
        return [Pair(prompt, a, b, None, **named)]
    return [Pair(prompt, a, b, _better(x - y), x == y, abs(x - y), **named)]


def _better(first_minus_second: float) -> int | None:
    return None if first_minus_second == 0 else int(first_minus_second < 0)


def _helpsteer3(row: Fields) -> list[Pair | Several]:
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


def _factory_alpaca(row: Fields) -> list[Pair | Several]:
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


def _factory_sharegpt(row: Fields) -> list[Pair | Several]:
    prompt = messages_value(need(row, "conversations"), "conversations")
    if system := optional_text(row, "system"):
        prompt = (Message("system", system), *prompt)
    answers = []
    for field in _BOTH:
        value = need(row, field)
        messages = (
            (message_value(value, field),)
            if isinstance(value, Mapping)
            else messages_value(value, field)
        )
        answers.append(answer_value(messages, field))
    return _chosen(row, prompt_value(prompt, "conversations"), *answers)


# The frame of published GRAM rows: stage 1 has the question in `instruction` and both responses in
# `output`, stage 2 has all three in `instruction` and the verdict in `output`.
_GRAM_QUESTION = "[User Question]\n"
_GRAM_RESPONSES = tuple(
    (f"[The Start of Assistant {x}'s Answer]\n", f"\n[The End of Assistant {x}'s Answer]")
    for x in "AB"
)


def _gram(row: Fields) -> list[Pair | Several]:
    instruction = _gram_prompt(row)
    output = text_of(row, "output")
    verdict = {"A": 0, "B": 1}.get(output.strip())
    field = "output" if verdict is None else "instruction"
    first, second = (
        _between(output if verdict is None else instruction, start, end, field)
        for start, end in _GRAM_RESPONSES
    )
    if verdict is None:
        question = instruction
        if _GRAM_QUESTION in question:
            question = _once(question, _GRAM_QUESTION, "instruction")[1]
    else:
        question = _between(instruction, _GRAM_QUESTION, _GRAM_RESPONSES[0][0], field)
    prompt = prompt_value((Message("user", question.strip("\n")),), "instruction")
    return [Pair(prompt, first, second, verdict, source=source_of(row), id=id_of(row))]


def _gram_prompt(row: Fields) -> str:
    return row_prompt(
        {"instruction": text_of(row, "instruction"), "input": optional_text(row, "input")}
    )


def _rendered(template: str, labels: tuple[str, str], row: Fields) -> list[Pair | Several]:
    """A judge prompt of another template than the published one, and its verdict."""
    text, output = _gram_prompt(row), text_of(row, "output")
    found = take_apart(template, text)
    if found is None or render(template, *found) != text:
        expected = "the template that the first rows share, none of its delimiter lines in a field"
        raise BadField("instruction", expected, text)
    if output not in labels:
        raise BadField("output", f"one of {', '.join(map(repr, labels))}", output)
    question, first, second = found
    prompt = prompt_value((Message("user", question),), "instruction")
    verdict = labels.index(output)
    return [Pair(prompt, first, second, verdict, source=source_of(row), id=id_of(row))]


def with_own_template(schema: Schema, where: str, sample: Sequence[Fields]) -> Schema:
    """The schema as it is, but for rendered GRAM rows that do not have the published frame and labels.

    Those are read by the template and the labels that the sample shares. Raises DataError where it
    leaves them open.
    """
    if schema.name != "gram" or any(_is_published(row) for row in sample):
        return schema
    try:
        template, labels = recover_template(sample)
    except JudgeError as error:
        if any(_GRAM_RESPONSES[0][0] in str(text) for row in sample for text in row.values()):
            return schema  # the published frame, damaged: its parser says where
        raise DataError(
            f"{where}: rendered rows with neither the published frame ({_GRAM_QUESTION.strip()}, "
            f"{_GRAM_RESPONSES[0][0].strip()} ..., A or B) nor a template that could be recovered: {error}"
        ) from error
    return replace(schema, parse=partial(_rendered, template, labels))


def _is_published(row: Fields) -> bool:
    try:
        return bool(_gram(row))
    except BadField:
        return False


def _between(text: str, start: str, end: str, field: str) -> str:
    return _once(_once(text, start, field)[1], end, field)[0]


def _once(text: str, mark: str, field: str) -> tuple[str, str]:
    """Text before and after a mark; standing twice, it would let the row be read in two ways."""
    if text.count(mark) != 1:
        raise BadField(
            field, f"{mark.strip()!r} exactly once", Seen(f"it {text.count(mark)} times")
        )
    before, _, after = text.partition(mark)
    return before, after


def _pairs(row: Fields) -> list[Pair | Several]:
    prompt = question_of(row, "prompt")
    a, b = text_of(row, "response_a"), text_of(row, "response_b")
    return [Pair(prompt, a, b, None, source=source_of(row), id=id_of(row))]


_VERDICTS = {"a": 0, "response_a": 0, "a>b": 0, "b": 1, "response_b": 1, "b>a": 1}
_TIES = ("tie", "a=b")


def _labeled_pairs(row: Fields) -> list[Pair | Several]:
    (pair,) = _pairs(row)
    label = row["label"]
    if label is None or label == "":
        return [pair]
    plain = label.replace(" ", "").lower() if isinstance(label, str) else None
    if plain not in _VERDICTS and plain not in _TIES:
        raise BadField("label", '"A", "B" or "tie"', label)
    return [
        replace(
            pair,
            better=_VERDICTS.get(plain),
            tie=plain in _TIES,
            margin=optional_number(row, "margin"),
        )
    ]


def _candidates(row: Fields) -> list[Several]:
    responses = texts_of(row, "responses")
    if len(responses) < 2:
        raise BadField("responses", "at least two responses", list(responses))
    return [Several(question_of(row, "prompt"), responses, id_of(row), source=source_of(row))]


_GRADES = ("scores", "correct")


def _graded_candidates(row: Fields) -> Several:
    """A number for each response in `scores`, or right and wrong in `correct`."""
    (several,) = _candidates(row)
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


def _judgebench(row: Fields) -> list[Pair | Several]:
    label = text_of(row, "label")
    better = {"A>B": 0, "B>A": 1, "A=B": None}.get(label.replace(" ", ""), label)
    if isinstance(better, str):
        raise BadField("label", '"A>B" or "B>A"', label)
    a, b = text_of(row, "response_A"), text_of(row, "response_B")
    named = {"source": source_of(row), "id": id_of(row)}
    return [Pair(question_of(row, "question"), a, b, better, better is None, **named)]


_STYLES = ("concise", "plain", "markdown")


def _rm_bench(row: Fields) -> list[Pair | Several]:
    """Three styles of each response: nine pairs, whose ids name the styles of both."""
    for field in _BOTH:
        if len(texts := texts_of(row, field)) != len(_STYLES):
            raise BadField(field, f"three responses ({', '.join(_STYLES)})", list(texts))
    return _every_pair(row, str(row.get("domain") or source_of(row)), _STYLES, _STYLES)


def _reward_bench_2(row: Fields) -> list[Pair | Several]:
    """One or more right responses and several wrong ones: every right one against every wrong one."""
    return _every_pair(row, source_of(row), *(range(len(texts_of(row, field))) for field in _BOTH))


def _graded_reward_bench_2(row: Fields) -> Several:
    """All responses of a row, graded 1 and 0."""
    right, wrong = (texts_of(row, field) for field in _BOTH)
    if not right or not wrong:
        raise BadField("rejected" if right else "chosen", "at least one response", [])
    grades = (1.0,) * len(right) + (0.0,) * len(wrong)
    return Several(question_of(row, "prompt"), right + wrong, id_of(row), grades, source_of(row))


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


# Which form a row has


def _are_texts(*fields: str) -> Callable[[Fields], bool]:
    return lambda row: all(isinstance(row[f], str) for f in fields)


def _are_lists_of(kind: type, *fields: str) -> Callable[[Fields], bool]:
    def fits(row: Fields) -> bool:
        return all(
            isinstance(row[f], list | tuple) and row[f] and isinstance(row[f][0], kind)
            for f in fields
        ) or (kind is dict and all(isinstance(row[f], Mapping) for f in fields))

    return fits


def _is_transcript(row: Fields) -> bool:
    return row.get("prompt") is None and all(
        isinstance(row[f], str) and "\n\nAssistant:" in row[f] and "Human:" in row[f][:10]
        for f in _BOTH
    )


def _is_repeated(row: Fields) -> bool:
    """Both answers repeat the prompt. A word or two may do so by chance ("Hi" and "Hi there")."""
    prompt = row["prompt"]
    return (
        isinstance(prompt, str)
        and len(prompt.split()) > 2
        and all(isinstance(row[f], str) and row[f].startswith(prompt) for f in _BOTH)
    )


def _is_standard(row: Fields) -> bool:
    return _are_texts(*_BOTH)(row) and not _is_repeated(row)


def _is_rm_bench(row: Fields) -> bool:
    if not _are_lists_of(str, *_BOTH)(row):
        return False
    # Its rows of code have a subset as well.
    styles = all(len(row[field]) == len(_STYLES) for field in _BOTH)
    return "domain" in row or (styles and "subset" not in row)


def _is_implicit(row: Fields) -> bool:
    return row.get("prompt") is None and _are_texts(*_BOTH)(row) and not _is_transcript(row)


def _is_ultrafeedback(row: Fields) -> bool:
    return isinstance(row["prompt"], str) and _are_lists_of(dict, "chosen", "rejected")(row)


_ALL = (
    # the first that fits is taken, so the narrower form stands before the wider one
    Schema("rm-bench", ("prompt", *_BOTH), True, _rm_bench, _is_rm_bench),
    Schema(
        "reward-bench-2",
        ("prompt", *_BOTH),
        True,
        _reward_bench_2,
        _are_lists_of(str, *_BOTH),
        _graded_reward_bench_2,
    ),
    Schema("candidates", ("prompt", "responses"), False, _candidates, graded=_graded_candidates),
    Schema("labeled-pairs", ("prompt", "response_a", "response_b", "label"), True, _labeled_pairs),
    Schema("pairs", ("prompt", "response_a", "response_b"), False, _pairs),
    Schema("judgebench", ("question", "response_A", "response_B", "label"), True, _judgebench),
    Schema("unified-feedback", ("conv_A", "conv_B"), True, _unified_feedback),
    Schema(
        "helpsteer3",
        ("context", "response1", "response2", "overall_preference"),
        True,
        _helpsteer3,
    ),
    Schema("llamafactory-sharegpt", ("conversations", *_BOTH), True, _factory_sharegpt),
    Schema("llamafactory-alpaca", ("instruction", *_BOTH), True, _factory_alpaca),
    Schema("gram", ("instruction", "output"), True, _gram),
    Schema(
        "ultrafeedback-binarized",
        ("prompt", *_BOTH, "score_chosen", "score_rejected"),
        True,
        _ultrafeedback,
        _is_ultrafeedback,
    ),
    Schema("trl-conversational", _BOTH, True, _trl_conversational, _are_lists_of(dict, *_BOTH)),
    Schema("trl-repeated", ("prompt", *_BOTH), True, _trl_repeated, _is_repeated),
    Schema("trl-standard", ("prompt", *_BOTH), True, _trl_standard, _is_standard),
    Schema("hh-rlhf", _BOTH, True, _hh_rlhf, _is_transcript),
    Schema("trl-implicit", _BOTH, True, _trl_implicit, _is_implicit),
)

# Other names under which people look for the same form.
_ALIASES = {"skywork": "trl-conversational", "reward-bench": "trl-standard", "trl": "trl-standard"}

SCHEMAS: Mapping[str, Schema] = {schema.name: schema for schema in _ALL} | {
    alias: next(s for s in _ALL if s.name == name) for alias, name in _ALIASES.items()
}


def detect_schema(name: str, where: str, sample: Sequence[Fields]) -> Schema:
    """The schema called `name`, or for "auto" the first one that fits every row of the sample.

    Raises DataError with the fields found and the nearest schema where none fits.
    """
    if name != "auto":
        if name not in SCHEMAS:
            known = ", ".join(["auto", *SCHEMAS])
            raise DataError(f"unknown schema {name!r}: expected one of {known}")
        return SCHEMAS[name]
    # A damaged row or two in the sample must not hide the schema of the others.
    for share in (1.0, 0.5):
        for schema in _ALL:
            fitting = sum(_has(schema, row) and schema.fits(row) for row in sample)
            if fitting >= share * len(sample):
                return schema
    # The fields of a schema with unfit values: let its parser say what is wrong with them.
    named = [schema for schema in _ALL if _has(schema, sample[0])]
    if named:
        return max(reversed(named), key=lambda schema: len(schema.fields))
    found = list(dict.fromkeys(field for row in sample for field in row))
    near = max(_ALL, key=lambda s: len(set(s.fields) & set(found)) / len(s.fields))
    missing = [field for field in near.fields if field not in found]
    known = "\n".join(f"  {s.name}: {', '.join(s.fields)}" for s in _ALL)
    raise DataError(
        f"{where}: no known schema has these fields: {', '.join(map(str, found))}\n"
        f"nearest is {near.name}, which also has {', '.join(missing)}; rename the columns to fit a "
        f"schema. Known schemas:\n{known}"
    )


def _has(schema: Schema, row: Fields) -> bool:
    return all(field in row for field in schema.fields)
