"""Reading any source of preference or pair data as records.

A bad row is an error that names file, line, field, what was expected and what was found; with on_bad="skip" it is
counted instead. Comparisons of two equal responses are dropped and counted.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

from gram_jax.data.comparison import Candidates, Comparison, Record, content_id, texts_of
from gram_jax.data.fields import BadField, Fields, Seen, number_value
from gram_jax.data.report import ReadReport
from gram_jax.data.schemas import Schema, detect_schema, with_own_template
from gram_jax.data.sources import Row, SourceSpec, parse_source, read_rows
from gram_jax.errors import DataError

Kind = Literal["preference", "pair", "candidates", "graded"]
OnBad = Literal["error", "skip"]
SAMPLE_ROWS = 32  # rows looked at to recognise a schema

BAD_ROW = "bad row"
IDENTICAL = "identical responses"


class RecordStream:
    """Iterates over the records of one source; `report()` counts the rows so far.

    Ids are those of the source, or a hash of the contents. They may repeat: only `read_records` makes them unique.
    first_fault: what was wrong with the first bad row that was skipped.
    """

    def __init__(
        self,
        source: str | Path | SourceSpec,
        kind: Kind,
        *,
        schema: str = "auto",
        on_bad: OnBad = "error",
        limit: int | None = None,
        keep_identical: bool = False,
    ):
        self.spec = parse_source(source)
        self.kind: Kind = kind
        self.on_bad, self.keep_identical = on_bad, keep_identical
        self.schema_name = schema if self.spec.schema == "auto" else self.spec.schema
        limits = [n for n in (limit, self.spec.limit) if n is not None]
        self.limit = min(limits, default=None)
        self._rows = self._kept = 0
        self._dropped: Counter[str] = Counter()
        self.first_fault: str | None = None
        if on_bad not in ("error", "skip"):
            raise DataError(f'on_bad = {on_bad!r}: expected "error" or "skip"')
        if kind not in get_args(Kind):
            raise DataError(f"kind = {kind!r}: expected one of {', '.join(get_args(Kind))}")

    @property
    def row(self) -> int:
        """Number, from 1, of the row that the last record came from."""
        return self._rows

    def report(self) -> ReadReport:
        """Rows read so far and what became of them."""
        return ReadReport(self._rows, self._kept, dict(self._dropped))

    def __iter__(self) -> Iterator[Record]:
        self._rows = self._kept = 0
        self._dropped.clear()
        self.first_fault = None
        return itertools.islice(self._records(), self.limit)

    def _records(self) -> Iterator[Record]:
        rows = read_rows(self.spec, keep_faulty=self.on_bad == "skip")
        sample = list(itertools.islice(rows, SAMPLE_ROWS))
        where, fields = _readable(sample)
        schema = with_own_template(detect_schema(self.schema_name, where, fields), where, fields)
        self._check_kind(schema)
        for row in itertools.chain(sample, rows):
            self._rows += 1
            for record in self._records_of(row, schema):
                identical = isinstance(record, Comparison) and record.first == record.second
                if identical and not self.keep_identical:
                    self._dropped[IDENTICAL] += 1
                else:
                    self._kept += 1
                    yield record

    def _records_of(self, row: Row, schema: Schema) -> Sequence[Record]:
        """The records of a row; none if it is bad and on_bad = "skip"."""
        try:
            if row.fault is None:
                return _parse(row, schema, self.kind)
            fault = f"{row.where}: {row.fault}"
        except BadField as error:
            fault = f"{row.where}: {error} (schema {schema.name})"
            if self.on_bad == "error":
                raise DataError(
                    f'{fault}; on_bad = "skip" (--on-bad skip) counts and skips such rows'
                ) from None
        self._dropped[BAD_ROW] += 1
        self.first_fault = self.first_fault or fault
        return ()

    def _check_kind(self, schema: Schema) -> None:
        several = schema.name == "candidates"
        if self.kind == "preference" and not schema.labeled:
            raise DataError(
                f"{self.spec.path} has the schema {schema.name}, which does not say which response "
                'is better; read it as kind = "pair" or "candidates", or give a labeled source'
                + (
                    ': a field label with "A", "B" or "tie" says it'
                    if schema.name == "pairs"
                    else ""
                )
            )
        if self.kind == "graded" and schema.graded is None:
            raise DataError(
                f"{self.spec.path} has the schema {schema.name}, which has no lists of graded responses"
            )
        if self.kind == "pair" and several:
            raise DataError(f"{self.spec.path} holds lists of candidates, not pairs")


def source_kind(source: str | Path | SourceSpec, *, schema: str = "auto") -> Kind:
    """The most that a source can be read as: "candidates", else "preference" if labeled, else "pair"."""
    found = source_schema(source, schema=schema)
    if found.name == "candidates":
        return "candidates"
    return "preference" if found.labeled else "pair"


def source_schema(source: str | Path | SourceSpec, *, schema: str = "auto") -> Schema:
    """The schema of a source, by its first rows. Raises DataError if it has no known one."""
    spec = parse_source(source)
    sample = list(itertools.islice(read_rows(spec, keep_faulty=True), SAMPLE_ROWS))
    return detect_schema(schema if spec.schema == "auto" else spec.schema, *_readable(sample))


def _readable(sample: Sequence[Row]) -> tuple[str, list[Fields]]:
    """(where the first readable row is, the fields of all readable rows). Raises DataError if there is none."""
    rows = [row for row in sample if row.fault is None]
    if not rows:
        raise DataError(f"{sample[0].where}: {sample[0].fault}; no row near it can be read either")
    return rows[0].where, [row.fields for row in rows]


@overload
def read_records(
    source: str | Path | SourceSpec,
    kind: Literal["preference", "pair"] = "preference",
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> tuple[list[Comparison], ReadReport]: ...


@overload
def read_records(
    source: str | Path | SourceSpec,
    kind: Literal["candidates", "graded"],
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> tuple[list[Candidates], ReadReport]: ...


@overload
def read_records(
    source: str | Path | SourceSpec,
    kind: Kind,
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> tuple[list[Any], ReadReport]: ...


def read_records(
    source: str | Path | SourceSpec,
    kind: Kind = "preference",
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> tuple[list[Any], ReadReport]:
    """All records of a source, and what became of its rows.

    kind: "preference" gives Comparison with a label (0, 1 or "tie"), "pair" Comparison without label and margin,
    "candidates" Candidates, "graded" Candidates with grades. Ids are unique and do not depend on the order of the
    rows. Raises DataError for a source or row that cannot be read as this kind.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as place:
    ...     source = Path(place) / "pairs.jsonl"
    ...     _ = source.write_text('{"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine."}')
    ...     records, report = read_records(source)
    >>> records[0].chosen, report.rows
    ('Seven.', 1)
    """
    records, report = _read(source, kind, schema=schema, on_bad=on_bad, limit=limit)
    return _with_unique_ids(records), report


def _read(
    source: str | Path | SourceSpec,
    kind: Kind,
    *,
    schema: str,
    on_bad: OnBad,
    limit: int | None,
) -> tuple[list[Record], ReadReport]:
    stream = RecordStream(source, kind, schema=schema, on_bad=on_bad, limit=limit)
    records = list(stream)
    report = stream.report()
    if not records:
        dropped = ", ".join(f"{count} {why}" for why, count in report.dropped.items())
        first = "" if stream.first_fault is None else f"\nthe first bad row: {stream.first_fault}"
        raise DataError(
            f"{stream.spec.path}: no record is left of {report.rows} rows: {dropped}{first}"
        )
    return records, report


def read_sources(
    sources: Iterable[str | Path | SourceSpec],
    kind: Kind = "preference",
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> tuple[list[Record], ReadReport]:
    """The records of several sources in turn; ids are unique over all, `limit` counts over all."""
    records: list[Record] = []
    report = ReadReport(0, 0)
    for source in sources:
        left = None if limit is None else limit - len(records)
        if left == 0:
            break
        more, what = _read(source, kind, schema=schema, on_bad=on_bad, limit=left)
        records += more
        report = report + what
    return _with_unique_ids(records), report


def _parse(row: Row, schema: Schema, kind: Kind) -> list[Record]:
    weight = 1.0
    if row.fields.get("weight") is not None:
        weight = number_value(row.fields["weight"], "weight")
        if weight < 0:
            raise BadField("weight", "a number that is not negative", weight)
    graded = schema.graded if kind == "graded" else None
    parsed = [graded(row.fields)] if graded else schema.parse(row.fields)
    return [_as_kind(record, kind, weight) for record in parsed]


def _as_kind(record: Record, kind: Kind, weight: float) -> Record:
    name = record.id or content_id(record.prompt, *texts_of(record))
    if isinstance(record, Candidates):
        return replace(record, id=name)
    if kind == "candidates":
        return Candidates(record.prompt, texts_of(record), id=name, source=record.source)
    if kind == "pair":
        return replace(record, id=name, label=None, margin=None, weight=weight)
    if record.label is None:
        raise BadField("label", "a row that says which response is better", Seen("none"))
    return replace(record, id=name, weight=weight)


def _with_unique_ids(records: list[Record]) -> list[Record]:
    """Make ids unique: a shared id gets the hash of the texts as a suffix, and equal texts a number.

    The id of a text does not depend on the order of the rows.
    """
    times = Counter(record.id for record in records)
    if len(times) == len(records):
        return records
    taken: Counter[str] = Counter()
    unique = []
    for record in records:
        name = record.id
        if times[name] > 1:
            contents = content_id(record.prompt, *texts_of(record))
            name = name if name == contents else f"{name}#{contents}"
            taken[name] += 1
            if taken[name] > 1:
                name = f"{name}-{taken[name]}"
        unique.append(replace(record, id=name))
    return unique
