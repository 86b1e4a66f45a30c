"""`gram-jax score`: a file of pairs in, a file of scores out, in the order of the input.

The output is JSON lines. Beside it stands OUT.meta.json, which says what it was made from. A run that was interrupted
goes on behind the last complete line; a torn last line is cut off.
"""

import errno
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from gram_jax.console import Console
from gram_jax.data.records import (
    Candidates,
    Preference,
    Record,
    RecordStream,
    UnlabeledPair,
    source_kind,
)
from gram_jax.errors import DataError
from gram_jax.scoring.ranking import order_of, round_robin, strengths
from gram_jax.scoring.scorer import PairScore, Scorer

FORMAT = 1


@dataclass(frozen=True)
class ScoredFile:
    """What became of a file: rows written now, rows that were there before, shortened pairs, rows left out."""

    written: int
    before: int
    shortened: int
    dropped: dict[str, int]


def score_file(
    scorer: Scorer,
    model: str,
    source: str,
    out: str | Path,
    *,
    schema: str = "auto",
    on_bad: str = "error",
    overwrite: bool = False,
    console: Console,
) -> ScoredFile:
    """Score every record of `source` into `out`.

    A labeled pair gives score_chosen and score_rejected, an unlabeled one score_first and score_second (in the order
    of the source), candidates give one mean log-odds each and the order, best first. Raises DataError where `out`
    holds something else.
    """
    out = Path(out)
    if Path(source).exists() and out.exists() and Path(source).samefile(out):
        raise DataError(f"{out} is the input itself: give the scores a file of their own")
    kind = source_kind(source, schema=schema)
    stream = RecordStream(source, kind, schema=schema, on_bad=on_bad, keep_identical=True)
    meta = {
        "format": FORMAT,
        "source": str(source),
        "kind": kind,
        "model": model,
        "judge": scorer.spec.hash,
        "compute": scorer.execution.compute,
    }
    records = iter(stream)
    try:
        before = 0 if overwrite else _resume(out, meta, records)
        with (
            open(out, "a" if before else "w", encoding="utf-8") as file,
            console.progress(None, done=before, label="scored", unit="rows") as progress,
        ):
            if not before:
                _meta_path(out).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
            written = shortened = 0
            while window := list(itertools.islice(records, scorer.window)):
                rows = _score_window(scorer, window)
                _append(file, rows)
                written += len(rows)
                shortened += sum(row["shortened"] for row in rows)
                progress.update(len(rows), units=len(rows))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"the disk of {out} is full. The complete lines are kept: make room and run the same command again"
        ) from error
    return ScoredFile(written, before, shortened, dict(stream.report().dropped))


def _score_window(scorer: Scorer, window: list[Record]) -> list[dict[str, Any]]:
    """One output row per record."""
    asked = [list(_comparisons(record)) for record in window]
    scores = iter(scorer.score_many(itertools.chain.from_iterable(asked)))
    return [
        _row(record, [next(scores) for _ in comparisons])
        for record, comparisons in zip(window, asked, strict=True)
    ]


def _comparisons(record: Record) -> Iterator[tuple[Any, str, str]]:
    if isinstance(record, Candidates):
        for i, j in round_robin(len(record.responses)):
            yield record.prompt, record.responses[i], record.responses[j]
    else:
        yield record.prompt, record.first, record.second


def _row(record: Record, scores: list[PairScore]) -> dict[str, Any]:
    shortened = any(score.shortened for score in scores)
    if isinstance(record, Candidates):
        values = _candidate_strengths(len(record.responses), scores)
        return {
            "id": record.id,
            "scores": values,
            "ranking": order_of(values),
            "shortened": shortened,
        }
    (score,) = scores
    row: dict[str, Any] = {"id": record.id}
    if isinstance(record, UnlabeledPair):
        row |= {"score_first": score.first, "score_second": score.second, "margin": score.margin}
    elif isinstance(record, Preference):
        chosen, rejected, sign = score.first, score.second, 1
        if not record.chosen_first:
            chosen, rejected, sign = rejected, chosen, -1
        row |= {"score_chosen": chosen, "score_rejected": rejected, "margin": sign * score.margin}
    return row | {"order_gap": score.order_gap, "shortened": shortened}


def _candidate_strengths(count: int, scores: list[PairScore]) -> list[float]:
    table = np.zeros((count, count), np.float32)
    for (i, j), score in zip(round_robin(count), scores, strict=True):
        table[i, j], table[j, i] = score.margin, -score.margin
    return strengths(table).tolist()


def _resume(out: Path, meta: dict[str, Any], records: Iterator[Record]) -> int:
    """Number of complete rows that `out` holds already; as many records are taken off the input."""
    if not out.exists() or out.stat().st_size == 0:
        return 0
    try:
        found = json.loads(_meta_path(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(
            f"{out} exists and nothing says how it was made ({_meta_path(out).name} is missing or damaged): "
            "give another output file, or --overwrite"
        ) from None
    if found != meta:
        lines = "\n  ".join(
            f"{key}: {found.get(key)!r} there, {meta.get(key)!r} now"
            for key in sorted({*found, *meta})
            if found.get(key) != meta.get(key)
        )
        raise DataError(
            f"{out} holds other scores:\n  {lines}\nGive another output file, or --overwrite"
        )
    count = 0
    with open(out, "r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break  # torn by an interruption
            record = next(records, None)
            name = None if record is None else record.id
            try:
                there = json.loads(line).get("id")
            except ValueError:
                there = None
            if there is None or there != name:
                raise DataError(
                    f"{out}, line {count + 1} is the score of {there!r}, the input has {name!r} there: the input has "
                    "changed. Give another output file, or --overwrite"
                )
            count += 1
            end += len(line)
        file.truncate(end)
    return count


def _append(file: IO[str], rows: list[dict[str, Any]]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.flush()
    os.fsync(file.fileno())


def _meta_path(out: Path) -> Path:
    return out.with_name(out.name + ".meta.json")
