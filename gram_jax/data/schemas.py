"""The published forms of rows, as tables of their columns; detected by the columns of a row, or named in a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gram_jax.data import shapes
from gram_jax.data.fields import Fields, column, id_of, number_value
from gram_jax.data.gram_rows import gram, is_published, rendered
from gram_jax.data.records import Candidates, Comparison, Record
from gram_jax.data.shapes import BOTH, PROMPTS, Columns, Parts, alternative, prompt_at
from gram_jax.data.verdicts import (
    WORDS,
    OneHot,
    Scores,
    Strength,
    Verdict,
    Words,
    chosen,
    unlabeled,
)
from gram_jax.errors import DataError, JudgeError
from gram_jax.judge.messages import MEDIA, BadField, Notes, Prompt, Seen, read_messages, with_system
from gram_jax.judge.recover import recover_template
from gram_jax.judge.template import GRAM_QUESTION, GRAM_RESPONSES

# Columns that every schema reads if a row has them.
SYSTEM = "system|system_prompt"
TOOLS = "tools"
COMMON = ("margin", "weight", "tools", "system", "system_prompt")

Reader = Callable[[Fields, Notes], Sequence[Record]]


@dataclass(frozen=True)
class Schema:
    """A published form of rows.

    fields: the required columns ("a|b": one of them); read: the records of a row; fits: whether the values of a row
    with these columns are of this form; labeled: whether a row states a preference; graded: the row as one list of
    graded responses, if the form has such lists; listed: a row is one such list; grouped: the rows of one prompt are
    one such list; optional: columns that are read if they exist.
    """

    name: str
    fields: tuple[str, ...]
    read: Reader
    fits: Callable[[Fields], bool] = lambda row: True
    labeled: bool = True
    graded: Callable[[Fields, Notes], Candidates] | None = None
    listed: bool = False
    grouped: bool = False
    optional: tuple[str, ...] = ()

    def matches(self, row: Fields) -> bool:
        """Whether the row has the required columns."""
        return len(self.used(row)) == len(self.fields)

    def used(self, row: Fields) -> frozenset[str]:
        """The required columns that the row has, one of each alternative."""
        found = (
            next((n for n in path.split("|") if _root(n) in row), None) for path in self.fields
        )
        return frozenset(_root(name) for name in found if name is not None)

    @property
    def columns(self) -> frozenset[str]:
        """All columns that may be read."""
        names = (
            name for path in (*self.fields, *self.optional, *COMMON) for name in path.split("|")
        )
        return frozenset(map(_root, names))

    def parse(self, row: Fields, notes: Notes) -> Sequence[Record]:
        """The records of a row, with its system turn and tools. Raises BadField."""
        return [_with_context(record, row, notes) for record in self.read(row, notes)]

    def parse_graded(self, row: Fields, notes: Notes) -> Candidates:
        """The row as one list of graded responses."""
        assert self.graded is not None
        return _with_context(self.graded(row, notes), row, notes)


def _root(path: str) -> str:
    return path.split(".")[0].split("[")[0]


def _with_context(record: Any, row: Fields, notes: Notes) -> Any:
    for name in MEDIA:
        if row.get(name):
            raise BadField(name, "rows of text: a judge reads no media", Seen(f"a column {name}"))
    system, tools = alternative(row, SYSTEM), row.get(TOOLS)
    if not tools and isinstance(row.get("input"), Mapping):  # of OpenAI's files
        tools = row["input"].get(TOOLS)
    if system is None and not tools:
        return record
    text = None if system is None else row[system]
    return replace(record, prompt=with_system(record.prompt, text, tools))


# Rows with two responses


def _pair(
    name: str,
    columns: Columns,
    verdict: Verdict,
    fields: tuple[str, ...] = (),
    shape: Callable[[Fields, Columns, Notes], Parts] = shapes.beside,
    **options: Any,
) -> Schema:
    """A schema of a prompt and two responses. fields: the required columns, by default `columns` and the verdict's."""

    def read(row: Fields, notes: Notes) -> list[Comparison]:
        prompt, first, second = shape(row, columns, notes)
        label, margin = verdict(row)
        return [Comparison(prompt, first, second, label, margin)]

    return Schema(
        name,
        fields or (*columns, *_verdict_fields(verdict)),
        read,
        labeled=verdict is not unlabeled,
        **options,
    )


def _verdict_fields(verdict: Verdict) -> tuple[str, ...]:
    match verdict:
        case Words(columns):
            return ("|".join(columns),)
        case Strength(name):
            return (name,)
        case Scores(first, second) | OneHot(first, second):
            return (first, second)
    return ()


