"""Reading any source of preference or pair data as records.

A bad row is an error that states file, line, field, the expected and the found value; with on_bad="skip" it is
skipped and counted. Comparisons of two equal responses are dropped and counted.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from gram_jax.data.detection import detect_schema, with_own_template
from gram_jax.data.fields import (
    Fields,
    Unreadable,
    check_encodable,
    id_of,
    number_value,
    source_of,
)
from gram_jax.data.mapping import META, ColumnMap, check_read, checked_map, mapped, unread_columns
from gram_jax.data.records import Candidates, Comparison, Record, content_id, texts_of
from gram_jax.data.report import ReadReport
from gram_jax.data.schemas import SCHEMAS, Schema
from gram_jax.data.sources import Row, Source, SourceSpec, count_rows, parse_source, read_rows
from gram_jax.errors import DataError, check_choice
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import BadField, Notes, Prompt, Seen, note_control_tokens

Kind = Literal["preference", "pair", "comparison", "candidates", "graded", "prompts"]
OnBad = Literal["error", "skip"]
SAMPLE_ROWS = 32  # rows by which a schema is detected
TEMPLATE_ROWS = 64  # rendered rows from which template = "from-dataset" is recovered

BAD_ROW = "bad row"
IDENTICAL = "identical responses"
UNPAIRED = "responses without a better or worse one"
CONTEXT = "rows with a context, history or document that is not shown"
# Columns that may belong to the prompt of forms that have none of them.
_CONTEXTS = ("context", "history", "conversation", "dialogue", "passage", "document", "article")

logger = logging.getLogger(__name__)


class RecordStream:
    """Iterates over the records of one source; `report()` counts the rows so far.

    Ids are those of the source, or a hash of the contents; they may repeat. row: number, from 1, of the row of the last
    record. first_fault: the fault of the first bad row that was skipped. map: as of `read_records`, if the source
    states none. wanted: which rows, by number, are parsed; of rows that belong together, the last one counts. on_drop:
    called for each row of a dropped record with its number, or that of the last one of rows that belong together, and
    the reason.
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
        map: ColumnMap | None = None,
        keep_identical: bool = False,
    ):
        check_choice("kind", kind, Kind, DataError)
        check_choice("on_bad", on_bad, OnBad, DataError)
        self.spec = parse_source(source)
        self.kind: Kind = kind
        self.schema, self.on_bad = schema, on_bad
        self.keep_identical = keep_identical or kind == "prompts"
        self.map = _map_of(self.spec, map)
        limits = [n for n in (_checked_limit(limit), _checked_limit(self.spec.limit)) if n]
        self.limit = min(limits, default=None)
        self._start()

    def _start(self) -> None:
        self.row = self._rows = self._kept = 0
        self._dropped: Counter[str] = Counter()
        self._notes: Notes = Counter()
        self._unread: tuple[str, ...] = ()
        self.first_fault: str | None = None

    def report(self) -> ReadReport:
        """Numbers of rows read, records kept and dropped, and what is not shown, so far."""
        return ReadReport(
            self._rows,
            self._kept,
            dict(self._dropped),
            (self._kept,),
            notes=dict(self._notes),
            unread=self._unread,
        )

    def __iter__(self) -> Iterator[Record]:
        self._start()
        return itertools.islice(self._kept_records(), self.limit)

    def _kept_records(self) -> Iterator[Record]:
        for record in self._records():
            identical = isinstance(record, Comparison) and record.first == record.second
            if identical and not self.keep_identical:
                self._drop(IDENTICAL)
            else:
                self._kept += 1
                yield record

    def _records(self) -> Iterator[Record]:
        rows = read_rows(self.spec, keep_faulty=self.on_bad == "skip")
        sample = list(itertools.islice(rows, SAMPLE_ROWS))
        where, fields = _readable(list(_mapped_rows(sample, self.map)))
        alone = self.kind == "prompts"
        found = detect_schema(self.spec.schema_or(self.schema), where, fields, prompts_alone=alone)
        schema = with_own_template(found, where, fields)
        _check_kind(self.kind, schema, self.spec.path)
        check_read(self.map, schema)
        self._unread = unread_columns((row.fields for row in sample), self.map, schema)
        read = self._records_of_group if schema.grouped else self._records_of_row
        yield from read(_mapped_rows(itertools.chain(sample, rows), self.map), schema)

    def _records_of_row(self, rows: Iterable[Row], schema: Schema) -> Iterator[Record]:
        for row in rows:
            self._rows = self.row = self._rows + 1
            if self.wanted(self.row):
                yield from self._parsed(row, schema, self.kind)

    def _records_of_group(self, rows: Iterable[Row], schema: Schema) -> Iterator[Record]:
        """Records of rows of which those with the same prompt belong together, in the order of their last rows."""
        groups: dict[Prompt, list[tuple[int, Candidates]]] = {}
        for row in rows:
            self._rows = self.row = self._rows + 1
            for record in self._parsed(row, schema, "graded"):
                assert isinstance(record, Candidates)
                groups.setdefault(record.prompt, []).append((self._rows, record))
        for group in sorted(groups.values(), key=lambda group: group[-1][0]):
            self.row = group[-1][0]
            if not self.wanted(self.row):
                continue
            ones = [one for _, one in group]
            if self.kind in PAIRED:
                pairs = list(_pairs_of_group(ones))
                for _ in group if not pairs else ():
                    self._drop(UNPAIRED)
                yield from (_as_kind(pair, self.kind, 1.0, "", "") for pair in pairs)
                continue
            yield replace(
                ones[0],
                responses=tuple(text for one in ones for text in one.responses),
                grades=tuple(grade for one in ones for grade in one.grades or ()),
                id=min(one.id for one in ones),
            )
        self.row = self._rows

    def _parsed(self, row: Row, schema: Schema, kind: Kind) -> Sequence[Record]:
        """The records of a row; none if it is bad and on_bad = "skip"."""
        notes: Notes = Counter()
        try:
            if row.fault is None:
                found = _parse(row.fields, schema, kind, notes)
                self._notes.update(notes)
                if not found:
                    self._drop(UNPAIRED)
                return found
            fault = f"{row.where}: {row.fault}"
        except BadField as error:
            fault = f"{row.where}: {error} (schema {schema.name})"
        if self.on_bad == "error":
            raise DataError(f'{fault}; on_bad = "skip" (--on-bad skip) counts and skips such rows')
        self._drop(BAD_ROW)
        self.first_fault = self.first_fault or fault
        return ()

    def _drop(self, why: str) -> None:
        self._dropped[why] += 1
        if self.wanted(self.row):
            self.on_drop(self.row, why)


