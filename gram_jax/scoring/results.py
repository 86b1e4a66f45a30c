"""JSON lines that a long run writes: a row for each record of the input, in its order.

Each row carries a hash of its record and a checksum of itself. OUT.meta.json records what the rows were made from. An
interrupted run resumes after the last complete line; an incomplete last line is cut off. Several processes write parts
instead (parts.py).
"""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

from gram_jax.data.records import Record, contents_id
from gram_jax.distributed.lock import file_lock, hold_lock, reserve_lock
from gram_jax.errors import DataError
from gram_jax.files import explain_full_disk, write_atomic
from gram_jax.progress import ProgressBar, ProgressFactory, no_progress
from gram_jax.remote import is_remote
from gram_jax.scoring.rows import NumberedRecord

logger = logging.getLogger(__name__)

# An interruption loses at most about this much work: the size of a window, which does not change results, follows from
# the speed.
WRITE_SECONDS = 30.0
FIRST_WINDOW = 8
# All metadata must be the same for a run to resume in a file, except these keys, which are descriptive: the weights and
# the rows identify model and input.
NAMES = ("model", "source")
# In every row, a hash of the record: ids may stay the same when texts or labels change.
TEXTS = "texts"
CHECKSUM = "checksum"  # of every row, over the rest of its line
META = ".meta.json"
PARTS = ".parts"  # the folder of the parts of a file
ADVICE = "Give another output file, or --overwrite"

Wanted = Callable[[int], bool]  # of the number of a row of the input


class RowTask(NamedTuple):
    """The work that makes rows of records.

    rows: the row of each record of a window; it updates the bar as records finish.
    cost: work of a record. max_cost: largest work of a window. label, unit: of the progress.
    """

    rows: Callable[[list[NumberedRecord], ProgressBar], list[dict[str, Any]]]
    cost: Callable[[Record], int]
    max_cost: int
    label: str = "written"
    unit: str = "rows"


class RowSource(NamedTuple):
    """The input of a run.

    records: the records of the wanted rows, numbered from 1, in their order; it calls its second argument with the
    number of each row that is dropped, and the reason. rows: number of rows, when they have been read. total: expected
    number of records, None if unknown. contents: a hash of the input.
    """

    records: Callable[[Wanted, Callable[[int, str], None]], Iterator[NumberedRecord]]
    rows: Callable[[], int]
    total: int | None
    contents: Callable[[], str]


