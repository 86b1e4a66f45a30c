"""Results that several processes write without communication: parts of a file, and how they are joined.

Part p of OUT has the results of the rows p * part_rows + 1 to (p + 1) * part_rows of the input, independent of the
process that writes it. Shard I of N writes the parts I, I + N, I + 2 N, ... A restart, even with another N, therefore
skips complete parts.

OUT.parts/manifest.json              what the rows are made from, the same for all processes
OUT.parts/part-00003.jsonl.partial   a part that is being written, next to its lock; a restart resumes in it
OUT.parts/part-00003.json            its size, SHA-256, dropped rows, and the code and device that computed it
OUT.parts/part-00003.jsonl           the complete part, which is renamed to this last
OUT.parts/end.json                   number of rows of the input, by the first process that reads to its end

OUT may be an address of fsspec (gs://, s3://): parts are written to a temporary folder and uploaded when complete.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.distributed.lock import file_lock, hold_lock
from gram_jax.errors import DataError
from gram_jax.files import write_atomic
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.remote import is_remote, open_filesystem
from gram_jax.scoring.results import (
    META,
    NAMES,
    PARTS,
    OutputSink,
    RowFile,
    RowSource,
    RowTask,
    Shard,
    WriteSummary,
    compare_metadata,
    decode_row,
    explain_interruption,
    metadata_path,
    metadata_text,
    windows_of_rows,
    with_checksum,
    without_checksum,
    write_rows,
)
from gram_jax.scoring.rows import NumberedRecord

logger = logging.getLogger(__name__)

FORMAT = 2
MANIFEST, END = "manifest.json", "end.json"
PART_ROWS = 1000  # by default
PARTIAL = ".partial"
SHOWN = 8  # missing parts in an error
PART = re.compile(r"part-(\d+)\.jsonl")


class PartRecord(NamedTuple):
    """The record of a complete part.

    made_from: `_made_from` of the manifest. code: versions, program and device that computed it.
    """

    made_from: str
    rows: int
    bytes: int
    sha256: str
    shortened: int
    dropped: dict[str, int]
    code: dict[str, str]


class PartFolder:
    """OUT.parts, on a disk or at an address of fsspec."""

    def __init__(self, out: str):
        self.out, self.name = out, out + PARTS
        self._remote = open_filesystem(self.name) if is_remote(out) else None

    def names(self) -> set[str]:
        """Names of the files in the folder."""
        if self._remote is None:
            folder = Path(self.name)
            return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        files, folder = self._remote
        if not files.exists(folder):
            return set()
        return {str(path).rpartition("/")[2] for path in files.ls(folder, detail=False)}

    def make(self) -> None:
        """Make the folder."""
        if self._remote is None:
            Path(self.name).mkdir(exist_ok=True)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        if self._remote is None:
            return Path(self.name, name).read_bytes()
        return self._remote[0].cat_file(f"{self._remote[1]}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, as a whole or not at all."""
        if self._remote is None:
            write_atomic(Path(self.name, name), content)
        else:
            self._remote[0].pipe_file(f"{self._remote[1]}/{name}", content)

    def write_json(self, name: str, content: Any) -> None:
        """Write a value as JSON."""
        self.write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """The folder on a disk in which parts are written."""
        if self._remote is None:
            yield Path(self.name)
        else:
            with tempfile.TemporaryDirectory(prefix="gram-jax-parts-") as place:
                yield Path(place)

    def publish(self, partial: Path, name: str) -> None:
        """Give a part that is whole its name."""
        if self._remote is None:
            partial.replace(Path(self.name, name))
        else:
            self.write(name, partial.read_bytes())
            partial.unlink()

    def lock(self, path: Path) -> AbstractContextManager[None]:
        """The lock of a file that is being written; object stores have none, and the last writer wins."""
        return nullcontext() if self._remote else hold_lock(file_lock(path), error=DataError)


def file_of(part: int) -> str:
    """Name of a part's file."""
    return f"part-{part:05d}.jsonl"


def record_of(part: int) -> str:
    """Name of the file with a part's PartRecord."""
    return f"part-{part:05d}.json"


class _OpenPart:
    """A part while it is written."""

    def __init__(self, folder: PartFolder, place: Path, number: int):
        self.number, self.path = number, place / (file_of(number) + PARTIAL)
        self._held = ExitStack()
        self._held.enter_context(folder.lock(place / file_of(number)))
        self.expected: int | None = None  # number of rows, when all records have been read
        self.file: RowFile

    def begin(self, records: Iterator[NumberedRecord]) -> None:
        """Open the file. It consumes the records that have a row there."""
        try:
            self.file = self._held.enter_context(RowFile(self.path, records))
        except DataError as error:
            raise DataError(
                f"{error}. A part that was begun: remove {self.path} to write it again"
            ) from None

    def close(self) -> None:
        self._held.close()


