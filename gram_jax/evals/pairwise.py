"""Metrics of a judge on labeled pairs."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gram_jax.data.records import Comparison
from gram_jax.errors import DataError
from gram_jax.evals.calibration import (
    brier,
    expected_calibration_error,
    selective_accuracy,
)
from gram_jax.evals.intervals import clustered_interval, factorize, subsets_of
from gram_jax.evals.lengths import length_slope
from gram_jax.evals.results import PairMetrics
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.text_scorer import TextScorer

# A probability within this distance of one half is a tie: scores are float32.
RESOLUTION = 1e-7


class PairVerdicts(NamedTuple):
    """The scores of n labeled pairs.

    p, p_rejected: f64 [n], P(chosen) and P(rejected), averaged over both orders. margin: f64 [n], log-odds of the
    chosen response. position_bias: f64 [n], P(chosen) if shown first minus if shown second. shortened: bool [n].
    lengths: f64 [n, 2], of the chosen and the rejected response. cluster: i [n], the prompt, 0 .. C-1. subset: [n].
    """

    p: np.ndarray
    p_rejected: np.ndarray
    margin: np.ndarray
    position_bias: np.ndarray
    shortened: np.ndarray
    lengths: np.ndarray
    cluster: np.ndarray
    subset: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool [n]: P(chosen) > P(rejected)."""
        return self.p > self.p_rejected

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """The preferred response (`side`) if the chosen one is shown first, and if it is shown second."""
        return side(self.p + self.position_bias / 2), side(self.p - self.position_bias / 2)

    @property
    def right_by_votes(self) -> np.ndarray:
        """bool [n]: the chosen response is preferred in one order, and the rejected one not in the other."""
        first, second = self.sides
        return first + second > 0


def evaluate_pairs(
    scorer: TextScorer,
    records: Iterable[Comparison],
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> PairMetrics:
    """Score labeled pairs in both orders and compute accuracy, interval, calibration and position bias.

    progress: called with the number of newly scored pairs. Raises DataError if there is no labeled pair.

    >>> from gram_jax import Scorer
    >>> from gram_jax.judge.messages import as_prompt
    >>> pairs = [Comparison(as_prompt(f"{i} + 1?"), str(i + 1), str(i), label=0) for i in range(4)]
    >>> report = evaluate_pairs(Scorer.load("tiny-random"), pairs)
    >>> report.n, 0 <= report.accuracy <= 1
    (4, True)
    """
    kept, ties = labeled(records)
    pairs = ((record.prompt, record.chosen, record.rejected) for record in kept)
    scores = list(scorer.stream(pairs, progress=progress))
    return report_pairs(verdicts_on(kept, scores), skipped_ties=ties)


def labeled(records: Iterable[Comparison]) -> tuple[list[Comparison], int]:
    """The records with a preference, and the number of records without one. Raises DataError if none has one."""
    records = list(records)
    kept = [record for record in records if record.has_preference]
    if not kept:
        found = f"{len(records)} records, all ties or without a label" if records else "no records"
        raise DataError(f"no labeled pair to evaluate: {found}")
    return kept, len(records) - len(kept)


def verdicts_on(records: Sequence[Comparison], scores: Sequence[PairScore]) -> PairVerdicts:
    """The verdicts of labeled records from their scores; the first response of each score is the chosen one."""
    return PairVerdicts(
        *map(np.array, zip(*scores, strict=True)),
        lengths=np.array([(len(r.chosen), len(r.rejected)) for r in records], float),
        cluster=factorize([record.prompt for record in records]),
        subset=subsets_of([record.source for record in records]),
    )


def report_pairs(verdicts: PairVerdicts, *, skipped_ties: int) -> PairMetrics:
    """The metrics of these verdicts."""
    correct, (when_first, when_second) = verdicts.correct, verdicts.sides
    longer = verdicts.lengths[:, 0] - verdicts.lengths[:, 1]
    names, at, sizes = np.unique(verdicts.subset, return_inverse=True, return_counts=True)
    return PairMetrics(
        n=len(correct),
        prompts=int(verdicts.cluster.max()) + 1,
        accuracy=float(correct.mean()),
        interval=clustered_interval(correct, verdicts.cluster),
        accuracy_chosen_first=float((when_first > 0).mean()),
        accuracy_chosen_second=float((when_second > 0).mean()),
        accuracy_longer=_mean(correct[longer > 0]),
        accuracy_shorter=_mean(correct[longer < 0]),
        length_slope=length_slope(verdicts.margin, verdicts.lengths),
        consistency=float((when_first == when_second).mean()),
        position_bias=float(verdicts.position_bias.mean()),
        ties=float((verdicts.p == verdicts.p_rejected).mean()),
        ece=expected_calibration_error(verdicts.p),
        brier=brier(verdicts.p),
        selective_accuracy=selective_accuracy(verdicts.p, 0.5),
        margin=float(verdicts.margin.mean()),
        shortened=float(verdicts.shortened.mean()),
        skipped_ties=skipped_ties,
        by_source={
            str(name): (int(n), float(right / n))
            for name, n, right in zip(names, sizes, np.bincount(at, correct), strict=True)
        },
    )


def side(p: np.ndarray) -> np.ndarray:
    """1 if a probability is above one half, -1 if it is below, 0 if it equals one half in float32.

    >>> side(np.array([0.9, 0.5 + 3e-8, 0.1])).tolist()
    [1.0, 0.0, -1.0]
    """
    return np.where(np.abs(p - 0.5) <= RESOLUTION, 0.0, np.sign(p - 0.5))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