def _pairs_of_group(ones: Sequence[Candidates]) -> Iterator[Comparison]:
    """Each response with each worse one, from rows of one response each. The id of a pair has the ids of both rows."""
    for good, bad in itertools.product(ones, ones):
        if (good.grades or ()) > (bad.grades or ()):
            name, (first,), (second,) = f"{good.id}>{bad.id}", good.responses, bad.responses
            yield Comparison(good.prompt, first, second, 0, id=name, source=good.source)


PAIRED = ("preference", "pair", "comparison")


def _checked_limit(limit: int | None) -> int | None:
    whole = isinstance(limit, int | np.integer) and not isinstance(limit, bool)
    if limit is not None and not (whole and limit >= 1):
        raise DataError(
            f"limit = {limit!r}: expected a whole number of at least 1, or None for all records"
        )
    return limit


def _map_of(spec: SourceSpec, map: ColumnMap | None) -> ColumnMap:
    """The map of a source, or the one of all sources."""
    return checked_map(spec.map or map or {})


def _mapped_rows(rows: Iterable[Row], map: ColumnMap) -> Iterator[Row]:
    """The rows with the columns of a map; a row that lacks one has a fault."""
    for row in rows:
        if map and row.fault is None:
            try:
                row = row._replace(fields=mapped(row.fields, map))
            except BadField as error:
                row = Row(row.where, {}, str(error))
        yield row