def _texts(row: Fields, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


def _is_messages(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict)
    )


def _are_messages(row: Fields) -> bool:
    return all(_is_messages(row[name]) for name in BOTH)


def _has_prompt(row: Fields) -> bool:
    return any(row.get(name) is not None for name in PROMPTS)


def _is_transcript(row: Fields) -> bool:
    return (not _has_prompt(row) and _texts(row, *BOTH)) and all(
        "\n\nAssistant:" in row[name] and "Human:" in row[name][:10] for name in BOTH
    )


def _is_implicit(row: Fields) -> bool:
    return not _has_prompt(row) and _texts(row, *BOTH) and not _is_transcript(row)


def _is_repeated(row: Fields) -> bool:
    """Whether both responses repeat a prompt of over two words; a shorter one may be repeated by chance ("Hi")."""
    prompt = row["prompt"]
    if not isinstance(prompt, str) or len(prompt.split()) <= 2:
        return False
    return _texts(row, *BOTH) and all(row[name].startswith(prompt) for name in BOTH)


def _is_standard(row: Fields) -> bool:
    return _texts(row, *BOTH) and not (row.get("prompt") is not None and _is_repeated(row))


# Rows with lists of responses

STYLES = ("concise", "plain", "markdown")


def _is_rm_bench(row: Fields) -> bool:
    sides = [row[name] for name in BOTH]
    if not all(isinstance(x, list | tuple) and bool(x) and isinstance(x[0], str) for x in sides):
        return False
    # Rows of code also have a subset.
    styles = all(len(side) == len(STYLES) for side in sides)
    return "domain" in row or (styles and "subset" not in row)


def _has_lists(row: Fields) -> bool:
    """Whether one side is a list of texts and the other as well, or one text. One of the lists may be empty."""
    sides = [row[name] for name in BOTH]
    lists = [side for side in sides if isinstance(side, list | tuple)]
    texts = [text for side in lists for text in side]
    others = all(isinstance(side, str) for side in sides if side not in lists)
    return bool(lists) and others and bool(texts) and isinstance(texts[0], str)


def _rm_bench(row: Fields, notes: Notes) -> list[Comparison]:
    """Three styles of each response: nine pairs, whose ids name the styles of both."""
    for name in BOTH:
        if len(texts := shapes.several(row, name, notes)) != len(STYLES):
            raise BadField(name, f"three responses ({', '.join(STYLES)})", list(texts))
    return _every_pair(row, notes, str(row.get("domain") or ""), STYLES, STYLES)


def _right_and_wrong(row: Fields, notes: Notes) -> list[Comparison]:
    """One or more correct responses and several incorrect ones: each correct one with each incorrect one."""
    sides = [shapes.one_or_several(row, name, notes) for name in BOTH]
    return _every_pair(row, notes, "", *map(range, map(len, sides)))


def _graded_right_and_wrong(row: Fields, notes: Notes) -> Candidates:
    """All responses of a row, graded 1 and 0."""
    right, wrong = (shapes.one_or_several(row, name, notes) for name in BOTH)
    grades = (1.0,) * len(right) + (0.0,) * len(wrong)
    return Candidates(prompt_at(row, "|".join(PROMPTS), notes), right + wrong, grades)


def _every_pair(
    row: Fields, notes: Notes, source: str, good_names: Sequence[Any], bad_names: Sequence[Any]
) -> list[Comparison]:
    """Each chosen response with each rejected one; the pair's id has the names of both."""
    prompt, name = prompt_at(row, "|".join(PROMPTS), notes), id_of(row)
    right, wrong = (shapes.one_or_several(row, side, notes) for side in BOTH)
    return [
        Comparison(prompt, good, bad, 0, id=name and f"{name}[{i},{j}]", source=source)
        for i, good in zip(good_names, right, strict=True)
        for j, bad in zip(bad_names, wrong, strict=True)
    ]


def _candidates(row: Fields, notes: Notes) -> list[Candidates]:
    responses = shapes.several(row, "responses", notes)
    if not responses:
        raise BadField("responses", "at least one response", [])
    return [Candidates(prompt_at(row, "|".join(PROMPTS), notes), responses)]


def _graded_candidates(row: Fields, notes: Notes) -> Candidates:
    """A number for each response in `scores`, or true and false in `correct`."""
    (record,) = _candidates(row, notes)
    given = [name for name in ("scores", "correct") if row.get(name) is not None]
    if len(given) != 1:
        raise BadField("scores", "scores or correct, a value for each response", Seen(given))
    name, count = given[0], len(record.responses)
    values = row[name]
    if not isinstance(values, list | tuple) or len(values) != count:
        raise BadField(name, f"a list of {count} values, one for each response", values)
    if name == "correct" and any(value not in (0, 1) for value in values):
        raise BadField(name, "true or false for each response", values)
    values = [int(x) if isinstance(x, bool) else x for x in values]
    return replace(record, grades=tuple(number_value(x, name) for x in values))


