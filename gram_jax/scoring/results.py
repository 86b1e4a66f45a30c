"""JSON lines that a long run writes: a row for each record of the input, in its order.

OUT.meta.json records what the rows were made from. An interrupted run resumes after the last complete line; an
incomplete last line is cut off.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.records import Record, contents_id
from gram_jax.errors import DataError
from gram_jax.files import explain_full_disk
from gram_jax.progress import ProgressBar, ProgressFactory
from gram_jax.scoring.rows import NumberedRecord

logger = logging.getLogger(__name__)

# An interruption loses at most about this much work: the size of a window, which does not change results, follows from
# the speed.
WRITE_SECONDS = 30.0
FIRST_WINDOW = 8
# All metadata must be the same for a run to resume in a file, except these keys, which are descriptive.
NAMES = ("model",)
# In every row, a hash of the record: ids may stay the same when texts or labels change.
TEXTS = "texts"
ADVICE = "Give another output file, or --overwrite"


class RowTask(NamedTuple):
    """How records become rows.

    rows: the row of each record of a window; it updates the bar as records finish.
    cost: work of a record. max_cost: largest work of a window.
    """

    rows: Callable[[list[NumberedRecord], ProgressBar], list[dict[str, Any]]]
    cost: Callable[[Record], int]
    max_cost: int


@dataclass(frozen=True)
class WriteSummary:
    """Rows written now, rows found in the file, rows with shortened texts, and rows left out by reason."""

    written: int
    before: int
    shortened: int
    dropped: dict[str, int] = field(default_factory=dict)

    def to_text(self) -> str:
        """For the command's last line."""
        dropped = "".join(f", {count:,} left out ({why})" for why, count in self.dropped.items())
        return (
            f"{self.written:,} rows written, {self.before:,} were there, {self.shortened:,} "
            f"shortened{dropped}"
        )


def write_rows(
    out: Path,
    metadata: dict[str, Any],
    records: Iterator[NumberedRecord],
    task: RowTask,
    *,
    total: int | None,
    label: str,
    unit: str,
    overwrite: bool,
    progress: ProgressFactory,
) -> WriteSummary:
    """Write the row of every record to `out`, or of those records that have no row there yet.

    metadata: what decides the rows. total, label, unit: of the progress.
    Raises DataError if `out` holds other results or cannot be written; its complete rows are kept.
    """
    written = shortened = 0
    size = min(FIRST_WINDOW, task.max_cost)
    with _explain_interruption(out):
        before = 0 if overwrite else _resume(out, metadata, records)
        with (
            open(out, "a" if before else "w", encoding="utf-8", newline="\n") as file,
            progress(total, done=before, label=label, unit=unit) as bar,
        ):
            if not before:
                _metadata_path(out).write_text(
                    json.dumps(metadata, indent=2) + "\n", encoding="utf-8"
                )
            while window := _take_window(records, size, task.cost):
                start = time.perf_counter()
                rows = task.rows(window, bar)
                for row, (_, record) in zip(rows, window, strict=True):
                    row = row | {TEXTS: contents_id(record)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                written += len(rows)
                shortened += sum(row["shortened"] for row in rows)
                done = sum(task.cost(record) for _, record in window)
                per_second = done / (time.perf_counter() - start)
                size = min(max(FIRST_WINDOW, int(per_second * WRITE_SECONDS)), task.max_cost)
    return WriteSummary(written, before, shortened)


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


def _resume(out: Path, metadata: dict[str, Any], records: Iterator[NumberedRecord]) -> int:
    """Number of complete rows in `out`; consumes the same number of records."""
    if not out.exists() or out.stat().st_size == 0:
        return 0
    try:
        found = json.loads(_metadata_path(out).read_text(encoding="utf-8"))
        found["format"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{out} exists and its {_metadata_path(out).name} is missing or damaged. {ADVICE}"
        ) from None
    now = json.loads(json.dumps(metadata))
    different = [
        f"  {key}: {found.get(key)!r} there, {now.get(key)!r} now"
        for key in now | found
        if key not in NAMES and found.get(key) != now.get(key)
    ]
    if different:
        models = f"made with {found.get('model')!r}, now {metadata['model']!r}"
        raise DataError("\n".join([f"{out} holds other results ({models}):", *different, ADVICE]))
    count = end = 0
    with open(out, "r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # incomplete, of an interrupted run
            _check_row(out, count + 1, line, next(records, (0, None))[1])
            count, end = count + 1, end + len(line)
        file.truncate(end)
    return count


def _check_row(out: Path, number: int, line: bytes, record: Record | None) -> None:
    """Raises DataError unless a line is the row of this record, with the same texts."""
    where = f"{out}, line {number}"
    try:
        row = json.loads(line)
        there, texts = row["id"], row[TEXTS]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{where} is no row of results: the file was damaged or edited. {ADVICE}"
        ) from None
    if record is None:
        raise DataError(
            f"{where} is the row of {there!r}, the input ends before it: it has changed, or is cut off by a limit. "
            f"{ADVICE}"
        )
    if there != record.id:
        raise DataError(
            f"{where} is the row of {there!r}, the input has {record.id!r} there: it has changed. {ADVICE}"
        )
    if texts != contents_id(record):
        raise DataError(
            f"{where}: the texts of {there!r}, or which of them is better, are not those of the input, which has "
            f"changed. {ADVICE}"
        )


@contextmanager
def _explain_interruption(out: Path) -> Iterator[None]:
    """Raises DataError for a full disk or a file that cannot be written; Ctrl-C logs how to resume."""
    advice = "The complete rows are kept: free some space and run the same command again"
    try:
        with explain_full_disk(out, advice, error=DataError):
            yield
    except KeyboardInterrupt:
        logger.warning("%s keeps its complete rows; the same command resumes after them", out)
        raise
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error


def _metadata_path(out: Path) -> Path:
    return out.with_name(out.name + ".meta.json")
