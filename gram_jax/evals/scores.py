"""Score the records of an evaluation, in memory or to a file from which an interrupted run resumes."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.data.records import Candidates, Comparison
from gram_jax.evals.graded import RankedCandidates
from gram_jax.progress import ProgressBar
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.parts import write_results
from gram_jax.scoring.results import OutputSink, RowTask, WriteSummary, list_source, read_rows
from gram_jax.scoring.rows import (
    NumberedRecord,
    chosen_score,
    computed_by,
    judge_identity,
    rank_records,
    row_start,
    score_records,
)
from gram_jax.scoring.text_scorer import TextScorer

logger = logging.getLogger(__name__)

FORMAT = 3
WINDOW = 4096  # maximum number of pairs or rankings at a time


def score_pairs(
    scorer: TextScorer,
    model: str,
    source: str,
    records: Sequence[Comparison],
    sink: OutputSink,
) -> list[PairScore]:
    """The score of every labeled pair; its first response is the chosen one."""
    rows = _rows(scorer, model, source, records, sink, ranked=False)
    return [chosen_score(row) for row in rows]


def rank_graded(
    scorer: TextScorer,
    model: str,
    source: str,
    records: Sequence[Candidates],
    sink: OutputSink,
) -> list[RankedCandidates]:
    """Rank the responses of every row: all pairs in both orders, or the rewards of a ScalarRewardModel."""
    rows = _rows(scorer, model, source, records, sink, ranked=True)
    return [
        RankedCandidates(
            record,
            np.array(row["strengths"], np.float32),
            np.array(row["logit_diffs"], np.float32),
            row["shortened"],
        )
        for record, row in zip(records, rows, strict=True)
    ]


def write_scores(
    scorer: TextScorer,
    model: str,
    source: str,
    records: Sequence[Any],
    sink: OutputSink,
    *,
    ranked: bool,
) -> WriteSummary:
    """Write the row of every record, or of those of a shard, for `score_pairs` or `rank_graded`."""
    unit = "prompts" if ranked else "pairs"
    about = {"format": FORMAT, "source": source, "kind": f"evaluation of {unit}"}
    return write_results(
        sink,
        about | judge_identity(scorer, model),
        list_source(list(enumerate(records, 1))),
        _task(scorer, ranked)._replace(label=Path(source).name, unit=unit),
        partial(computed_by, scorer),
    )


def _task(scorer: TextScorer, ranked: bool) -> RowTask:
    if ranked:
        rows = partial(_ranking_rows, scorer)
        return RowTask(rows, lambda record: len(record.responses) ** 2, WINDOW)
    return RowTask(partial(score_records, scorer), lambda record: 1, WINDOW)


def _ranking_rows(
    judge: TextScorer, window: list[NumberedRecord], bar: ProgressBar
) -> list[dict[str, Any]]:
    rankings = rank_records(judge, window, RankingConfig("round_robin"), bar)
    return [
        row_start(*numbered)
        | {
            "strengths": ranking.strengths.tolist(),
            "logit_diffs": [
                [None if np.isnan(x) else x for x in row] for row in ranking.logit_diffs.tolist()
            ],
            "shortened": ranking.shortened,
        }
        for numbered, ranking in zip(window, rankings, strict=True)
    ]


def _rows(
    scorer: TextScorer,
    model: str,
    source: str,
    records: Sequence[Any],
    sink: OutputSink,
    *,
    ranked: bool,
) -> list[dict[str, Any]]:
    """The row of every record. A file stores floats exactly, so its metrics equal those from memory."""
    if sink.file is None:
        unit = "prompts" if ranked else "pairs"
        with sink.progress(len(records), label=Path(source).name, unit=unit) as bar:
            return _task(scorer, ranked).rows(list(enumerate(records, 1)), bar)
    done = write_scores(scorer, model, source, records, sink, ranked=ranked)
    if done.before:
        logger.info(
            f"{source}: {done.before:,} of {len(records):,} were scored before, {done.written:,} now"
        )
    return list(read_rows(Path(sink.file)))
