"""Rows of score files, evaluations and attack results: one for each record, in the order of the records."""

from collections.abc import Sequence
from typing import Any

import jax

from gram_jax.data.records import Comparison, Record
from gram_jax.progress import ProgressBar
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import Ranking
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.text_scorer import TextScorer
from gram_jax.version import installed_version

NumberedRecord = tuple[int, Any]  # number of the row in the source, from 1, and the record


def judge_identity(scorer: TextScorer, model: str) -> dict[str, Any]:
    """All that a score depends on apart from the texts, for the metadata of a file of results."""
    identity = scorer.identity
    return {
        "model": model,
        "weights": identity.fingerprint,
        "judge": scorer.spec.hash,
        "compute_dtype": identity.compute_dtype,
    } | scorer.settings


def computed_by(scorer: TextScorer) -> dict[str, str]:
    """Versions, program and kind of device, on which the last bits of a score depend."""
    identity = scorer.identity
    return {
        "gram_jax": installed_version(),
        "jax": jax.__version__,
        "device": identity.device,
        "program": identity.program,
    }


def row_start(number: int, record: Record) -> dict[str, Any]:
    """The columns that identify a row."""
    return {"id": record.id, "row": number, "source": record.source}


def score_records(
    scorer: TextScorer, records: Sequence[NumberedRecord], bar: ProgressBar
) -> list[dict[str, Any]]:
    """Score pairs: score_chosen and score_rejected if one is preferred, else score_first and score_second."""
    scores = scorer.stream(
        ((record.prompt, *record.best_first) for _, record in records),
        progress=lambda count: bar.update(count, units=count),
    )
    return [
        row_start(number, record) | _columns(record, score)
        for (number, record), score in zip(records, scores, strict=True)
    ]


def _columns(record: Comparison, score: PairScore) -> dict[str, Any]:
    first, second = ("chosen", "rejected") if record.has_preference else ("first", "second")
    figures = score._asdict()
    row = {f"score_{first}": figures.pop("first"), f"score_{second}": figures.pop("second")}
    return row | ({"tie": True} if record.label == "tie" else {}) | figures


def chosen_score(row: dict[str, Any]) -> PairScore:
    """The score of a labeled pair's row, with the chosen response as the first."""
    figures = {name: row[name] for name in PairScore._fields[2:]}
    return PairScore(row["score_chosen"], row["score_rejected"], **figures)


def rank_records(
    scorer: TextScorer, records: Sequence[NumberedRecord], config: RankingConfig, bar: ProgressBar
) -> list[Ranking]:
    """Rank the responses of every record."""
    rankings = scorer.rank_many(
        ((record.prompt, record.responses) for _, record in records),
        config,
        progress=lambda count: bar.update(count, units=count),
    )
    return list(rankings)
