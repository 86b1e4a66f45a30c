"""`gram-jax score` and `gram-jax rank`: a file of records in, a file of scores or rankings out."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.data.mapping import ColumnMap
from gram_jax.data.reading import (
    Kind,
    OnBad,
    RecordStream,
    expected_records,
    log_notes,
    source_kind,
)
from gram_jax.data.sources import contents_of_source, parse_source
from gram_jax.errors import DataError
from gram_jax.files import expand_user
from gram_jax.progress import ProgressBar
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.remote import check_writable, is_remote
from gram_jax.scoring.parts import write_results
from gram_jax.scoring.results import OutputSink, RowSource, RowTask, Wanted, WriteSummary
from gram_jax.scoring.rows import (
    NumberedRecord,
    computed_by,
    judge_identity,
    rank_records,
    row_start,
    score_records,
)
from gram_jax.scoring.text_scorer import TextScorer

FORMAT = 5
# Windows of a scorer between two writes: it tokenizes a window while it scores the one before.
WINDOWS = 8


def check_files(
    source: str,
    out: str | Path,
    *,
    schema: str = "auto",
    map: ColumnMap | None = None,
    ranked: bool = False,
) -> Kind:
    """Check that `source` can be read for scores or rankings into `out`; returns the kind of its records.

    Raises DataError for an unreadable input and an impossible output, before a model is loaded.
    """
    path = expand_user(parse_source(source).path, error=DataError)
    if is_remote(out):
        check_writable(str(out))
    else:
        _check_output(path, Path(out))
    if Path(out).suffix.lower() not in (".jsonl", ".ndjson", ""):
        raise DataError(
            f"{out}: results are JSON lines; expected a name that ends in .jsonl, found {Path(out).suffix}"
        )
    kind = source_kind(source, schema=schema, map=map)
    if kind == "candidates" and not ranked:
        raise DataError(
            f"{path} holds lists of candidates: rank them, gram-jax rank {source} {out} --model ..."
        )
    return "candidates" if ranked else kind


def _check_output(path: Path, out: Path) -> None:
    if path.exists() and out.exists() and path.samefile(out):
        raise DataError(f"{out} is the input itself: give another file for the results")
    if path.is_dir() and path.resolve() in out.resolve().parents:
        raise DataError(f"{out} is inside the folder {path} that is read: give a file outside it")
    if out.is_dir():
        raise DataError(f"{out} is a folder: expected the name of a file for the results")
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")


def score_file(
    scorer: TextScorer,
    model: str,
    source: str,
    sink: OutputSink,
    *,
    ranking: RankingConfig | None = None,
    schema: str = "auto",
    on_bad: OnBad = "error",
    map: ColumnMap | None = None,
) -> WriteSummary:
    """Score every pair of `source` into a file, or rank every row, or resume after the rows of an interrupted run.

    A row has the id, the number of its row in the input, from 1, the source that the input names, and the columns of
    `score_records`. ranking: rank the candidates of every row instead; a pair is two candidates. A row then has
    `ranking`, the indices of the responses, best first, `scores`, their strengths in log-odds, `errors` if the method
    gives them, and ties, cycles and comparisons as in a Ranking.

    Raises DataError if the file holds something else or cannot be written; its complete rows are kept.
    """
    kind = check_files(source, str(sink.file), schema=schema, map=map, ranked=ranking is not None)
    stream = RecordStream(source, kind, schema=schema, on_bad=on_bad, map=map, keep_identical=True)
    metadata = {"format": FORMAT, "source": str(source), "kind": kind}
    metadata |= judge_identity(scorer, model)
    if map:
        metadata |= {"map": dict(map)}
    if ranking is None:
        rows, label, unit = partial(score_records, scorer), "scored", "pairs"
    else:
        rows, label, unit = partial(_ranking_rows, scorer, ranking), "ranked", "prompts"
        metadata |= {"ranking": asdict(ranking)}

    def records(wanted: Wanted, dropped: Callable[[int, str], None]) -> Iterator[NumberedRecord]:
        stream.wanted, stream.on_drop = wanted, dropped
        return ((stream.row, record) for record in stream)

    read = RowSource(
        records,
        lambda: stream.row,
        expected_records(source, kind, schema=schema, map=map),
        partial(contents_of_source, source),
    )
    summary = write_results(
        sink,
        metadata,
        read,
        RowTask(
            rows,
            lambda record: len(record.responses) if ranking else 1,
            WINDOWS * scorer.window,
            label,
            unit,
        ),
        partial(computed_by, scorer),
    )
    log_notes(stream.spec.path, stream.report())
    return summary


def _ranking_rows(
    scorer: TextScorer, config: RankingConfig, window: list[NumberedRecord], bar: ProgressBar
) -> list[dict[str, Any]]:
    rows = []
    rankings = rank_records(scorer, window, config, bar)
    for (number, record), ranking in zip(window, rankings, strict=True):
        row = row_start(number, record)
        row |= {"ranking": ranking.order, "scores": ranking.strengths.tolist()}
        if ranking.errors is not None:
            row["errors"] = [float(x) if np.isfinite(x) else None for x in ranking.errors]
        names = ("ties", "cycles", "comparisons", "shortened")
        rows.append(row | {name: getattr(ranking, name) for name in names})
    return rows