class _ShardWriter:
    """Writes the parts of one shard."""

    def __init__(self, shard: Shard, folder: PartFolder, made_from: str, code: dict[str, str]):
        self.folder, self.shard, self.made_from, self.code = folder, shard, made_from, code
        found = map(PART.fullmatch, folder.names())
        self.done = {int(name[1]) for name in found if name}
        self.dropped: dict[int, Counter[str]] = {}
        self.open: deque[_OpenPart] = deque()
        self.shortened = 0

    def part(self, row: int) -> int:
        return (row - 1) // self.shard.part_rows

    def mine(self, part: int) -> bool:
        return part % self.shard.count == self.shard.index and part not in self.done

    def wanted(self, row: int) -> bool:
        return self.mine(self.part(row))

    def rows_before(self, place: Path) -> int:
        """Number of rows in the parts of this shard, those that an interrupted run began included."""
        whole = [part for part in self.done if part % self.shard.count == self.shard.index]
        counts = [_read_record(self.folder, part, self.made_from).rows for part in whole]
        for path in place.glob(f"*{PARTIAL}"):
            if (name := PART.fullmatch(path.name.removesuffix(PARTIAL))) and self.mine(
                int(name[1])
            ):
                counts.append(path.read_bytes().count(b"\n"))
        return sum(counts)

    def drop(self, row: int, why: str) -> None:
        self.dropped.setdefault(self.part(row), Counter())[why] += 1

    def pending(
        self, records: Iterator[NumberedRecord], place: Path, rows: Callable[[], int]
    ) -> Iterator[NumberedRecord]:
        """The records that have no row yet. Parts are opened as their first record is read.

        rows: number of rows of the input, when it has been read.
        """
        following = 0
        for number, group in itertools.groupby(records, lambda one: self.part(one[0])):
            self._open_empty(range(following, number), place)
            following = number + 1
            part = self._open(number, place)
            members = iter(group)
            part.begin(members)
            count = part.file.rows
            for one in members:
                count += 1
                yield one
            part.expected = count
        self._open_empty(range(following, self.part(rows()) + 1), place)

    def _open(self, number: int, place: Path) -> _OpenPart:
        part = _OpenPart(self.folder, place, number)
        self.open.append(part)
        return part

    def _open_empty(self, numbers: range, place: Path) -> None:
        """Parts of which every row was dropped."""
        for number in filter(self.mine, numbers):
            part = self._open(number, place)
            part.begin(iter(()))
            part.expected = 0

    def append(self, window: list[NumberedRecord], rows: list[dict[str, Any]]) -> None:
        """Write rows to their parts, and publish those that are whole."""
        both = zip(window, rows, strict=True)
        parts = {part.number: part for part in self.open}
        for number, group in itertools.groupby(both, lambda one: self.part(one[0][0])):
            part, (records, made) = parts[number], zip(*group, strict=True)
            part.file.append(records, made)
            self.shortened += sum(row["shortened"] for row in made)
        self.publish()

    def publish(self) -> None:
        """Publish the parts that are whole."""
        while self.open and self.open[0].expected == self.open[0].file.rows:
            part = self.open.popleft()
            content = part.path.read_bytes()
            record = PartRecord(
                self.made_from,
                part.file.rows,
                len(content),
                hashlib.sha256(content).hexdigest(),
                content.count(b'"shortened": true'),
                dict(self.dropped.pop(part.number, {})),
                self.code,
            )
            self.folder.write_json(record_of(part.number), record._asdict())
            self.folder.publish(part.path, file_of(part.number))
            part.close()

    def close(self) -> None:
        while self.open:
            self.open.popleft().close()


def write_results(
    sink: OutputSink,
    metadata: dict[str, Any],
    source: RowSource,
    task: RowTask,
    code: Callable[[], dict[str, str]],
) -> WriteSummary:
    """`write_rows`, or `write_parts` for a shard. Rows for an address of fsspec are written as parts and joined."""
    if sink.shard is not None:
        return write_parts(sink, metadata, source, task, code)
    if not is_remote(out := str(sink.file)):
        return write_rows(sink, metadata, source, task)
    alone = sink._replace(shard=Shard(0, 1, PART_ROWS))
    written = write_parts(alone, metadata, source, task, code)
    merge_parts(out, overwrite=True)
    return written


