"""How good a judge is on labeled pairs. The figures are functions of arrays and can be checked by hand."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gram_jax.data.records import Preference
from gram_jax.errors import DataError
from gram_jax.scoring.scorer import PairScore, Scorer

ECE_BINS = 15
Z95 = 1.959964


@dataclass(frozen=True)
class PairwiseReport:
    """A judge on n labeled pairs. All shares are of pairs, never of forward passes.

    accuracy: the chosen response has strictly more than half, both orders averaged; interval: Wilson's, 95 %.
    accuracy_chosen_first, accuracy_chosen_second: the same from the one order that shows the chosen one there.
    consistency: both orders name the same response. position_bias: mean P(first shown) - 0.5.
    ties: exactly half, counted as wrong. ece, brier: calibration of the averaged probability.
    margin: mean log-odds of the chosen response. shortened: did not fit the token budget.
    skipped_ties: pairs that the source itself calls a tie; not counted in n.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    accuracy_chosen_first: float
    accuracy_chosen_second: float
    consistency: float
    position_bias: float
    ties: float
    ece: float
    brier: float
    margin: float
    shortened: float
    skipped_ties: int
    by_source: dict[str, tuple[int, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """(what, figure) as a person reads them."""
        low, high = self.interval
        rows = [
            ("pairs", f"{self.n:,}"),
            ("accuracy", f"{self.accuracy:.3f}  (95 %: {low:.3f} to {high:.3f})"),
            (
                "accuracy, chosen shown first / second",
                f"{self.accuracy_chosen_first:.3f} / {self.accuracy_chosen_second:.3f}",
            ),
            ("consistency over both orders", f"{self.consistency:.3f}"),
            ("position bias, P(first shown) - 0.5", f"{self.position_bias:+.3f}"),
            ("ties", f"{self.ties:.3f}"),
            ("ECE / Brier", f"{self.ece:.3f} / {self.brier:.3f}"),
            ("mean margin (log-odds)", f"{self.margin:.3f}"),
            ("shortened", f"{self.shortened:.3f}"),
        ]
        if self.skipped_ties:
            rows.append(("ties in the source, left out", f"{self.skipped_ties:,}"))
        if len(self.by_source) > 1:
            rows += [
                (f"  {name} ({n:,})", f"{acc:.3f}") for name, (n, acc) in self.by_source.items()
            ]
        return rows


def evaluate_pairs(
    scorer: Scorer,
    records: Iterable[Preference],
    *,
    progress: Callable[[int], None] | None = None,
) -> PairwiseReport:
    """Score every pair in both orders and report. progress is called with the number of pairs just scored.

    The order in which a pair is first shown is the source's. Raises DataError where no labeled pair is left.
    """
    records = list(records)
    kept = [record for record in records if not record.tie]
    if not kept:
        raise DataError(f"no labeled pair to evaluate: {len(records)} records, all of them ties")
    comparisons = ((r.prompt, r.first, r.second) for r in kept)
    scores = list(scorer.stream(comparisons, progress=progress))
    return report_pairs(
        scores,
        chosen_first=[record.chosen_first for record in kept],
        sources=[record.source for record in kept],
        skipped_ties=len(records) - len(kept),
    )


def report_pairs(
    scores: Sequence[PairScore],
    *,
    chosen_first: Sequence[bool],
    sources: Sequence[str],
    skipped_ties: int = 0,
) -> PairwiseReport:
    """The report of scores whose right answers are known."""
    first, gap = (np.array([getattr(s, name) for s in scores]) for name in ("first", "order_gap"))
    second = np.array([s.second for s in scores])
    right_first = np.asarray(chosen_first, bool)
    p = np.where(right_first, first, second)  # P(chosen), both orders
    correct = p > np.where(right_first, second, first)
    # the first response, shown first and shown second
    shown_first, shown_second = first + gap / 2, first - gap / 2
    chosen_shown_first = np.where(right_first, shown_first, 1 - shown_second)
    chosen_shown_second = np.where(right_first, shown_second, 1 - shown_first)
    margin = np.array([s.margin for s in scores])
    groups: dict[str, tuple[int, float]] = {}
    for name in sorted(set(sources)):
        member = np.array([source == name for source in sources])
        groups[name or "(no source)"] = int(member.sum()), float(correct[member].mean())
    return PairwiseReport(
        n=len(scores),
        accuracy=float(correct.mean()),
        interval=wilson_interval(int(correct.sum()), len(scores)),
        accuracy_chosen_first=float((chosen_shown_first > 0.5).mean()),
        accuracy_chosen_second=float((chosen_shown_second > 0.5).mean()),
        consistency=float(((chosen_shown_first > 0.5) == (chosen_shown_second > 0.5)).mean()),
        position_bias=float(gap.mean() / 2),
        ties=float((first == second).mean()),
        ece=expected_calibration_error(p),
        brier=float(((1 - p) ** 2).mean()),
        margin=float(np.where(right_first, margin, -margin).mean()),
        shortened=float(np.mean([s.shortened for s in scores])),
        skipped_ties=skipped_ties,
        by_source=groups,
    )


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): honest for small n and near 0 and 1.

    >>> tuple(round(x, 3) for x in wilson_interval(8, 10))
    (0.49, 0.943)
    """
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def expected_calibration_error(p_chosen: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over 15 equal bins of confidence in [0.5, 1].

    p_chosen: P(the chosen response), [n]. Confidence is that of whichever response the judge prefers. A tie has
    confidence 0.5 and is right half of the time.

    >>> expected_calibration_error(np.array([0.75, 0.75, 0.75, 0.25]))
    0.0
    """
    confidence = np.maximum(p_chosen, 1 - p_chosen)
    right = np.where(p_chosen == 0.5, 0.5, (p_chosen > 0.5).astype(float))
    bins = np.minimum(((confidence - 0.5) * 2 * ECE_BINS).astype(int), ECE_BINS - 1)
    weight = np.bincount(bins, minlength=ECE_BINS)
    gap = np.bincount(bins, right - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / weight.sum())