def list_source(numbered: Sequence[NumberedRecord]) -> RowSource:
    """Records in memory."""

    def contents() -> str:
        lines = (f"{number} {record.id} {contents_id(record)}" for number, record in numbered)
        return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

    return RowSource(
        lambda wanted, dropped: (one for one in numbered if wanted(one[0])),
        lambda: numbered[-1][0] if numbered else 0,
        len(numbered),
        contents,
    )


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count` of a file's rows: of the parts of `part_rows` rows, each count-th one."""

    index: int
    count: int
    part_rows: int

    def rows_of(self, total: int) -> int:
        """Number of its rows, of a file of `total` rows.

        >>> Shard(0, 2, 10).rows_of(8), Shard(0, 2, 10).rows_of(25), Shard(1, 2, 10).rows_of(25)
        (8, 15, 10)
        """
        starts = range(self.index * self.part_rows, total, self.count * self.part_rows)
        return sum(min(self.part_rows, total - start) for start in starts)


class OutputSink(NamedTuple):
    """Destination of rows: a JSON lines file, or None for memory. overwrite: start again, do not resume.

    shard: write the parts of this shard only.
    """

    file: str | Path | None = None
    overwrite: bool = False
    progress: ProgressFactory = no_progress
    shard: Shard | None = None


def reserve(sink: OutputSink) -> AbstractContextManager[None]:
    """Reserve an output, or one shard of it, for the block, which loads a model and writes.

    Raises InUseError if another process writes the output or the shard.
    """
    if sink.file is None or is_remote(sink.file):
        return nullcontext()
    if sink.shard is not None:
        return hold_shard(Path(sink.file), sink.shard)
    return reserve_lock(file_lock(Path(sink.file)), error=DataError)


def hold_shard(place: Path, shard: Shard) -> AbstractContextManager[None]:
    """Hold the lock of a shard of a file, or of the files of a folder, for the block.

    The lock lies next to `place`. Shards of other counts may write the same parts, which have locks of their own.
    """
    name = f"{place.absolute().name}.shard-{shard.index}-of-{shard.count}"
    return hold_lock(file_lock(place.absolute().with_name(name)), error=DataError)


@dataclass(frozen=True)
class WriteSummary:
    """Rows written now, rows found in the file, rows with shortened texts, and rows left out by reason."""

    written: int
    before: int
    shortened: int
    dropped: dict[str, int] = field(default_factory=dict)

    def to_text(self) -> str:
        """Text for the last line of the command's output."""
        dropped = "".join(f", {count:,} left out ({why})" for why, count in self.dropped.items())
        return (
            f"{self.written:,} rows written, {self.before:,} were there, {self.shortened:,} "
            f"shortened{dropped}"
        )


def write_rows(
    sink: OutputSink,
    metadata: dict[str, Any],
    source: RowSource,
    task: RowTask,
) -> WriteSummary:
    """Write the row of every record to a file, or of those records that have no row there yet.

    metadata: what decides the rows.
    Raises DataError if the file holds other results or cannot be written, InUseError if another process writes it; its
    complete rows are kept.
    """
    assert sink.file is not None
    out = Path(sink.file)
    dropped: Counter[str] = Counter()
    with explain_interruption(out), hold_lock(file_lock(out), error=DataError):
        records = source.records(lambda row: True, lambda row, why: dropped.update([why]))
        if sink.overwrite:
            out.unlink(missing_ok=True)
        elif out.exists() and out.stat().st_size:
            check_metadata(out, metadata)
        elif out.with_name(out.name + PARTS).exists():
            raise DataError(
                f"{out.name}{PARTS} has parts of {out}: gram-jax merge {out} joins them. {ADVICE}"
            )
        with (
            RowFile(out, records) as file,
            sink.progress(source.total, done=file.rows, label=task.label, unit=task.unit) as bar,
        ):
            before = file.rows
            if not before:
                write_atomic(metadata_path(out), metadata_text(metadata))
            for window, rows in windows_of_rows(records, task, bar):
                file.append(window, rows)
        return WriteSummary(file.rows - before, before, file.shortened, dict(dropped))


def windows_of_rows(
    records: Iterator[NumberedRecord], task: RowTask, bar: ProgressBar
) -> Iterator[tuple[list[NumberedRecord], list[dict[str, Any]]]]:
    """Records and their rows, in windows that take about WRITE_SECONDS."""
    size = min(FIRST_WINDOW, task.max_cost)
    while window := _take_window(records, size, task.cost):
        start = time.perf_counter()
        rows = task.rows(window, bar)
        per_second = sum(task.cost(record) for _, record in window) / (time.perf_counter() - start)
        yield window, rows
        size = min(max(FIRST_WINDOW, int(per_second * WRITE_SECONDS)), task.max_cost)


def _take_window(
    records: Iterator[NumberedRecord], size: int, cost: Callable[[Record], int]
) -> list[NumberedRecord]:
    """The next records, until their costs sum up to `size`."""
    window: list[NumberedRecord] = []
    work = 0
    while work < size and (numbered := next(records, None)) is not None:
        window.append(numbered)
        work += cost(numbered[1])
    return window


class RowFile:
    """A file to which rows are appended; it begins with the complete rows that are there.

    records: it consumes those whose rows are there. Raises DataError if a row is damaged or of another record.
    rows: number of rows in the file; shortened: number of those appended with shortened texts.
    """

    def __init__(self, path: Path, records: Iterator[NumberedRecord]):
        self.path = path
        self.rows = self.shortened = self._end = 0
        if path.exists() and path.stat().st_size:
            self._resume(records)
        self._file: IO[str] = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, records: Iterable[NumberedRecord], rows: Sequence[dict[str, Any]]) -> None:
        """Write rows and wait until the disk has them. Raises DataError if another process has written to the file."""
        if os.fstat(self._file.fileno()).st_size != self._end:
            raise DataError(
                f"{self.path} has changed while it was written: another process writes to it"
            )
        for row, (_, record) in zip(rows, records, strict=True):
            line = encode_row(row | {TEXTS: contents_id(record)})
            self._file.write(line)
            self._end += len(line.encode())
            self.shortened += row["shortened"]
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += len(rows)

    def _resume(self, records: Iterator[NumberedRecord]) -> None:
        with open(self.path, "r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # incomplete, of an interrupted run
                _check_row(self.path, self.rows + 1, line, next(records, (0, None))[1])
                self.rows, self._end = self.rows + 1, self._end + len(line)
            file.truncate(self._end)


def encode_row(row: dict[str, Any]) -> str:
    """A row as a line that ends with its checksum.

    >>> encode_row({"id": "p1"})
    '{"id": "p1", "checksum": "95b623c617c6ba6f"}\\n'
    """
    text = json.dumps(row, ensure_ascii=False)
    if not text.isascii() and re.search(
        r"[\ud800-\udfff]", text
    ):  # not UTF-8: half a character of JSON's \u
        text = json.dumps(row)
    text = text[:-1]
    return f'{text}, "{CHECKSUM}": "{_digest(text.encode())}"}}\n'


def decode_row(line: bytes) -> dict[str, Any]:
    """The row of a line. Raises ValueError if it is not a line of `encode_row`."""
    text, _, end = line.rpartition(f', "{CHECKSUM}": "'.encode())
    if end != f'{_digest(text)}"}}\n'.encode():
        raise ValueError("the checksum does not match")
    return json.loads(text + b"}")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a finished file. Raises DataError if a line is damaged, or if there is no file."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        for number, line in enumerate(file, 1):
            yield _decoded(path, number, line)


def accept_rows(path: Path) -> int:
    """Accept rows that were edited on purpose: write their checksums again. Returns their number.

    Raises DataError if a line is no row.
    """
    changed = 0
    partial = path.with_name(path.name + ".accepted")
    with open(path, "rb") as file, open(partial, "w", encoding="utf-8", newline="\n") as renewed:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                row.pop(CHECKSUM)
                row[TEXTS]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                partial.unlink()
                raise DataError(f"{path}, line {number} is not a row of results") from None
            text = encode_row(row)
            changed += text.encode() != line
            renewed.write(text)
    partial.replace(path)
    return changed


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=8).hexdigest()


def _decoded(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = decode_row(line)
        if not {"id", TEXTS} <= row.keys():
            raise ValueError("no id")
    except (ValueError, AttributeError, RecursionError):
        raise DataError(
            f"{path}, line {number} is not a row of results: the file was damaged or edited. {ADVICE}, or "
            f"accept it unchanged: gram-jax verify {path} --accept"
        ) from None
    return row


def _check_row(out: Path, number: int, line: bytes, record: Record | None) -> None:
    """Raises DataError unless a line is the row of this record, with the same texts."""
    row = _decoded(out, number, line)
    where, there = f"{out}, line {number}", row["id"]
    if record is None:
        raise DataError(
            f"{where} is the row of {there!r}, the input ends before it: it has changed, or is cut off by a limit. "
            f"{ADVICE}"
        )
    if there != record.id:
        raise DataError(
            f"{where} is the row of {there!r}, the input has {record.id!r} there: it has changed. {ADVICE}"
        )
    if row[TEXTS] != contents_id(record):
        raise DataError(
            f"{where}: the texts of {there!r}, or which of them is better, are not those of the input, which has "
            f"changed. {ADVICE}"
        )


def check_metadata(out: Path, metadata: dict[str, Any]) -> None:
    """Raises DataError unless the file `out` has rows that were made from the same."""
    try:
        found = read_metadata(out)
    except DataError as error:
        raise DataError(f"{error}. {ADVICE}") from None
    compare_metadata(str(out), found, metadata)


def read_metadata(out: Path) -> dict[str, Any]:
    """What the rows of `out` were made from. Raises DataError if that is missing, damaged or edited."""
    path = metadata_path(out)
    try:
        found = without_checksum(json.loads(path.read_text(encoding="utf-8")))
        found["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}, which describes {out}, is missing or damaged") from None
    return found


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """The content of `metadata_path`, which ends with a checksum."""
    return json.dumps(with_checksum(metadata), indent=2, ensure_ascii=False) + "\n"


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object and, last, a checksum of its other entries."""
    text = json.dumps(content, sort_keys=True)
    return {**content, CHECKSUM: _digest(text.encode())}


def without_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """The entries of `with_checksum`. Raises ValueError if they are others; without a checksum all are accepted."""
    entries = {key: value for key, value in content.items() if key != CHECKSUM}
    if content != entries and content != with_checksum(entries):
        raise ValueError("the checksum does not match")
    return entries


def compare_metadata(out: str, found: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Raises DataError if results that were found were made from something else."""
    now = json.loads(json.dumps(metadata))
    different = [
        f"  {key}: {found.get(key)!r} there, {now.get(key)!r} now"
        for key in now | found
        if key not in NAMES and found.get(key) != now.get(key)
    ]
    if different:
        models = f"made with {found.get('model')!r}, now {metadata['model']!r}"
        raise DataError("\n".join([f"{out} holds other results ({models}):", *different, ADVICE]))


@contextmanager
def explain_interruption(out: str | Path) -> Iterator[None]:
    """Raises DataError for a full disk or a file that cannot be written; Ctrl-C logs how to resume."""
    advice = "The complete rows are kept: free some space and run the same command again"
    try:
        with explain_full_disk(Path(out), advice, error=DataError):
            yield
    except KeyboardInterrupt:
        logger.warning("%s keeps its complete rows; the same command resumes after them", out)
        raise
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error


def metadata_path(out: Path) -> Path:
    """The file that records what the rows of `out` were made from."""
    return out.with_name(out.name + META)
