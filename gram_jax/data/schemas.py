"""The published forms of rows, as tables of their columns; detected by the columns of a row, or named in a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gram_jax.data import lists, shapes
from gram_jax.data.fields import Fields, id_of
from gram_jax.data.gram_rows import gram
from gram_jax.data.lists import ALONE, ASKED
from gram_jax.data.records import Candidates, Comparison, Label, Record
from gram_jax.data.shapes import BOTH, PROMPTS, Columns, Parts, alternative
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
from gram_jax.judge.messages import MEDIA, BadField, Notes, Seen, with_system

# Columns of one meaning.
SYSTEM = "system|system_prompt|system_message"
TOOLS = "tools"
VERDICTS = ("label", "winner", "preference")
# Columns that every schema reads if a row has them; one of grouped rows only those of the prompt.
COMMON = ("margin", "weight", "rationale", TOOLS, SYSTEM)

Reader = Callable[[Fields, Notes], Sequence[Record]]


@dataclass(frozen=True)
class Schema:
    """A published form of rows.

    fields: the required columns ("a|b": one of them); read: the records of a row; fits: whether the values of a row
    with these columns are of this form; labeled: whether a row states a preference; graded: the row as one list of
    graded responses, if the form has such lists; listed: a row is one such list; grouped: the rows of one prompt are
    one such list; several: a row may give several comparisons; optional: columns that are read if they exist.
    """

    name: str
    fields: tuple[str, ...]
    read: Reader
    fits: Callable[[Fields], bool] = lambda row: True
    labeled: bool = True
    graded: Callable[[Fields, Notes], Candidates] | None = None
    listed: bool = False
    grouped: bool = False
    several: bool = False
    optional: tuple[str, ...] = ()

    def matches(self, row: Fields) -> bool:
        """Whether the row has the required columns."""
        return len(self.used(row)) == len(self.fields)

    def used(self, row: Fields) -> frozenset[str]:
        """The required columns that the row has, one of each alternative."""
        found = (next((n for n in path.split("|") if root(n) in row), None) for path in self.fields)
        return frozenset(root(name) for name in found if name is not None)

    @property
    def columns(self) -> frozenset[str]:
        """All columns that may be read."""
        common = (TOOLS, SYSTEM) if self.grouped else COMMON
        names = (
            name for path in (*self.fields, *self.optional, *common) for name in path.split("|")
        )
        return frozenset(map(root, names))

    def parse(self, row: Fields, notes: Notes) -> Sequence[Record]:
        """The records of a row, with its system turn and tools. Raises BadField."""
        return [_with_context(record, row) for record in self.read(row, notes)]

    def parse_graded(self, row: Fields, notes: Notes) -> Candidates:
        """The row as one list of graded responses."""
        assert self.graded is not None
        return _with_context(self.graded(row, notes), row)


def root(path: str) -> str:
    """The column of a path."""
    return path.split(".")[0].split("[")[0]


def _with_context(record: Any, row: Fields) -> Any:
    """The record with the row's system turn and definitions of tools. Raises BadField for media."""
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
    return _texts(row, *BOTH) and all(
        "\n\nAssistant:" in row[name] and "Human:" in row[name][:10] for name in BOTH
    )


def _is_implicit(row: Fields) -> bool:
    return not _has_prompt(row) and _texts(row, *BOTH) and not _is_transcript(row)


def _is_repeated(row: Fields) -> bool:
    """Whether both responses repeat a prompt of over two words; a shorter one may be repeated by chance ("Hi")."""
    prompt = row["prompt"]
    if not isinstance(prompt, str) or len(prompt.split()) <= 2 or _is_transcript(row):
        return False
    return _texts(row, *BOTH) and all(row[name].startswith(prompt) for name in BOTH)


def _is_standard(row: Fields) -> bool:
    if row.get("prompt") is not None and _is_repeated(row):
        return False
    return _texts(row, *BOTH) and not _is_transcript(row)


# Rows with lists of responses


