"""JSON lines that a long run writes: a row for each record of the input, in its order.

Beside OUT stands OUT.meta.json, which says what it was made from. A run that was interrupted goes on behind the last
complete line; a torn last line is cut off.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from gram_jax.console import Console, Progress
from gram_jax.data.records import Record, contents_id
from gram_jax.errors import DataError
from gram_jax.files import explain_full_disk

Numbered = tuple[int, Any]  # the number of a row, and its record
# An interruption costs at most about so much work. How many records are worked on together changes nothing in their
# results, so the number follows from the speed.
WRITE_SECONDS = 30.0
FIRST_WINDOW = 8
# What must be the same for a run to go on in a file is all of its note but this, which is for people.
NAMES = ("model",)
# In every row, a hash of what was asked: ids may stay the same where texts or labels have changed.
TEXTS = "texts"


class Task(NamedTuple):
    """What to do with records.

    answer: the rows of some records, of which each becomes one; progress is to be told of each that is ready.
    cost: how much work a record is, in a unit of which `most` at a time is enough.
    """

    answer: Callable[[list[Numbered], Progress], list[dict[str, Any]]]
    cost: Callable[[Record], int]
    most: int


class Written(NamedTuple):
    """Rows written now, rows there before, and rows with shortened texts among those written."""

    written: int
    before: int
    shortened: int


def write_results(
    out: Path,
    note: dict[str, Any],
    records: Iterator[Numbered],
    task: Task,
    *,
    total: int | None,
    labels: tuple[str, str],
    overwrite: bool,
    console: Console,
) -> Written:
    """Carry out a task on every record, or on those behind the rows that are there.

    note: what decides the rows. total, labels: of the progress, (what is done, to what).
    Raises DataError where `out` holds something else, or cannot be written; what is complete in it stays.
    """
    written = shortened = 0
    size = min(FIRST_WINDOW, task.most)
    with _explain_interruption(out, console):
        before = 0 if overwrite else _resume(out, note, records)
        with (
            open(out, "a" if before else "w", encoding="utf-8", newline="\n") as file,
            console.progress(total, done=before, label=labels[0], unit=labels[1]) as progress,
        ):
            if not before:
                _note_path(out).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            while window := _take_window(records, size, task.cost):
                start = time.perf_counter()
                rows = task.answer(window, progress)
                asked = ({TEXTS: contents_id(record)} for _, record in window)
                _append(file, [row | text for row, text in zip(rows, asked, strict=True)])
                written += len(rows)
                shortened += sum(row["shortened"] for row in rows)
                done = sum(task.cost(record) for _, record in window)
                per_second = done / (time.perf_counter() - start)
                size = min(max(FIRST_WINDOW, int(per_second * WRITE_SECONDS)), task.most)
    return Written(written, before, shortened)


def _take_window(
    records: Iterator[Numbered], size: int, cost: Callable[[Record], int]
) -> list[Numbered]:
    """The next records that are `size` of work together."""
    window: list[Numbered] = []
    work = 0
    while work < size and (numbered := next(records, None)) is not None:
        window.append(numbered)
        work += cost(numbered[1])
    return window


def _resume(out: Path, note: dict[str, Any], records: Iterator[Numbered]) -> int:
    """Number of complete rows that `out` holds already; as many records are taken off the input."""
    if not out.exists() or out.stat().st_size == 0:
        return 0
    try:
        found = json.loads(_note_path(out).read_text(encoding="utf-8"))
        found["format"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{out} exists and nothing says how it was made ({_note_path(out).name} is missing or damaged): "
            "give another output file, or --overwrite"
        ) from None
    now = json.loads(json.dumps(note))
    keys = [key for key in now | found if key not in NAMES and found.get(key) != now.get(key)]
    if keys:
        lines = "\n  ".join(
            f"{key}: {found.get(key)!r} there, {now.get(key)!r} now" for key in keys
        )
        raise DataError(
            f"{out} holds other results (made with {found.get('model')!r}, asked for is {note['model']!r}):\n"
            f"  {lines}\nGive another output file, or --overwrite"
        )
    count = end = 0
    with open(out, "r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # torn by an interruption
            _check_row(out, count + 1, line, next(records, (0, None))[1])
            count, end = count + 1, end + len(line)
        file.truncate(end)
    return count


def _check_row(out: Path, number: int, line: bytes, record: Record | None) -> None:
    """Raises DataError unless a line is the row of this record, with the same texts."""
    try:
        row = json.loads(line)
        there, texts = row["id"], row[TEXTS]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{out}, line {number} is no row of results: the file was damaged or edited. Give another output file, or "
            "--overwrite"
        ) from None
    if record is None or there != record.id:
        expected = "ends before it" if record is None else f"has {record.id!r} there"
        changed = "it has changed" + (", or is cut off by a limit" if record is None else "")
        raise DataError(
            f"{out}, line {number} is the row of {there!r}, the input {expected}: {changed}. Give another output, or "
            "--overwrite"
        )
    if texts != contents_id(record):
        raise DataError(
            f"{out}, line {number}: the texts of {there!r}, or which of them is better, are not those of the input: "
            "the input has changed. Give another output file, or --overwrite"
        )


@contextmanager
def _explain_interruption(out: Path, console: Console) -> Iterator[None]:
    """A full disk, or a file that cannot be written, is a DataError; Ctrl-C says that nothing is lost."""
    advice = "The complete rows are kept: free some space and run the same command again"
    try:
        with explain_full_disk(out, advice, error=DataError):
            yield
    except KeyboardInterrupt:
        console.warn(f"{out} keeps its complete rows; the same command goes on after them")
        raise
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error


def _append(file: IO[str], rows: list[dict[str, Any]]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.flush()
    os.fsync(file.fileno())


def _note_path(out: Path) -> Path:
    return out.with_name(out.name + ".meta.json")
