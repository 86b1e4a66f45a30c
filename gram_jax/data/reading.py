"""Reading any source of preference or pair data as records.

A bad row is an error that states file, line, field, the expected and the found value; with on_bad="skip" it is
skipped and counted. Comparisons of two equal responses are dropped and counted.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from gram_jax.data.fields import (
    BadField,
    Fields,
    Seen,
    check_encodable,
    id_of,
    number_value,
    source_of,
)
from gram_jax.data.records import Candidates, Comparison, Record, content_id, texts_of
from gram_jax.data.report import ReadReport
from gram_jax.data.schemas import Schema, detect_schema, with_own_template
from gram_jax.data.sources import Row, Source, parse_source, read_rows
from gram_jax.errors import DataError, check_choice
from gram_jax.hashing import stable_hash

Kind = Literal["preference", "pair", "candidates", "graded", "prompts"]
OnBad = Literal["error", "skip"]
SAMPLE_ROWS = 32  # rows by which a schema is detected

BAD_ROW = "bad row"
IDENTICAL = "identical responses"


class RecordStream:
    """Iterates over the records of one source; `report()` counts the rows so far.

    Ids are those of the source, or a hash of the contents; they may repeat. row: number, from 1, of the row of the last
    record. first_fault: the fault of the first bad row that was skipped. wanted: which rows, by number, are parsed.
    on_drop: called with the number of each row of a dropped record, and the reason.
    """

    wanted: Callable[[int], bool] = staticmethod(lambda row: True)
    on_drop: Callable[[int, str], None] = staticmethod(lambda row, why: None)

    def __init__(
        self,
        source: Source,
        kind: Kind,
        *,
        schema: str = "auto",
        on_bad: OnBad = "error",
        limit: int | None = None,
        keep_identical: bool = False,
    ):
        check_choice("kind", kind, Kind, DataError)
        check_choice("on_bad", on_bad, OnBad, DataError)
        self.spec = parse_source(source)
        self.kind: Kind = kind
        self.schema, self.on_bad, self.keep_identical = schema, on_bad, keep_identical
        limits = [n for n in (limit, self.spec.limit) if n is not None]
        self.limit = min(limits, default=None)
        self._start()

    def _start(self) -> None:
        self.row = self._kept = 0
        self._dropped: Counter[str] = Counter()
        self.first_fault: str | None = None

    def report(self) -> ReadReport:
        """Numbers of rows read, records kept and records dropped so far."""
        return ReadReport(self.row, self._kept, dict(self._dropped), (self._kept,))

    def __iter__(self) -> Iterator[Record]:
        self._start()
        return itertools.islice(self._records(), self.limit)

    def _records(self) -> Iterator[Record]:
        rows = read_rows(self.spec, keep_faulty=self.on_bad == "skip")
        sample = list(itertools.islice(rows, SAMPLE_ROWS))
        where, fields = _readable(sample)
        alone = self.kind == "prompts"
        found = detect_schema(self.spec.schema_or(self.schema), where, fields, prompts_alone=alone)
        schema = with_own_template(found, where, fields)
        _check_kind(self.kind, schema, self.spec.path)
        for row in itertools.chain(sample, rows):
            self.row += 1
            if not self.wanted(self.row):
                continue
            for record in self._records_of(row, schema):
                identical = isinstance(record, Comparison) and record.first == record.second
                if identical and not self.keep_identical:
                    self._drop(IDENTICAL)
                else:
                    self._kept += 1
                    yield record

    def _records_of(self, row: Row, schema: Schema) -> Sequence[Record]:
        """The records of a row; none if it is bad and on_bad = "skip"."""
        try:
            if row.fault is None:
                return _parse(row.fields, schema, self.kind)
            fault = f"{row.where}: {row.fault}"
        except BadField as error:
            fault = f"{row.where}: {error} (schema {schema.name})"
            if self.on_bad == "error":
                raise DataError(
                    f'{fault}; on_bad = "skip" (--on-bad skip) counts and skips such rows'
                ) from None
        self._drop(BAD_ROW)
        self.first_fault = self.first_fault or fault
        return ()

    def _drop(self, why: str) -> None:
        self._dropped[why] += 1
        self.on_drop(self.row, why)


def _check_kind(kind: Kind, schema: Schema, path: str) -> None:
    found = f"{path} has the schema {schema.name}, which has no"
    if kind == "preference" and not schema.labeled:
        hint = ': a field label with "A", "B" or "tie" is one' if schema.name == "pairs" else ""
        raise DataError(
            f'{found} preference; read it as kind = "pair" or "candidates", or give a labeled source{hint}'
        )
    if kind == "graded" and schema.graded is None:
        raise DataError(f"{found} lists of graded responses")
    if kind == "pair" and schema.name == "candidates":
        raise DataError(f"{found} pairs")


def check_source(source: Source, kind: Kind, *, schema: str = "auto") -> None:
    """Raises DataError if the first rows of the source cannot be read as this kind."""
    spec = parse_source(source)
    sample = list(itertools.islice(read_rows(spec, keep_faulty=True), SAMPLE_ROWS))
    alone = kind == "prompts"
    found = detect_schema(spec.schema_or(schema), *_readable(sample), prompts_alone=alone)
    _check_kind(kind, found, spec.path)


def source_kind(source: Source, *, schema: str = "auto") -> Kind:
    """The kind of a source that keeps most of its content: "candidates", else "preference" if labeled, else "pair"."""
    found = source_schema(source, schema=schema)
    if found.name == "candidates":
        return "candidates"
    return "preference" if found.labeled else "pair"


def source_schema(source: Source, *, schema: str = "auto") -> Schema:
    """The schema of a source, detected by its first rows. Raises DataError if no known schema fits."""
    spec = parse_source(source)
    sample = list(itertools.islice(read_rows(spec, keep_faulty=True), SAMPLE_ROWS))
    return detect_schema(spec.schema_or(schema), *_readable(sample))


def _readable(sample: Sequence[Row]) -> tuple[str, list[Fields]]:
    """(where the first readable row is, the fields of all readable rows). Raises DataError if there is none."""
    rows = [row for row in sample if row.fault is None]
    if not rows:
        raise DataError(f"{sample[0].where}: {sample[0].fault}; none of the first rows can be read")
    return rows[0].where, [row.fields for row in rows]


class ReadOptions(TypedDict, total=False):
    """Options of `read_records`."""

    schema: str
    on_bad: OnBad
    limit: int | None


@overload
def read_records(
    source: Source,
    kind: Literal["preference", "pair"] = "preference",
    **options: Unpack[ReadOptions],
) -> tuple[list[Comparison], ReadReport]: ...


@overload
def read_records(
    source: Source, kind: Literal["candidates", "graded"], **options: Unpack[ReadOptions]
) -> tuple[list[Candidates], ReadReport]: ...


@overload
def read_records(
    source: Source, kind: Kind, **options: Unpack[ReadOptions]
) -> tuple[list[Any], ReadReport]: ...


def read_records(
    source: Source,
    kind: Kind = "preference",
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> tuple[list[Any], ReadReport]:
    """All records of a source, and a report of its rows.

    kind: "preference" gives Comparison with a label (0, 1 or "tie"), "pair" Comparison without label and margin,
    "candidates" Candidates, "graded" Candidates with grades, "prompts" the records of the source, which are
    Candidates without responses if its rows have a prompt only. Ids are unique and do not depend on the order of the
    rows. Raises DataError if the source or a row cannot be read as this kind.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as place:
    ...     source = Path(place) / "pairs.jsonl"
    ...     _ = source.write_text('{"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine."}')
    ...     records, report = read_records(source)
    >>> records[0].chosen, report.rows
    ('Seven.', 1)
    """
    return read_sources([source], kind, schema=schema, on_bad=on_bad, limit=limit)


def read_sources(
    sources: Iterable[Source],
    kind: Kind = "preference",
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> tuple[list[Any], ReadReport]:
    """The records of several sources, one after another; ids are unique, and `limit` applies, over all sources."""
    stream = SourcesStream(sources, kind, schema=schema, on_bad=on_bad, limit=limit)
    records = list(stream.as_read())
    return list(_with_unique_ids(records, _repeated_ids(records))), stream.read


class SourcesStream:
    """Iterates over the records of several sources as `read_sources` returns them, without holding them in memory.

    Every iteration reads the sources; the first one reads them twice, because ids are made unique over all of them.
    read: the report of the last complete reading.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        kind: Kind = "preference",
        *,
        schema: str = "auto",
        on_bad: OnBad = "error",
        limit: int | None = None,
    ):
        self.sources, self.limit, self.read = tuple(sources), limit, ReadReport(0, 0)
        self._open = partial(RecordStream, kind=kind, schema=schema, on_bad=on_bad)
        self._repeated: frozenset[int] | None = None

    def __iter__(self) -> Iterator[Record]:
        return _with_unique_ids(self.as_read(), self.scan())

    def scan(self) -> frozenset[int]:
        """Read all records once and set `read`; returns hashes of the ids that occur several times."""
        if self._repeated is None:
            self._repeated = _repeated_ids(self.as_read())
        return self._repeated

    def as_read(self) -> Iterator[Record]:
        """The records with the ids of the sources, which may repeat. Sets `read` at the end."""
        read = ReadReport(0, 0)
        for source in self.sources:
            left = None if self.limit is None else self.limit - read.kept
            if read.kept and left == 0:
                break
            stream = self._open(source, limit=left)
            yield from stream
            report = stream.report()
            if not report.kept:
                first = f"\nthe first bad row: {stream.first_fault}" if stream.first_fault else ""
                raise DataError(
                    f"{stream.spec.path}: no record is left of {report.rows} rows: {report.dropped_text}{first}"
                )
            read += report
        self.read = read