def _is_rm_bench(row: Fields) -> bool:
    sides = [row[name] for name in BOTH]
    if not all(isinstance(x, list | tuple) and bool(x) and isinstance(x[0], str) for x in sides):
        return False
    # Rows of code also have a subset.
    styles = all(len(side) == len(lists.STYLES) for side in sides)
    return "domain" in row or (styles and "subset" not in row)


def _has_lists(row: Fields) -> bool:
    """Whether one side is a list of texts and the other as well, or one text. One of the lists may be empty."""
    sides = [row[name] for name in BOTH]
    lists = [side for side in sides if isinstance(side, list | tuple)]
    texts = [text for side in lists for text in side]
    others = all(isinstance(side, str) for side in sides if side not in lists)
    return bool(lists) and others and bool(texts) and isinstance(texts[0], str)


def _listed(
    name: str,
    fields: tuple[str, ...],
    graded: Callable[[Fields, Notes], Candidates],
    **options: Any,
) -> Schema:
    def read(row: Fields, notes: Notes) -> list[Comparison]:
        return lists.graded_pairs(graded(row, notes), id_of(row))

    return Schema(name, fields, read, graded=graded, listed=True, several=True, **options)


_ANY = (ASKED, *BOTH)
# an integer is the index of the better response
_LABELS: Mapping[str, Label] = {**WORDS, "0": 0, "1": 1}
_MODELS = Words(("winner",), WORDS)
# The first of two forms with the same columns is used, so a narrower form precedes a wider one.
ALL = (
    Schema("rm-bench", ("prompt", *BOTH), lists.rm_bench, _is_rm_bench, several=True),
    Schema(
        "reward-bench-2",
        _ANY,
        lists.right_and_wrong,
        _has_lists,
        graded=lists.graded_right_and_wrong,
        several=True,
    ),
    Schema(
        "candidates",
        (ASKED, "responses"),
        lists.candidates,
        labeled=False,
        graded=lists.graded_candidates,
        optional=("scores", "correct"),
    ),
    _pair(
        "labeled-pairs",
        (ASKED + "|instruction", "response_a", "response_b"),
        Words(VERDICTS, _LABELS),
    ),
    _pair("pairs", (ASKED + "|instruction", "response_a", "response_b"), unlabeled),
    _pair(
        "judgebench",
        ("question", "response_A", "response_B"),
        Words(("label",), {"a>b": 0, "b>a": 1, "a=b": "tie"}),
    ),
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
    _listed("nectar", ("prompt", "answers"), lists.nectar),
    _listed("kto", (ASKED, "completion", "label"), lists.kto, grouped=True),
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
        lists.output_list,
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
        (ASKED, *BOTH),
        Scores("score_chosen", "score_rejected", ordered=True),
        fits=lambda row: _are_messages(row),
    ),
    _pair(
        "trl-conversational",
        (ASKED, *BOTH),
        chosen,
        BOTH,
        fits=_are_messages,
        optional=PROMPTS,
    ),
    _pair("trl-repeated", ("prompt", *BOTH), chosen, shape=shapes.repeated, fits=_is_repeated),
    _pair("trl-standard", (ASKED, *BOTH), chosen, fits=_is_standard),
    _pair(
        "hh-rlhf",
        ("", *BOTH),
        chosen,
        BOTH,
        shapes.transcripts,
        fits=_is_transcript,
        optional=PROMPTS,
    ),
    _pair("trl-implicit", ("", *BOTH), chosen, BOTH, shapes.shared_text, fits=_is_implicit),
)

# Not in SCHEMAS, because training and scoring cannot use it.
PROMPT_ROWS = Schema("prompts", (ALONE,), lists.prompt_alone, labeled=False, optional=("history",))

# Other names of forms.
_ALIASES = {"skywork": "trl-conversational", "reward-bench": "trl-standard", "trl": "trl-standard"}

_BY_NAME = {schema.name: schema for schema in ALL}
SCHEMAS: Mapping[str, Schema] = _BY_NAME | {
    alias: _BY_NAME[name] for alias, name in _ALIASES.items()
}
