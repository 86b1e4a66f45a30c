"""Results that several processes write without communication: parts of a file, and how they are joined.

Part p of OUT (part_folder.py) has the results of the rows p * part_rows + 1 to (p + 1) * part_rows of the input,
independent of the process that writes it. Shard I of N writes the parts I, I + N, I + 2 N, ... A restart, even with
another N, therefore skips complete parts.
"""

import hashlib
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gram_jax.errors import DataError
from gram_jax.remote import is_remote
from gram_jax.scoring.merging import merge_parts
from gram_jax.scoring.part_folder import (
    FORMAT,
    MANIFEST,
    PART,
    PARTIAL,
    PartFolder,
    PartRecord,
    file_of,
    made_from_hash,
    read_manifest,
    read_record,
    record_of,
    write_end,
)
from gram_jax.scoring.results import (
    OutputSink,
    RowFile,
    RowSource,
    RowTask,
    Shard,
    WriteSummary,
    compare_metadata,
    decode_row,
    explain_interruption,
    windows_of_rows,
    with_checksum,
    write_rows,
)
from gram_jax.scoring.rows import NumberedRecord

PART_ROWS = 1000  # by default


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
        counts = [read_record(self.folder, part, self.made_from).rows for part in whole]
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
                sum(decode_row(line)["shortened"] for line in content.splitlines(keepends=True)),
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
        write_end(folder, source.rows())
        return WriteSummary(written, before, writer.shortened, dict(dropped))


def _open_folder(
    folder: PartFolder, sink: OutputSink, metadata: dict[str, Any], contents: str
) -> str:
    """Make the folder and its manifest, or compare them; returns `made_from_hash` of the manifest."""
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
    found = read_manifest(folder)
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
    return made_from_hash(found)