def _check_kind(kind: Kind, schema: Schema, path: str) -> None:
    found = f"{path} has the schema {schema.name}, which has no"
    if kind == "preference" and not schema.labeled:
        hint = ': a field label with "A", "B" or "tie" is one' if schema.name == "pairs" else ""
        raise DataError(
            f'{found} preference; read it as kind = "pair" or "candidates", or give a labeled source{hint}'
        )
    if kind == "graded" and schema.graded is None:
        raise DataError(f"{found} lists of graded responses")
    if kind in ("pair", "comparison") and schema.name == "candidates":
        raise DataError(f"{found} pairs")


def check_source(
    source: Source, kind: Kind, *, schema: str = "auto", map: ColumnMap | None = None
) -> None:
    """Raises DataError if the first rows of the source cannot be read as this kind."""
    found = _detected(source, schema, map, prompts_alone=kind == "prompts")
    _check_kind(kind, found, parse_source(source).path)


def source_kind(source: Source, *, schema: str = "auto", map: ColumnMap | None = None) -> Kind:
    """The kind of a source that keeps most of its content: "candidates", else "preference" if labeled, else "pair"."""
    found = source_schema(source, schema=schema, map=map)
    if found.name == "candidates":
        return "candidates"
    return "preference" if found.labeled else "pair"


def expected_records(
    source: Source, kind: Kind, *, schema: str = "auto", map: ColumnMap | None = None
) -> int | None:
    """Number of records of a source, for a progress bar; None if its rows may have several, or must be parsed."""
    found = source_schema(source, schema=schema, map=map)
    one_list = kind == "candidates" and found.listed and not found.grouped
    return count_rows(source) if one_list or not found.several else None


def source_schema(source: Source, *, schema: str = "auto", map: ColumnMap | None = None) -> Schema:
    """The schema of a source, detected by its first rows. Raises DataError if no known schema fits."""
    return _detected(source, schema, map, prompts_alone=False)


def _detected(source: Source, schema: str, map: ColumnMap | None, *, prompts_alone: bool) -> Schema:
    spec = parse_source(source)
    own = _map_of(spec, map)
    rows = _mapped_rows(read_rows(spec, keep_faulty=True), own)
    sample = list(itertools.islice(rows, SAMPLE_ROWS))
    name = spec.schema_or(schema)
    found = detect_schema(name, *_readable(sample), prompts_alone=prompts_alone)
    check_read(own, found)
    return found


def _readable(sample: Sequence[Row]) -> tuple[str, list[Fields]]:
    """(where the first readable row is, the fields of all readable rows). Raises DataError if there is none."""
    rows = [row for row in sample if row.fault is None]
    if not rows:
        raise DataError(f"{sample[0].where}: {sample[0].fault}; none of the first rows can be read")
    return rows[0].where, [row.fields for row in rows]


def rendered_rows(source: Source, *, map: ColumnMap | None = None) -> list[Fields]:
    """The first TEMPLATE_ROWS rendered rows (schema gram) of a source; other rows are left out."""
    spec, schema = parse_source(source), SCHEMAS["gram"]
    rows = _mapped_rows(read_rows(spec, keep_faulty=True), _map_of(spec, map))
    found = (row.fields for row in rows if schema.matches(row.fields) and schema.fits(row.fields))
    return list(itertools.islice(found, TEMPLATE_ROWS))


class ReadOptions(TypedDict, total=False):
    """Options of `read_records`."""

    schema: str
    on_bad: OnBad
    limit: int | None
    map: ColumnMap | None