def _nectar(row: Fields, notes: Notes) -> Candidates:
    """Answers with ranks, 1 the best."""
    responses = shapes.several(row, "answers[].answer", notes)
    ranks = [
        number_value(x, f"answers[{i}].rank") for i, x in enumerate(column(row, "answers[].rank"))
    ]
    if not responses:
        raise BadField("answers", "at least one answer", [])
    return Candidates(prompt_at(row, "prompt", notes), responses, tuple(-rank for rank in ranks))


def _kto(row: Fields, notes: Notes) -> Candidates:
    """One response, and whether it is a good one."""
    good = row["label"]
    if good not in (0, 1):
        raise BadField("label", "true or false", good)
    prompt = prompt_at(row, "|".join(PROMPTS), notes)
    response = shapes.read_response(row["completion"], "completion", notes)
    return Candidates(prompt, (response,), (float(good),))


def _output_list(row: Fields, notes: Notes) -> list[Comparison]:
    """An output of two responses, the better one first."""
    answers = shapes.several(row, "output", notes)
    if len(answers) != 2:
        raise BadField("output", "two responses, the better one first", list(answers))
    return [Comparison(shapes.instruction_of(row), *answers, 0)]


def graded_pairs(record: Candidates, name: str = "") -> list[Comparison]:
    """Every pair of responses with different grades, the better one first. name: the id of the row."""
    assert record.grades is not None
    ranked = sorted(range(len(record.responses)), key=lambda at: (-record.grades[at], at))
    binary = set(record.grades) <= {0.0, 1.0}
    return [
        Comparison(
            record.prompt,
            record.responses[i],
            record.responses[j],
            0,
            None if binary else record.grades[i] - record.grades[j],
            id=name and f"{name}[{i},{j}]",
            source=record.source,
        )
        for place, i in enumerate(ranked)
        for j in ranked[place + 1 :]
        if record.grades[i] > record.grades[j]
    ]


def _listed(
    name: str,
    fields: tuple[str, ...],
    graded: Callable[[Fields, Notes], Candidates],
    **options: Any,
) -> Schema:
    def read(row: Fields, notes: Notes) -> list[Comparison]:
        return graded_pairs(graded(row, notes), id_of(row))

    return Schema(name, fields, read, graded=graded, listed=True, **options)


# Rows with a prompt alone


def _prompt_alone(row: Fields, notes: Notes) -> list[Candidates]:
    name = alternative(row, _ALONE) or "prompt"
    if name in ("messages", "conversations"):
        turns: Prompt = read_messages(row[name], name, notes)
        while turns and turns[-1].role == "assistant":  # rows of supervised fine-tuning
            turns = turns[:-1]
        return [Candidates(shapes.checked_prompt(turns, name), ())]
    if name == "instruction":
        return [Candidates(shapes.instruction_of(row), ())]
    return [Candidates(prompt_at(row, name, notes), ())]