def write_parts(
    sink: OutputSink,
    metadata: dict[str, Any],
    source: RowSource,
    task: RowTask,
    code: Callable[[], dict[str, str]],
) -> WriteSummary:
    """Write the parts of a shard that are not whole yet; no process waits for another.

    metadata: as of `write_rows`. code: versions, program and device. Raises DataError if the folder has parts of other
    results or of another input, InUseError if another process writes one of these parts.
    """
    assert sink.shard is not None
    shard, folder = sink.shard, PartFolder(str(sink.file))
    with explain_interruption(folder.name), ExitStack() as held:
        contents = source.contents()
        made_from = _open_folder(folder, sink, metadata, contents)
        place = held.enter_context(folder.workplace())
        writer = _ShardWriter(shard, folder, made_from, code())
        held.callback(writer.close)
        before = writer.rows_before(place)
        dropped: Counter[str] = Counter()

        def drop(row: int, why: str) -> None:
            writer.drop(row, why)
            dropped[why] += 1

        total = None if source.total is None else shard.rows_of(source.total)
        with sink.progress(total, done=before, label=task.label, unit=task.unit) as bar:
            records = writer.pending(source.records(writer.wanted, drop), place, source.rows)
            written = 0
            for window, rows in windows_of_rows(records, task, bar):
                writer.append(window, rows)
                written += len(rows)
            writer.publish()
        _write_end(folder, source.rows())
        return WriteSummary(written, before, writer.shortened, dict(dropped))


def _open_folder(
    folder: PartFolder, sink: OutputSink, metadata: dict[str, Any], contents: str
) -> str:
    """Make the folder and its manifest, or compare them; returns `_made_from` of the manifest."""
    assert sink.shard is not None
    now = {
        "format": FORMAT,
        "part_rows": sink.shard.part_rows,
        "input": contents,
        "rows": json.loads(json.dumps(metadata)),
    }
    if sink.overwrite:
        raise DataError(
            f"one shard cannot overwrite the others: remove {folder.name} before they start, and leave out --overwrite"
        )
    folder.make()
    if MANIFEST not in folder.names():
        folder.write_json(MANIFEST, with_checksum(now))
    found = _read_manifest(folder)
    compare_metadata(folder.name, found["rows"], metadata)
    if found["input"] != contents:
        raise DataError(
            f"{folder.name} has parts that were made from another input, or the input has changed since. "
            "Give another output file, or remove them before the shards start"
        )
    if found["part_rows"] != sink.shard.part_rows:
        raise DataError(
            f"{folder.name} has parts of {found['part_rows']:,} rows, this process would write "
            f"{sink.shard.part_rows:,}: expected --part-rows {found['part_rows']} for all"
        )
    return _made_from(found)


def _made_from(manifest: dict[str, Any]) -> str:
    """A hash of what the manifest says of the rows, without the names.

    Processes that start at the same time may write different manifests, of which one remains: each part states its own.
    """
    rows = {key: value for key, value in manifest["rows"].items() if key not in NAMES}
    content = json.dumps(manifest | {"rows": rows}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _read_manifest(folder: PartFolder) -> dict[str, Any]:
    try:
        found = without_checksum(_read_json(folder, MANIFEST))
    except ValueError:
        found = {}
    if found.get("format") != FORMAT or not {"part_rows", "input", "rows"} <= found.keys():
        raise DataError(f"{folder.name}/{MANIFEST} is damaged, or of another version of gram_jax")
    return found


def _read_record(folder: PartFolder, part: int, made_from: str) -> PartRecord:
    place, again = f"{folder.name}/{record_of(part)}", _again(folder, part)
    try:
        record = PartRecord(**_read_json(folder, record_of(part)))
    except (DataError, TypeError):
        raise DataError(f"{place} is missing or damaged: {again}") from None
    if record.made_from != made_from:
        raise DataError(
            f"{place} is not of the results that {MANIFEST} describes: shards with different judges, options or inputs "
            f"started at the same time. To keep {MANIFEST}, {again}"
        )
    return record


def _read_json(folder: PartFolder, name: str) -> dict[str, Any]:
    try:
        found = json.loads(folder.read(name))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder.name}/{name} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{folder.name}/{name} holds a {type(found).__name__}, expected an object")
    return found


def _write_end(folder: PartFolder, rows: int) -> None:
    if END not in folder.names():
        folder.write_json(END, {"rows": rows})
    elif (found := _read_end(folder)) != rows:
        raise DataError(
            f"the input has {rows:,} rows, another process that wrote to {folder.name} read {found}: the input changed "
            "while it was read"
        )


def _read_end(folder: PartFolder) -> int:
    rows = _read_json(folder, END).get("rows")
    if not isinstance(rows, int) or rows < 0:
        raise DataError(f"{folder.name}/{END} is damaged: remove it and run a shard again")
    return rows


