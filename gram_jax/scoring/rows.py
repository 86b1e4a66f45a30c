"""The rows that score files, evaluations and attack results hold: one for each record, in the order of the records."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_jax.data.comparison import Candidates, Comparison, Record
from gram_jax.progress import ProgressBar
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import Ranking
from gram_jax.scoring.fingerprint import weights_fingerprint
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer

NumberedRecord = tuple[int, Any]  # number of the row in the source, from 1, and the record


def judge_identity(scorer: Scorer | ScalarRewardModel, model: str) -> dict[str, Any]:
    """What decides a score besides the texts, for the metadata of a file of results."""
    return {
        "model": model,
        "weights": weights_fingerprint(scorer.params),
        "judge": scorer.spec.hash,
        "compute_dtype": scorer.execution.compute_dtype,
    }


def score_records(
    scorer: Scorer | ScalarRewardModel, records: Sequence[NumberedRecord], bar: ProgressBar
) -> list[dict[str, Any]]:
    """Score pairs. A row has id, row and source of its record and the columns of `score_columns`."""
    scores = scorer.stream(
        ((record.prompt, *record.best_first) for _, record in records),
        progress=lambda count: bar.update(count, units=count),
    )
    return [
        row_start(number, record) | score_columns(record, score)
        for (number, record), score in zip(records, scores, strict=True)
    ]


def rank_records(
    scorer: Scorer, records: Sequence[NumberedRecord], config: RankingConfig, bar: ProgressBar
) -> list[Ranking]:
    """Rank the responses of every record."""
    rankings = scorer.rank_many(
        ((record.prompt, record.responses) for _, record in records),
        config,
        progress=lambda count: bar.update(count, units=count),
    )
    return list(rankings)


def row_start(number: int, record: Record) -> dict[str, Any]:
    """The columns by which a row is found again."""
    return {"id": record.id, "row": number, "source": record.source}


def score_columns(record: Comparison, score: PairScore) -> dict[str, Any]:
    """The columns of a score: as chosen and rejected if one is preferred, else as first and second.

    score: of the responses in the order of `record.best_first`.
    """
    names = ("chosen", "rejected") if record.has_preference else ("first", "second")
    row: dict[str, Any] = {f"score_{names[0]}": score.first, f"score_{names[1]}": score.second}
    if record.label == "tie":
        row["tie"] = True
    return row | {
        "margin": score.margin,
        "position_bias": score.position_bias,
        "shortened": score.shortened,
    }


def chosen_score(row: dict[str, Any]) -> PairScore:
    """The score of a labeled pair's row, with the chosen response as the first."""
    return PairScore(
        row["score_chosen"],
        row["score_rejected"],
        row["margin"],
        row["position_bias"],
        row["shortened"],
    )


def ranking_row(number: int, record: Candidates, ranking: Ranking) -> dict[str, Any]:
    """The row of a ranking: its order, strengths, and figures."""
    row = row_start(number, record)
    row |= {"ranking": ranking.order, "scores": ranking.strengths.tolist()}
    if ranking.errors is not None:
        row["errors"] = [float(x) if np.isfinite(x) else None for x in ranking.errors]
    return row | {
        "ties": ranking.ties,
        "cycles": ranking.cycles,
        "comparisons": ranking.comparisons,
        "shortened": ranking.shortened,
    }