_ASKED = "|".join(PROMPTS)
_ALONE = "prompt|question|query|problem|instruction|input|messages|conversations"
_ANY = (_ASKED, *BOTH)
_LABELS = WORDS | {"0": 0, "1": 1}  # an integer is the index of the better response
_MODELS = Words(("winner",), WORDS)
# The first of two forms with the same columns is used, so a narrower form precedes a wider one.
_ALL = (
    Schema("rm-bench", ("prompt", *BOTH), _rm_bench, _is_rm_bench),
    Schema("reward-bench-2", _ANY, _right_and_wrong, _has_lists, graded=_graded_right_and_wrong),
    Schema(
        "candidates",
        (_ASKED, "responses"),
        _candidates,
        labeled=False,
        graded=_graded_candidates,
        optional=("scores", "correct"),
    ),
    _pair(
        "labeled-pairs",
        (_ASKED + "|instruction", "response_a", "response_b"),
        Words(("label", "winner", "preference"), _LABELS),
    ),
    _pair("pairs", (_ASKED + "|instruction", "response_a", "response_b"), unlabeled),
    _pair("judgebench", ("question", "response_A", "response_B"), Words(("label",), WORDS)),
    _pair(
        "unified-feedback",
        ("", "conv_A", "conv_B"),
        Scores("conv_A_rating", "conv_B_rating"),
        ("conv_A", "conv_B"),
        optional=("conv_A_rating", "conv_B_rating"),
    ),
    _pair("helpsteer2", ("prompt", "response_1", "response_2"), Strength("preference_strength")),
    _pair("helpsteer3", ("context", "response1", "response2"), Strength("overall_preference")),
    _pair(
        "lmarena",
        ("", "conversation_a", "conversation_b"),
        _MODELS,
        ("conversation_a", "conversation_b", "winner"),
    ),
    _pair(
        "lmsys-55k",
        ("prompt", "response_a", "response_b"),
        OneHot("winner_model_a", "winner_model_b", "winner_tie"),
        shape=shapes.lists_of_turns,
        optional=("winner_tie",),
    ),
    _pair("ppe", ("prompt", "response_1", "response_2"), _MODELS),
    _pair(
        "pku-saferlhf",
        ("prompt", "response_0", "response_1"),
        Words(("better_response_id",), {"0": 0, "1": 1}),
    ),
    _pair(
        "shp",
        ("history", "human_ref_A", "human_ref_B"),
        Words(("labels",), {"1": 0, "0": 1}, margin="score_ratio"),
        optional=("score_ratio",),
    ),
    _pair(
        "offsetbias",
        ("instruction", "output_1", "output_2"),
        Words(("label",), {"1": 0, "2": 1}),
    ),
    _pair("rmb", ("conversation_input", "chosen.answer", "reject.answer"), chosen),
    _pair(
        "openai-dpo",
        ("input.messages", "preferred_output", "non_preferred_output"),
        chosen,
    ),
    _pair(
        "ms-swift",
        ("messages", "messages", "rejected_response"),
        chosen,
        ("messages", "rejected_response"),
        shapes.answered_conversation,
    ),
    _pair(
        "ms-swift-messages",
        ("messages", "messages", "rejected_messages"),
        chosen,
        ("messages", "rejected_messages"),
        shapes.answered_conversation,
    ),
    _listed("nectar", ("prompt", "answers"), _nectar),
    _listed("kto", (_ASKED, "completion", "label"), _kto, grouped=True),
    _pair("llamafactory-sharegpt", ("conversations", *BOTH), chosen),
    _pair(
        "llamafactory-alpaca",
        ("instruction", *BOTH),
        chosen,
        shape=shapes.instruction,
        optional=("input", "history"),
    ),
    Schema(
        "llamafactory-list",
        ("instruction", "output"),
        _output_list,
        lambda row: isinstance(row["output"], list | tuple),
        optional=("input", "history"),
    ),
    Schema(
        "gram",
        ("instruction", "output"),
        lambda row, notes: gram(row),
        lambda row: isinstance(row["output"], str),
        optional=("input",),
    ),
    _pair(
        "ultrafeedback-binarized",
        (_ASKED, *BOTH),
        Scores("score_chosen", "score_rejected", ordered=True),
        fits=lambda row: _are_messages(row),
    ),
    _pair(
        "trl-conversational",
        (_ASKED, *BOTH),
        chosen,
        BOTH,
        fits=_are_messages,
        optional=PROMPTS,
    ),
    _pair("trl-repeated", ("prompt", *BOTH), chosen, shape=shapes.repeated, fits=_is_repeated),
    _pair("trl-standard", (_ASKED, *BOTH), chosen, fits=_is_standard),
    _pair("hh-rlhf", ("", *BOTH), chosen, BOTH, shapes.transcripts, fits=_is_transcript),
    _pair("trl-implicit", ("", *BOTH), chosen, BOTH, shapes.shared_text, fits=_is_implicit),
)

# Not in SCHEMAS, because training and scoring cannot use it.
_PROMPTS = Schema("prompts", (_ALONE,), _prompt_alone, labeled=False, optional=("history",))

# Columns that may hold the prompt of rows that have none by the rules of their schema.
_MAY_ASK = ("context", "instruction", "messages", "conversations", "history", "user", "title", "text",
            "document", "article", "passage", "request", "post", "dialogue", "task")  # fmt: skip

# Forms that do not belong to a published data set; an error message lists them first.
_PLAIN = ("trl-standard", "labeled-pairs", "pairs", "candidates")
# Columns of many forms, ignored for the nearest one.
_COMMON = frozenset((*_ALONE.split("|"), "label", "winner"))

# Other names of forms.
_ALIASES = {"skywork": "trl-conversational", "reward-bench": "trl-standard", "trl": "trl-standard"}