@overload
def read_records(
    source: Source,
    kind: Literal["preference", "pair", "comparison"] = "preference",
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
    map: ColumnMap | None = None,
) -> tuple[list[Any], ReadReport]:
    """Read all records of a source. Returns (records, report of the rows).

    kind: "preference" returns Comparison with a label (0, 1 or "tie"), "pair" Comparison without label and margin,
    "comparison" Comparison with a label if the row has one, "candidates" Candidates, "graded" Candidates with grades.
    "prompts" returns the records of the source, which are Candidates without responses if its rows have only a prompt.
    schema: format of the rows; "auto" detects it. on_bad: "skip" drops and counts rows that do not fit. limit: maximum
    number of records. map: column of the source for each field of the schema, as in {"prompt": "question",
    "label": "winner", "label:left": "A"} (data/mapping.py).

    Ids are unique and do not depend on the order of the rows. Raises DataError if the source or a row cannot be read as
    this kind.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as place:
    ...     source = Path(place) / "pairs.jsonl"
    ...     _ = source.write_text('{"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine."}')
    ...     records, report = read_records(source)
    >>> records[0].chosen, report.rows
    ('Seven.', 1)
    """
    return read_sources([source], kind, schema=schema, on_bad=on_bad, limit=limit, map=map)


def read_sources(
    sources: Iterable[Source], kind: Kind = "preference", **options: Unpack[ReadOptions]
) -> tuple[list[Any], ReadReport]:
    """The records of several sources, one after another; ids are unique, and `limit` applies, over all sources."""
    stream = SourcesStream(sources, kind, **options)
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
        map: ColumnMap | None = None,
    ):
        self.sources, self.limit = tuple(sources), _checked_limit(limit)
        self.read = ReadReport(0, 0)
        self._open = partial(RecordStream, kind=kind, schema=schema, on_bad=on_bad, map=map)
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
            if not self.read.rows:
                log_notes(stream.spec.path, report)
            read += report
        self.read = read


def log_notes(path: str, report: ReadReport) -> None:
    """A warning for each kind of content that the records do not show."""
    for kind, count in report.notes.items():
        logger.warning("%s: %d %s", path, count, kind)


def parse_row(
    fields: Fields, kind: Kind, where: str, notes: Notes, *, schema: str = "auto"
) -> list[Record]:
    """The records of one row, which needs no source. Raises DataError with the place `where`."""
    found = detect_schema(schema, where, [fields])
    _check_kind(kind, found, where)
    try:
        return _parse(fields, found, kind, notes)
    except BadField as error:
        raise DataError(f"{where}: {error} (schema {found.name})") from None


def _parse(fields: Fields, schema: Schema, kind: Kind, notes: Notes) -> list[Record]:
    for name, value in fields.items():
        if isinstance(value, Unreadable) and name in schema.columns | META:
            raise BadField(name, "a value that can be read", Seen(value.why))
    if any(fields.get(name) and name not in schema.columns for name in _CONTEXTS):
        notes[CONTEXT] += 1
    weight = 1.0
    if fields.get("weight") is not None:
        weight = number_value(fields["weight"], "weight")
        if weight < 0:
            raise BadField("weight", "a number that is not negative", weight)
    if kind == "graded" or (kind == "candidates" and schema.listed):
        parsed: Sequence[Record] = [schema.parse_graded(fields, notes)]
    else:
        parsed = schema.parse(fields, notes)
    for record in parsed:
        texts = [*(message.content for message in record.prompt), *texts_of(record)]
        check_encodable(fields, texts)
        note_control_tokens(texts, notes)
    name, source = id_of(fields), source_of(fields)
    records = [_as_kind(record, kind, weight, name, source) for record in parsed]
    rationale = fields.get("rationale")
    if kind == "preference" and isinstance(rationale, str) and len(records) == 1:
        check_encodable(fields, [rationale])
        assert isinstance(records[0], Comparison)
        return [replace(records[0], rationale=rationale)]
    return records


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
    elif record.label is None and kind not in ("prompts", "comparison"):
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
