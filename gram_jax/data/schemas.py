"""Which of the published forms a row has: recognised by its fields, or named by a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gram_jax.data import parsers
from gram_jax.data.comparison import Candidates, Record
from gram_jax.data.fields import Fields
from gram_jax.data.gram_rows import gram, is_published, rendered
from gram_jax.data.parsers import BOTH, STYLES
from gram_jax.errors import DataError, JudgeError
from gram_jax.judge.recover import recover_template
from gram_jax.judge.template import GRAM_QUESTION, GRAM_RESPONSES


@dataclass(frozen=True)
class Schema:
    """A published form of rows.

    fields: those a row must have; fits: whether the values of a row that has them are of this form. graded: the row as
    one list of graded responses, for forms that have such.
    """

    name: str
    fields: tuple[str, ...]
    labeled: bool
    parse: Callable[[Fields], Sequence[Record]]
    fits: Callable[[Fields], bool] = lambda row: True
    graded: Callable[[Fields], Candidates] | None = None


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
        for f in BOTH
    )


def _is_repeated(row: Fields) -> bool:
    """Both answers repeat the prompt. A word or two may do so by chance ("Hi" and "Hi there")."""
    prompt = row["prompt"]
    return (
        isinstance(prompt, str)
        and len(prompt.split()) > 2
        and all(isinstance(row[f], str) and row[f].startswith(prompt) for f in BOTH)
    )


def _is_standard(row: Fields) -> bool:
    return _are_texts(*BOTH)(row) and not _is_repeated(row)


def _is_rm_bench(row: Fields) -> bool:
    if not _are_lists_of(str, *BOTH)(row):
        return False
    # Its rows of code have a subset as well.
    styles = all(len(row[field]) == len(STYLES) for field in BOTH)
    return "domain" in row or (styles and "subset" not in row)


def _is_reward_bench_2(row: Fields) -> bool:
    """One of the two may be empty, which the parser names."""
    both = [row[field] for field in BOTH]
    texts = [text for side in both if isinstance(side, list | tuple) for text in side]
    return (
        all(isinstance(side, list | tuple) for side in both)
        and bool(texts)
        and isinstance(texts[0], str)
    )


def _is_implicit(row: Fields) -> bool:
    return row.get("prompt") is None and _are_texts(*BOTH)(row) and not _is_transcript(row)


def _is_ultrafeedback(row: Fields) -> bool:
    return isinstance(row["prompt"], str) and _are_lists_of(dict, "chosen", "rejected")(row)


_ALL = (
    # the first that fits is taken, so the narrower form stands before the wider one
    Schema("rm-bench", ("prompt", *BOTH), True, parsers.rm_bench, _is_rm_bench),
    Schema(
        "reward-bench-2",
        ("prompt", *BOTH),
        True,
        parsers.reward_bench_2,
        _is_reward_bench_2,
        parsers.graded_reward_bench_2,
    ),
    Schema(
        "candidates",
        ("prompt", "responses"),
        False,
        parsers.candidates,
        graded=parsers.graded_candidates,
    ),
    Schema(
        "labeled-pairs",
        ("prompt", "response_a", "response_b", "label"),
        True,
        parsers.labeled_pairs,
    ),
    Schema("pairs", ("prompt", "response_a", "response_b"), False, parsers.pairs),
    Schema(
        "judgebench", ("question", "response_A", "response_B", "label"), True, parsers.judgebench
    ),
    Schema("unified-feedback", ("conv_A", "conv_B"), True, parsers.unified_feedback),
    Schema(
        "helpsteer3",
        ("context", "response1", "response2", "overall_preference"),
        True,
        parsers.helpsteer3,
    ),
    Schema("llamafactory-sharegpt", ("conversations", *BOTH), True, parsers.factory_sharegpt),
    Schema("llamafactory-alpaca", ("instruction", *BOTH), True, parsers.factory_alpaca),
    Schema("gram", ("instruction", "output"), True, gram),
    Schema(
        "ultrafeedback-binarized",
        ("prompt", *BOTH, "score_chosen", "score_rejected"),
        True,
        parsers.ultrafeedback,
        _is_ultrafeedback,
    ),
    Schema(
        "trl-conversational", BOTH, True, parsers.trl_conversational, _are_lists_of(dict, *BOTH)
    ),
    Schema("trl-repeated", ("prompt", *BOTH), True, parsers.trl_repeated, _is_repeated),
    Schema("trl-standard", ("prompt", *BOTH), True, parsers.trl_standard, _is_standard),
    Schema("hh-rlhf", BOTH, True, parsers.hh_rlhf, _is_transcript),
    Schema("trl-implicit", BOTH, True, parsers.trl_implicit, _is_implicit),
)

# What people bring who have no published set: the forms that a message names first.
_PLAIN = ("trl-standard", "labeled-pairs", "pairs", "candidates")
_ASKED = ("prompt", "question", "instruction")  # in rows of any form: nearness is not told by it

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
    plain = [SCHEMAS[name] for name in _PLAIN]
    forms = [*plain, *(schema for schema in _ALL if schema not in plain)]
    near = max(forms, key=lambda s: len(set(s.fields) & set(found)) / len(s.fields))
    missing = [field for field in near.fields if field not in found]
    advice = "rename the fields to those of a schema"
    if set(near.fields) & set(found) - set(_ASKED):
        advice = f"nearest is {near.name}, which also has {', '.join(missing)}; {advice}"
    known = "\n".join(f"  {s.name}: {', '.join(s.fields)}" for s in forms)
    raise DataError(
        f"{where}: no known schema has these fields: {', '.join(map(str, found))}\n"
        f"{advice}. Known schemas, the plainest first:\n{known}"
    )


def _has(schema: Schema, row: Fields) -> bool:
    return all(field in row for field in schema.fields)


def with_own_template(schema: Schema, where: str, sample: Sequence[Fields]) -> Schema:
    """The schema as it is, but for rendered GRAM rows that do not have the published frame and labels.

    Those are read by the template and the labels that the sample shares. Raises DataError if it
    leaves them open.
    """
    if schema.name != "gram" or any(is_published(row) for row in sample):
        return schema
    try:
        template, labels = recover_template(sample)
    except JudgeError as error:
        if any(GRAM_RESPONSES[0][0] in str(text) for row in sample for text in row.values()):
            return schema  # the published frame, damaged: its parser says where
        raise DataError(
            f"{where}: rendered rows with neither the published frame ({GRAM_QUESTION.strip()}, "
            f"{GRAM_RESPONSES[0][0].strip()} ..., A or B) nor a template that could be recovered: {error}"
        ) from error
    return replace(schema, parse=partial(rendered, template, labels))