_BY_NAME = {schema.name: schema for schema in _ALL}
SCHEMAS: Mapping[str, Schema] = _BY_NAME | {
    alias: _BY_NAME[name] for alias, name in _ALIASES.items()
}


def detect_schema(
    name: str, where: str, sample: Sequence[Fields], *, prompts_alone: bool = False
) -> Schema:
    """The schema called `name`, or for "auto" the one that fits every row of the sample.

    prompts_alone: rows of no known schema that have a prompt are prompts without responses. Raises DataError with the
    columns found and the nearest schema if none fits, and with both readings if the rows can be read in two ways.
    """
    if name != "auto":
        if name not in SCHEMAS:
            known = ", ".join(["auto", *SCHEMAS])
            raise DataError(f"unknown schema {name!r}: expected one of {known}")
        return SCHEMAS[name]
    # A few damaged rows in the sample do not prevent the detection.
    for share in (1.0, 0.5):
        fitting = [
            schema
            for schema in _ALL
            if sum(schema.matches(row) and schema.fits(row) for row in sample)
            >= share * len(sample)
        ]
        if fitting:
            return _narrowest(fitting, where, sample)
    # The row has the columns of a schema but values that do not fit: the parser reports the error.
    named = [schema for schema in _ALL if schema.matches(sample[0])]
    if named:
        return max(reversed(named), key=lambda schema: len(schema.fields))
    if prompts_alone and all(_PROMPTS.matches(row) for row in sample):
        return _PROMPTS
    raise _unknown(where, list(dict.fromkeys(name for row in sample for name in row)))


def _narrowest(fitting: Sequence[Schema], where: str, sample: Sequence[Fields]) -> Schema:
    """The schema that reads the columns of all others, the first one if several read the same."""
    row = dict.fromkeys(name for row in sample for name in row)
    best = max(fitting, key=lambda schema: len(schema.used(row)))
    for other in fitting:
        if not other.used(row) <= best.columns:
            raise _ambiguous(
                where,
                f"{best.name} ({', '.join(sorted(best.used(row)))})",
                f"{other.name} ({', '.join(sorted(other.used(row)))})",
                f"--schema {best.name} or --schema {other.name}, or --map",
            )
    if best.name == "trl-implicit":
        for name in _MAY_ASK:
            if any(isinstance(row.get(name), str | list | tuple) and row[name] for row in sample):
                raise _ambiguous(
                    where,
                    "the prompt is what chosen and rejected begin with (schema trl-implicit)",
                    f"it is the column {name}",
                    f"--schema trl-implicit, or --map prompt={name} --map chosen=chosen --map rejected=rejected",
                )
    return best


def _ambiguous(where: str, one: str, other: str, advice: str) -> DataError:
    return DataError(
        f"{where}: the rows can be read in two ways: {one}, or {other}. State which: {advice}"
    )


def _unknown(where: str, found: Sequence[str]) -> DataError:
    """The error that no schema has the columns found, with the nearest one and a list of all."""
    plain = [SCHEMAS[name] for name in _PLAIN]
    forms = [*plain, *(schema for schema in _ALL if schema not in plain)]
    row = dict.fromkeys(found)
    near = max(forms, key=lambda s: len(s.used(row)) / len(s.fields))
    missing = [path for path in near.fields if not any(_root(n) in row for n in path.split("|"))]
    advice = "name the columns of a schema, as in --map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN"
    if near.used(row) - _COMMON:
        advice = f"nearest is {near.name}, which also has {', '.join(missing)}; {advice}"
    known = "\n".join(f"  {s.name}: {', '.join(s.fields)}" for s in forms)
    return DataError(
        f"{where}: no known schema has these fields: {', '.join(map(str, found))}\n"
        f"{advice}. Known schemas, the plainest first:\n{known}"
    )


def with_own_template(schema: Schema, where: str, sample: Sequence[Fields]) -> Schema:
    """The schema, with a parser for the sample's own template if it holds GRAM rows without the published frame.

    Raises DataError if template and labels cannot be recovered from the sample.
    """
    if schema.name != "gram" or any(is_published(row) for row in sample):
        return schema
    try:
        template, labels = recover_template(sample)
    except JudgeError as error:
        if any(GRAM_RESPONSES[0][0] in str(text) for row in sample for text in row.values()):
            return schema  # the published frame, damaged: its parser reports the place
        raise DataError(
            f"{where}: rendered rows with neither the published frame ({GRAM_QUESTION.strip()}, "
            f"{GRAM_RESPONSES[0][0].strip()} ..., A or B) nor a template that could be recovered: {error}"
        ) from error
    own = partial(rendered, template, labels)
    return replace(schema, read=lambda row, notes: own(row))
