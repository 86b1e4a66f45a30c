"""`gram-jax score`: a file of pairs in, a file of scores out, in the order of the input.

The output is JSON lines. Beside it stands OUT.meta.json, which says what it was made from. A run that was interrupted
goes on behind the last complete line; a torn last line is cut off.
"""

import errno
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import jax
import numpy as np

from gram_jax import tree
from gram_jax.console import Console
from gram_jax.data.records import (
    Candidates,
    Kind,
    Record,
    RecordStream,
    UnlabeledPair,
    source_kind,
)
from gram_jax.data.sources import count_rows, parse_source
from gram_jax.errors import DataError
from gram_jax.scoring.ranking import order_of, round_robin, strengths, table_of
from gram_jax.scoring.scorer import PairScore, Scorer
from gram_jax.tree import Tree

Numbered = tuple[int, Record]  # a record and the number of its row
FORMAT = 2
# An interruption costs at most about so much work. How many pairs are scored together changes nothing in their
# scores, so the number follows from the speed.
WRITE_SECONDS = 30.0
FIRST_WINDOW = 8
# What must be the same for a run to go on in a file; the rest of the note is for people.
IDENTITY = ("format", "source", "kind", "weights", "judge", "compute")


@dataclass(frozen=True)
class ScoredFile:
    """What became of a file: rows written now, rows there before, rows with shortened texts, rows left out and why."""

    written: int
    before: int
    shortened: int
    dropped: dict[str, int]


def check_files(source: str, out: str | Path, *, schema: str = "auto") -> Kind:
    """What `source` is read as. Refuses an unreadable input and an impossible output before a model is loaded."""
    path, out = Path(parse_source(source).path).expanduser(), Path(out)
    if path.exists() and out.exists() and path.samefile(out):
        raise DataError(f"{out} is the input itself: give the scores a file of their own")
    if path.is_dir() and path.resolve() in out.resolve().parents:
        raise DataError(
            f"{out} lies in the folder {path} that is read: put the scores somewhere else"
        )
    if out.is_dir():
        raise DataError(f"{out} is a folder: expected the name of a file for the scores")
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")
    return source_kind(source, schema=schema)


def score_file(
    scorer: Scorer,
    model: str,
    source: str,
    out: str | Path,
    *,
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    overwrite: bool = False,
    console: Console,
) -> ScoredFile:
    """Score every record of `source` into `out`, or go on where an earlier run was interrupted.

    A labeled pair gives score_chosen and score_rejected, an unlabeled one or a tie score_first and score_second (in the
    order of the source), candidates give one mean log-odds each and the order, best first. Each row says which row of
    the input it belongs to, from 1, and the source that the input names there.
    Raises DataError where `out` holds something else, or cannot be written; what is complete in it stays.
    """
    out = Path(out)
    kind = check_files(source, out, schema=schema)
    note = {
        "format": FORMAT,
        "source": str(source),
        "kind": kind,
        "model": model,
        "weights": weights_fingerprint(scorer.params),
        "judge": scorer.spec.hash,
        "compute": scorer.execution.compute,
    }
    stream = RecordStream(source, kind, schema=schema, on_bad=on_bad, keep_identical=True)
    records = ((stream.row, record) for record in stream)
    written = shortened = 0
    size = min(FIRST_WINDOW, scorer.window)
    with _explain_interruption(out, console):
        before = 0 if overwrite else _resume(out, note, records)
        total = None if kind == "candidates" else count_rows(source)
        with (
            open(out, "a" if before else "w", encoding="utf-8", newline="\n") as file,
            console.progress(total, done=before, label="scored", unit="pairs") as progress,
        ):
            if not before:
                _note_path(out).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            while window := _take_window(records, size):
                start = time.perf_counter()
                asked = [list(_comparisons(record)) for _, record in window]
                scores = scorer.stream(
                    itertools.chain.from_iterable(asked),
                    progress=lambda count: progress.update(count, units=count),
                )
                rows = [
                    _row(number, record, list(itertools.islice(scores, len(comparisons))))
                    for (number, record), comparisons in zip(window, asked, strict=True)
                ]
                _append(file, rows)
                written += len(rows)
                shortened += sum(row["shortened"] for row in rows)
                per_second = sum(map(len, asked)) / (time.perf_counter() - start)
                size = min(max(FIRST_WINDOW, int(per_second * WRITE_SECONDS)), scorer.window)
    return ScoredFile(written, before, shortened, dict(stream.report().dropped))