def merge_parts(
    out: str, *, overwrite: bool = False, progress: ProgressFactory = no_progress
) -> WriteSummary:
    """Check every part of OUT and join them to OUT, with its metadata; the parts stay.

    The bytes are those that one process writes. Raises DataError, which names them, if parts are missing or damaged, or
    if OUT exists with another content.
    """
    folder = PartFolder(out)
    if MANIFEST not in (names := folder.names()):
        raise DataError(f"{folder.name} has no {MANIFEST}: expected parts that --shard wrote")
    manifest = _read_manifest(folder)
    if END not in names:
        raise DataError(
            f"no process has read the input of {folder.name} to its end: parts are missing"
        )
    made_from = _made_from(manifest)
    count = -(-_read_end(folder) // manifest["part_rows"])
    _check_complete(folder, names, count, manifest["part_rows"])
    dropped: Counter[str] = Counter()
    rows = shortened = 0
    code: dict[str, int] = {}
    with explain_interruption(out), folder.lock(Path(out)), _joined(out) as joined:
        with joined.open("wb") as file, progress(count, label="joined", unit="parts") as bar:
            for part in range(count):
                record, content = _check_part(folder, part, made_from)
                file.write(content)
                rows, shortened = rows + record.rows, shortened + record.shortened
                dropped.update(record.dropped)
                code.setdefault(json.dumps(record.code, sort_keys=True), part)
                bar.update(1, units=1)
            file.flush()
            os.fsync(file.fileno())
        _publish(out, joined, manifest["rows"], overwrite)
    if len(code) > 1:
        logger.warning(
            "the parts of %s were computed by %d versions, programs or kinds of device (%s): their scores agree up to "
            "rounding, not bit for bit",
            folder.name,
            len(code),
            "; ".join(f"part {part}: {text}" for text, part in code.items()),
        )
    return WriteSummary(rows, 0, shortened, dict(dropped))


def _check_complete(folder: PartFolder, names: set[str], count: int, part_rows: int) -> None:
    missing = [part for part in range(count) if file_of(part) not in names]
    if not missing:
        return
    shown = ", ".join(
        f"{part} (rows {part * part_rows + 1:,} to {(part + 1) * part_rows:,})"
        for part in missing[:SHOWN]
    )
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    raise DataError(
        f"{len(missing):,} of {count:,} parts of {folder.name} are missing: {shown}{more}. Run the shards "
        "again; shard I of N writes the parts I, I + N, I + 2 N, ..."
    )


def _check_part(folder: PartFolder, part: int, made_from: str) -> tuple[PartRecord, bytes]:
    """A part and its rows. Raises DataError if it is damaged, or not of this manifest."""
    record, content = _read_record(folder, part, made_from), folder.read(file_of(part))
    place = f"{folder.name}/{file_of(part)}"
    if hashlib.sha256(content).hexdigest() == record.sha256 and len(content) == record.bytes:
        return record, content
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            decode_row(line)
        except ValueError:
            raise DataError(f"{place}, line {number} is damaged: {_again(folder, part)}") from None
    raise DataError(f"{place} is not the file that was written: {_again(folder, part)}")


def _again(folder: PartFolder, part: int) -> str:
    return f"remove {folder.name}/{file_of(part)} and run its shard again"


def _publish(out: str, joined: Path, metadata: dict[str, Any], overwrite: bool) -> None:
    text = metadata_text(metadata).encode()
    if is_remote(out):
        files, path = open_filesystem(out)
        files.pipe_file(path + META, text)
        files.put_file(str(joined), path)
        return
    path = Path(out)
    if path.exists() and not overwrite and _digest(path) != _digest(joined):
        raise DataError(
            f"{path} exists and has other rows than its parts: remove it, or --overwrite"
        )
    write_atomic(metadata_path(path), text, error=DataError)
    joined.replace(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _joined(out: str) -> Iterator[Path]:
    """A file on a disk in which the parts of `out` are joined; next to it if that is on a disk."""
    if is_remote(out):
        with tempfile.TemporaryDirectory(prefix="gram-jax-merge-") as place:
            yield Path(place, "joined")
        return
    path = Path(out + PARTIAL)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def parts_in(place: str) -> Sequence[str]:
    """The files whose parts are at `place`: it is such a file, or a folder that has them."""
    place = place.rstrip("/")
    if place.endswith(PARTS) or is_remote(place) or not Path(place).is_dir():
        return [place.removesuffix(PARTS)]
    found = sorted(str(path).removesuffix(PARTS) for path in Path(place).glob(f"*{PARTS}"))
    if not found:
        raise DataError(f"{place} has no {PARTS}: expected a file or folder that --shard wrote")
    return found
