"""Score the records of an evaluation, in memory or to a file from which an interrupted run resumes."""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.data.records import Candidates, Comparison
from gram_jax.evals.graded import RankedCandidates
from gram_jax.progress import ProgressBar, ProgressFactory, no_progress
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.results import RowTask, write_rows
from gram_jax.scoring.rows import (
    NumberedRecord,
    chosen_score,
    judge_identity,
    rank_records,
    row_start,
    score_records,
)
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

FORMAT = 2
WINDOW = 4096  # maximum number of pairs or rankings at a time


class OutputSink(NamedTuple):
    """Destination of scores: a JSON lines file, or None for memory. overwrite: start again, do not resume."""

    file: Path | None = None
    overwrite: bool = False
    progress: ProgressFactory = no_progress


def score_pairs(
    scorer: Scorer | ScalarRewardModel,
    model: str,
    source: str,
    records: Sequence[Comparison],
    sink: OutputSink,
) -> list[PairScore]:
    """The score of every labeled pair; its first response is the chosen one."""
    task = RowTask(partial(score_records, scorer), lambda record: 1, WINDOW)
    return [chosen_score(row) for row in _rows(scorer, model, source, records, sink, task, "pairs")]


def rank_graded(
    scorer: Scorer | ScalarRewardModel,
    model: str,
    source: str,
    records: Sequence[Candidates],
    sink: OutputSink,
) -> list[RankedCandidates]:
    """Rank the responses of every row.

    A Scorer compares all pairs in both orders. A ScalarRewardModel scores each response once."""
    rows_of = _rating_rows if isinstance(scorer, ScalarRewardModel) else _ranking_rows
    task = RowTask(partial(rows_of, scorer), lambda record: len(record.responses) ** 2, WINDOW)
    rows = _rows(scorer, model, source, records, sink, task, "prompts")
    return [
        RankedCandidates(
            record,
            np.array(row["strengths"], np.float32),
            np.array(row["logit_diffs"], np.float32),
            row["shortened"],
        )
        for record, row in zip(records, rows, strict=True)
    ]


def _rating_rows(
    rater: ScalarRewardModel, window: list[NumberedRecord], bar: ProgressBar
) -> list[dict[str, Any]]:
    rewards, shortened = rater.rewards_and_shortened(
        (r.prompt, text) for _, r in window for text in r.responses
    )
    ends = np.cumsum([len(record.responses) for _, record in window])[:-1]
    bar.update(len(window), units=len(window))
    return [
        _row(numbered, own - own.mean(), own[:, None] - own[None, :], bool(cut.any()))
        for numbered, own, cut in zip(
            window, np.split(rewards, ends), np.split(shortened, ends), strict=True
        )
    ]


def _ranking_rows(
    judge: Scorer, window: list[NumberedRecord], bar: ProgressBar
) -> list[dict[str, Any]]:
    rankings = rank_records(judge, window, RankingConfig("round_robin"), bar)
    return [
        _row(numbered, ranking.strengths, ranking.logit_diffs, ranking.shortened)
        for numbered, ranking in zip(window, rankings, strict=True)
    ]


def _row(
    numbered: NumberedRecord, strengths: np.ndarray, logit_diffs: np.ndarray, shortened: bool
) -> dict[str, Any]:
    return row_start(*numbered) | {
        "strengths": strengths.tolist(),
        "logit_diffs": [[None if np.isnan(x) else x for x in row] for row in logit_diffs.tolist()],
        "shortened": shortened,
    }


def _rows(
    scorer: Scorer | ScalarRewardModel,
    model: str,
    source: str,
    records: Sequence[Any],
    sink: OutputSink,
    task: RowTask,
    unit: str,
) -> list[dict[str, Any]]:
    """The row of every record. A file stores floats exactly, so its metrics equal those from memory."""
    label = Path(source).name
    if sink.file is None:
        with sink.progress(len(records), label=label, unit=unit) as bar:
            return task.rows(list(enumerate(records, 1)), bar)
    about = {"format": FORMAT, "source": source, "kind": f"evaluation of {unit}"}
    done = write_rows(
        sink.file,
        about | judge_identity(scorer, model),
        iter(list(enumerate(records, 1))),
        task,
        total=len(records),
        label=label,
        unit=unit,
        overwrite=sink.overwrite,
        progress=sink.progress,
    )
    if done.before:
        logger.info(
            f"{label}: {done.before:,} of {len(records):,} were scored before, {done.written:,} now"
        )
    with sink.file.open(encoding="utf-8") as lines:  # str.splitlines would also split at U+2028
        return [json.loads(line) for line in lines]