def _parse(fields: Fields, schema: Schema, kind: Kind) -> list[Record]:
    weight = 1.0
    if fields.get("weight") is not None:
        weight = number_value(fields["weight"], "weight")
        if weight < 0:
            raise BadField("weight", "a number that is not negative", weight)
    graded = schema.graded if kind == "graded" else None
    parsed = [graded(fields)] if graded else schema.parse(fields)
    for record in parsed:
        contents = [message.content for message in record.prompt]
        check_encodable(fields, [*contents, *texts_of(record)])
    name, source = id_of(fields), source_of(fields)
    return [_as_kind(record, kind, weight, name, source) for record in parsed]


def _as_kind(record: Record, kind: Kind, weight: float, name: str, source: str) -> Record:
    """The record as this kind, with the id and source of its row unless the parser gave it others."""
    texts = texts_of(record)
    name = record.id or name or content_id(record.prompt, *texts)
    source = record.source or source
    if isinstance(record, Candidates):
        return replace(record, id=name, source=source)
    if kind == "candidates":
        return Candidates(record.prompt, texts, id=name, source=source)
    if kind == "pair":
        record = replace(record, label=None, margin=None)
    elif record.label is None and kind != "prompts":
        raise BadField("label", "a row that says which response is better", Seen("none"))
    return replace(record, id=name, source=source, weight=weight)


def _repeated_ids(records: Iterable[Record]) -> frozenset[int]:
    """Hashes of the ids that occur several times. 8 bytes a record are held in memory."""
    hashes = np.fromiter((stable_hash(0, record.id) for record in records), np.uint64)
    hashes.sort()
    return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def _with_unique_ids(records: Iterable[Record], repeated: frozenset[int]) -> Iterator[Record]:
    """Records with unique ids: repeated ids get the hash of the texts as a suffix, and repeated texts also a number."""
    taken: Counter[str] = Counter()
    for record in records:
        name = record.id
        if repeated and stable_hash(0, name) in repeated:
            contents = content_id(record.prompt, *texts_of(record))
            name = name if name == contents else f"{name}#{contents}"
            taken[name] += 1
            if taken[name] > 1:
                name = f"{name}-{taken[name]}"
            record = replace(record, id=name)
        yield record
