"""Recognising the schema of rows by their columns, and by their values if columns are the same."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from gram_jax.data.fields import Fields
from gram_jax.data.gram_rows import is_published, rendered
from gram_jax.data.lists import ALONE
from gram_jax.data.schemas import ALL, PROMPT_ROWS, SCHEMAS, VERDICTS, Schema, root
from gram_jax.errors import DataError, JudgeError
from gram_jax.judge.recover import recover_template
from gram_jax.judge.template import GRAM_QUESTION, GRAM_RESPONSES

# Columns that may hold the prompt of rows that have none by the rules of their schema.
_MAY_ASK = ("context", "instruction", "messages", "conversations", "history", "user", "title", "text",
            "document", "article", "passage", "request", "post", "dialogue", "task")  # fmt: skip

# Messages written as the text of a cell, as JSON or by Python.
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")

# Forms that do not belong to a published data set; an error message lists them first.
_PLAIN = ("trl-standard", "labeled-pairs", "pairs", "candidates")
# Columns of many forms, ignored for the nearest one.
_COMMON = frozenset((*ALONE.split("|"), "label", "winner"))


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
    # A few damaged rows in the sample do not prevent the detection, nor do empty columns of other sets in a mixture.
    for share in (1.0, 0.5):
        for rows in (_without_empty_columns(sample), sample):
            fitting = [schema for schema in ALL if _fits(schema, rows) >= share * len(rows)]
            if fitting:
                return _narrowest(fitting, where, rows)
    # The row has the columns of a schema but values that do not fit: the parser reports the error.
    named = [schema for schema in ALL if schema.matches(sample[0])]
    if named:
        return max(reversed(named), key=lambda schema: len(schema.fields))
    if prompts_alone and all(PROMPT_ROWS.matches(row) for row in sample):
        return PROMPT_ROWS
    raise _unknown(where, list(dict.fromkeys(name for row in sample for name in row)))


def _fits(schema: Schema, rows: Sequence[Fields]) -> int:
    """Number of rows that a schema fits."""
    return sum(schema.matches(row) and schema.fits(row) for row in rows)


def _without_empty_columns(sample: Sequence[Fields]) -> list[Fields]:
    """The rows without columns that are null in all of them. A verdict may be null in the first rows only."""
    held = {name for row in sample for name, value in row.items() if value is not None}
    held.update(VERDICTS)
    return [{name: row[name] for name in row if name in held} for row in sample]


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
    for name in sorted(best.used(row)):
        if all(isinstance(row.get(name), str) and _WRITTEN.match(row[name]) for row in sample):
            raise _ambiguous(
                where,
                f"the column {name} is text (schema {best.name})",
                "it is a list of messages that was written as text",
                f"--schema {best.name}, or write the lists themselves (as JSON lines or Parquet)",
            )
    return best


def _ambiguous(where: str, one: str, other: str, advice: str) -> DataError:
    return DataError(
        f"{where}: the rows can be read in two ways: {one}, or {other}. State which: {advice}"
    )


def _unknown(where: str, found: Sequence[str]) -> DataError:
    """The error that no schema has the columns found, with the nearest one and a list of all."""
    plain = [SCHEMAS[name] for name in _PLAIN]
    forms = [*plain, *(schema for schema in ALL if schema not in plain)]
    row = dict.fromkeys(found)
    near = max(forms, key=lambda s: len(s.used(row)) / len(s.fields))
    missing = [path for path in near.fields if not any(root(n) in row for n in path.split("|"))]
    advice = "name the columns of a schema, as in --map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN"
    if near.used(row) - _COMMON:
        advice = f"nearest is {near.name}, which also has {', '.join(missing)}; {advice}"
    known = "\n".join(
        f"  {s.name}: {', '.join(path.replace('|', ' or ') for path in s.fields)}" for s in forms
    )
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
