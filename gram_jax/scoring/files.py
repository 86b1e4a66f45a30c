"""`gram-jax score` and `gram-jax rank`: a file of records in, a file of scores or rankings out."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gram_jax.data.records import Kind, RecordStream, source_kind
from gram_jax.data.sources import count_rows, parse_source
from gram_jax.errors import DataError
from gram_jax.progress import ProgressBar, ProgressFactory, no_progress
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring.results import RowTask, write_rows
from gram_jax.scoring.rows import (
    NumberedRecord,
    judge_identity,
    rank_records,
    ranking_row,
    score_records,
)
from gram_jax.scoring.scorer import Scorer

FORMAT = 4


@dataclass(frozen=True)
class FileReport:
    """Rows written now, rows found in the file, rows with shortened texts, and rows left out by reason."""

    written: int
    before: int
    shortened: int
    dropped: dict[str, int]

    def to_text(self) -> str:
        """For the command's last line."""
        dropped = "".join(f", {count:,} left out ({why})" for why, count in self.dropped.items())
        return (
            f"{self.written:,} rows written, {self.before:,} were there, {self.shortened:,} "
            f"shortened{dropped}"
        )


def check_files(
    source: str, out: str | Path, *, schema: str = "auto", ranked: bool = False
) -> Kind:
    """What `source` is read as, for scores or to be ranked.

    Refuses an unreadable input and an impossible output before a model is loaded.
    """
    path, out = Path(parse_source(source).path).expanduser(), Path(out)
    if path.exists() and out.exists() and path.samefile(out):
        raise DataError(f"{out} is the input itself: give the results a file of their own")
    if path.is_dir() and path.resolve() in out.resolve().parents:
        raise DataError(
            f"{out} lies in the folder {path} that is read: put the results somewhere else"
        )
    if out.is_dir():
        raise DataError(f"{out} is a folder: expected the name of a file for the results")
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")
    kind = source_kind(source, schema=schema)
    if kind == "candidates" and not ranked:
        raise DataError(
            f"{path} holds lists of candidates: rank them, gram-jax rank {source} {out} --model ..."
        )
    return "candidates" if ranked else kind


def score_file(
    scorer: Scorer,
    model: str,
    source: str,
    out: str | Path,
    *,
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    overwrite: bool = False,
    progress: ProgressFactory = no_progress,
) -> FileReport:
    """Score every pair of `source` into `out`, or resume after the rows that an interrupted run left there.

    A labeled pair gives score_chosen and score_rejected, an unlabeled one or a tie score_first and score_second (in the
    order of the source). Each row has the number of its row in the input, from 1, and the source that the input names.
    Raises DataError if `out` holds something else or cannot be written; its complete rows are kept.
    """
    return _write_file(
        scorer,
        model,
        source,
        Path(out),
        RowTask(partial(score_records, scorer), lambda record: 1, scorer.window),
        kind=check_files(source, out, schema=schema),
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        progress=progress,
        label="scored",
        unit="pairs",
    )


def rank_file(
    scorer: Scorer,
    model: str,
    source: str,
    out: str | Path,
    config: RankingConfig,
    *,
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    overwrite: bool = False,
    progress: ProgressFactory = no_progress,
) -> FileReport:
    """Rank the candidates of every row of `source` into `out`; a pair is two candidates. Else as `score_file`.

    A row has `ranking`, the indices of the responses, best first, `scores`, their strengths in log-odds, `errors` if
    the method gives them, and ties, cycles and comparisons as in a Ranking.
    """

    def rows(window: list[NumberedRecord], bar: ProgressBar) -> list[dict[str, Any]]:
        rankings = rank_records(scorer, window, config, bar)
        return [
            ranking_row(number, record, ranking)
            for (number, record), ranking in zip(window, rankings, strict=True)
        ]

    return _write_file(
        scorer,
        model,
        source,
        Path(out),
        RowTask(rows, lambda record: len(record.responses), scorer.window),
        kind=check_files(source, out, schema=schema, ranked=True),
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        progress=progress,
        label="ranked",
        unit="prompts",
        ranking=asdict(config),
    )


def _write_file(
    scorer: Scorer,
    model: str,
    source: str,
    out: Path,
    task: RowTask,
    *,
    kind: Kind,
    schema: str,
    on_bad: Literal["error", "skip"],
    overwrite: bool,
    progress: ProgressFactory,
    label: str,
    unit: str,
    **metadata: Any,
) -> FileReport:
    about = {"format": FORMAT, "source": str(source), "kind": kind}
    stream = RecordStream(source, kind, schema=schema, on_bad=on_bad, keep_identical=True)
    summary = write_rows(
        out,
        about | judge_identity(scorer, model) | metadata,
        ((stream.row, record) for record in stream),
        task,
        total=count_rows(source),
        label=label,
        unit=unit,
        overwrite=overwrite,
        progress=progress,
    )
    return FileReport(*summary, dropped=dict(stream.report().dropped))
