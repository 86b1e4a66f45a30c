"""The published forms of rows, detected by their fields or named in a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gram_jax.data import parsers
from gram_jax.data.fields import Fields
from gram_jax.data.gram_rows import gram, is_published, rendered
from gram_jax.data.parsers import BOTH, STYLES
from gram_jax.data.records import Candidates, Record
from gram_jax.errors import DataError, JudgeError
from gram_jax.judge.recover import recover_template
from gram_jax.judge.template import GRAM_QUESTION, GRAM_RESPONSES


@dataclass(frozen=True)
class Schema:
    """A published form of rows.

    fields: the required fields; fits: whether the values of a row with these fields are of this form; labeled: whether
    a row states a preference; graded: the row as one list of graded responses, if the form has such lists.
    """

    name: str
    fields: tuple[str, ...]
    parse: Callable[[Fields], Sequence[Record]]
    fits: Callable[[Fields], bool] = lambda row: True
    labeled: bool = True
    graded: Callable[[Fields], Candidates] | None = None

    def matches(self, row: Fields) -> bool:
        """Whether the row has the required fields."""
        return all(field in row for field in self.fields)


def _are_texts(row: Fields) -> bool:
    return all(isinstance(row[field], str) for field in BOTH)


def _are_lists_of(kind: type, row: Fields) -> bool:
    sides = [row[field] for field in BOTH]
    return all(
        isinstance(side, list | tuple) and bool(side) and isinstance(side[0], kind)
        for side in sides
    )


def _are_messages(row: Fields) -> bool:
    columns = all(isinstance(row[field], Mapping) for field in BOTH)
    return columns or _are_lists_of(dict, row)


def _is_transcript(row: Fields) -> bool:
    return (row.get("prompt") is None and _are_texts(row)) and all(
        "\n\nAssistant:" in row[field] and "Human:" in row[field][:10] for field in BOTH
    )


def _is_implicit(row: Fields) -> bool:
    return row.get("prompt") is None and _are_texts(row) and not _is_transcript(row)


def _is_repeated(row: Fields) -> bool:
    """Whether both responses repeat a prompt of over two words; a shorter one may be repeated by chance ("Hi")."""
    prompt = row["prompt"]
    if not isinstance(prompt, str) or len(prompt.split()) <= 2:
        return False
    return _are_texts(row) and all(row[field].startswith(prompt) for field in BOTH)


def _is_standard(row: Fields) -> bool:
    return _are_texts(row) and not _is_repeated(row)


def _is_rm_bench(row: Fields) -> bool:
    if not _are_lists_of(str, row):
        return False
    # Rows of code also have a subset.
    styles = all(len(row[field]) == len(STYLES) for field in BOTH)
    return "domain" in row or (styles and "subset" not in row)


def _is_reward_bench_2(row: Fields) -> bool:
    """One of the lists may be empty; the parser rejects it."""
    if not all(isinstance(row[field], list | tuple) for field in BOTH):
        return False
    texts = [text for field in BOTH for text in row[field]]
    return bool(texts) and isinstance(texts[0], str)


def _is_ultrafeedback(row: Fields) -> bool:
    return isinstance(row["prompt"], str) and _are_messages(row)


_PAIR = ("prompt", "response_a", "response_b")
_JUDGEBENCH = ("question", "response_A", "response_B", "label")
_HELPSTEER3 = ("context", "response1", "response2", "overall_preference")
_SCORED = ("prompt", *BOTH, "score_chosen", "score_rejected")
_ALL = (
    # The first form that fits is used, so a narrower form precedes a wider one.
    Schema("rm-bench", ("prompt", *BOTH), parsers.rm_bench, _is_rm_bench),
    Schema(
        "reward-bench-2",
        ("prompt", *BOTH),
        parsers.reward_bench_2,
        _is_reward_bench_2,
        graded=parsers.graded_reward_bench_2,
    ),
    Schema(
        "candidates",
        ("prompt", "responses"),
        parsers.candidates,
        labeled=False,
        graded=parsers.graded_candidates,
    ),
    Schema("labeled-pairs", (*_PAIR, "label"), parsers.labeled_pairs),
    Schema("pairs", _PAIR, parsers.pairs, labeled=False),
    Schema("judgebench", _JUDGEBENCH, parsers.judgebench),
    Schema("unified-feedback", ("conv_A", "conv_B"), parsers.unified_feedback),
    Schema("helpsteer3", _HELPSTEER3, parsers.helpsteer3),
    Schema("llamafactory-sharegpt", ("conversations", *BOTH), parsers.factory_sharegpt),
    Schema("llamafactory-alpaca", ("instruction", *BOTH), parsers.factory_alpaca),
    Schema("gram", ("instruction", "output"), gram),
    Schema("ultrafeedback-binarized", _SCORED, parsers.ultrafeedback, _is_ultrafeedback),
    Schema("trl-conversational", BOTH, parsers.trl_conversational, _are_messages),
    Schema("trl-repeated", ("prompt", *BOTH), parsers.trl_repeated, _is_repeated),
    Schema("trl-standard", ("prompt", *BOTH), parsers.trl_standard, _is_standard),
    Schema("hh-rlhf", BOTH, parsers.hh_rlhf, _is_transcript),
    Schema("trl-implicit", BOTH, parsers.trl_implicit, _is_implicit),
)

# Not in SCHEMAS, because training and scoring cannot use it.
_PROMPTS = Schema("prompts", ("prompt",), parsers.prompts_alone, labeled=False)

# Forms that do not belong to a published data set; an error message lists them first.
_PLAIN = ("trl-standard", "labeled-pairs", "pairs", "candidates")
_ASKED = (
    "prompt",
    "question",
    "instruction",
)  # fields of many forms, ignored for the nearest one

# Other names of forms.
_ALIASES = {"skywork": "trl-conversational", "reward-bench": "trl-standard", "trl": "trl-standard"}

_BY_NAME = {schema.name: schema for schema in _ALL}
SCHEMAS: Mapping[str, Schema] = _BY_NAME | {
    alias: _BY_NAME[name] for alias, name in _ALIASES.items()
}


def detect_schema(
    name: str, where: str, sample: Sequence[Fields], *, prompts_alone: bool = False
) -> Schema:
    """The schema called `name`, or for "auto" the first one that fits every row of the sample.

    prompts_alone: rows of no known schema that have a prompt are prompts without responses. Raises DataError with the
    fields found and the nearest schema if none fits.
    """
    if name != "auto":
        if name not in SCHEMAS:
            known = ", ".join(["auto", *SCHEMAS])
            raise DataError(f"unknown schema {name!r}: expected one of {known}")
        return SCHEMAS[name]
    # A few damaged rows in the sample do not prevent the detection.
    for share in (1.0, 0.5):
        for schema in _ALL:
            fitting = sum(schema.matches(row) and schema.fits(row) for row in sample)
            if fitting >= share * len(sample):
                return schema
    # The row has the fields of a schema but values that do not fit: the parser reports the error.
    named = [schema for schema in _ALL if schema.matches(sample[0])]
    if named:
        return max(reversed(named), key=lambda schema: len(schema.fields))
    if prompts_alone and all(row.get("prompt") for row in sample):
        return _PROMPTS
    raise _unknown(where, list(dict.fromkeys(field for row in sample for field in row)))


def _unknown(where: str, found: Sequence[str]) -> DataError:
    """The error that no schema has the fields found, with the nearest one and a list of all."""
    plain = [SCHEMAS[name] for name in _PLAIN]
    forms = [*plain, *(schema for schema in _ALL if schema not in plain)]
    near = max(forms, key=lambda s: len(set(s.fields) & set(found)) / len(s.fields))
    missing = [field for field in near.fields if field not in found]
    advice = "rename the fields to those of a schema"
    if set(near.fields) & set(found) - set(_ASKED):
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
    return replace(schema, parse=partial(rendered, template, labels))