def weights_fingerprint(params: Tree) -> str:
    """16 hex digits that tell one set of weights from another, from the first row of every tensor."""
    digest = hashlib.sha256()
    for path, leaf in sorted(tree.flatten(params).items()):
        row = np.asarray(jax.device_get(leaf[(0,) * (leaf.ndim - 1)]))
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode() + row.tobytes())
    return digest.hexdigest()[:16]


def _take_window(records: Iterator[Numbered], size: int) -> list[Numbered]:
    """The next records with some `size` comparisons together: candidates need many each."""
    window: list[Numbered] = []
    comparisons = 0
    while comparisons < size and (numbered := next(records, None)) is not None:
        window.append(numbered)
        comparisons += _comparison_count(numbered[1])
    return window


def _comparison_count(record: Record) -> int:
    if isinstance(record, Candidates):
        return len(record.responses) * (len(record.responses) - 1) // 2
    return 1


def _comparisons(record: Record) -> Iterator[tuple[Any, str, str]]:
    if isinstance(record, Candidates):
        for i, j in round_robin(len(record.responses)):
            yield record.prompt, record.responses[i], record.responses[j]
    else:
        yield record.prompt, record.first, record.second


def _row(number: int, record: Record, scores: list[PairScore]) -> dict[str, Any]:
    """The output row of a record."""
    row: dict[str, Any] = {"id": record.id, "row": number, "source": record.source}
    shortened = any(score.shortened for score in scores)
    if isinstance(record, Candidates):
        margins = [score.margin for score in scores]
        values = strengths(table_of(len(record.responses), margins)).tolist()
        return row | {"scores": values, "ranking": order_of(values), "shortened": shortened}
    (score,) = scores
    if isinstance(record, UnlabeledPair):
        row |= {"score_first": score.first, "score_second": score.second}
    elif record.tie:
        row |= {"score_first": score.first, "score_second": score.second, "tie": True}
    else:
        score = score if record.chosen_first else score.swapped()
        row |= {"score_chosen": score.first, "score_rejected": score.second}
    return row | {
        "margin": score.margin,
        "order_gap": score.order_gap,
        "shortened": shortened,
    }


def _resume(out: Path, note: dict[str, Any], records: Iterator[Numbered]) -> int:
    """Number of complete rows that `out` holds already; as many records are taken off the input."""
    if not out.exists() or out.stat().st_size == 0:
        return 0
    try:
        found = json.loads(_note_path(out).read_text(encoding="utf-8"))
        differing = [key for key in IDENTITY if found[key] != note[key]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{out} exists and nothing says how it was made ({_note_path(out).name} is missing or damaged): "
            "give another output file, or --overwrite"
        ) from None
    if differing:
        lines = "\n  ".join(f"{key}: {found[key]!r} there, {note[key]!r} now" for key in differing)
        raise DataError(
            f"{out} holds other scores (made with {found.get('model')!r}, asked for is {note['model']!r}):\n"
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
    """Raises DataError unless a line is the score of this record."""
    try:
        there = json.loads(line)["id"]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{out}, line {number} is no row of scores: the file was damaged or edited. Give another output file, or "
            "--overwrite"
        ) from None
    if record is None or there != record.id:
        expected = "ends before it" if record is None else f"has {record.id!r} there"
        raise DataError(
            f"{out}, line {number} is the score of {there!r}, the input {expected}: the input has changed. Give "
            "another output file, or --overwrite"
        )


@contextmanager
def _explain_interruption(out: Path, console: Console) -> Iterator[None]:
    """A full disk, or a file that cannot be written, is a DataError; Ctrl-C says that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        console.warn(f"{out} keeps its complete rows; the same command goes on after them")
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk of {out} is full. The complete rows are kept: make room and run the same command again"
            ) from error
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error


def _append(file: IO[str], rows: list[dict[str, Any]]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.flush()
    os.fsync(file.fileno())


def _note_path(out: Path) -> Path:
    return out.with_name(out.name + ".meta.json")
