"""How good a judge is on labeled pairs. The figures are functions of arrays and can be checked by hand."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gram_jax.data.records import Preference
from gram_jax.errors import DataError
from gram_jax.evals.averages import official_averages
from gram_jax.scoring.rater import Rater
from gram_jax.scoring.scorer import PairScore, Scorer

ECE_BINS = 15
Z95 = 1.959964
# A probability this close to one half names neither response: scores are float32.
RESOLUTION = 1e-7


@dataclass(frozen=True)
class PairwiseReport:
    """A judge on n labeled pairs. All shares are of pairs, never of forward passes.

    accuracy: the chosen response has strictly more than half, both orders averaged; interval: 95 %, Wilson's, wider
    where pairs share their prompt. prompts: how many different ones there are.
    accuracy_chosen_first, accuracy_chosen_second: the same from the one order that shows the chosen one there.
    accuracy_longer, accuracy_shorter: among the pairs whose chosen response is the longer (shorter) one, in
    characters; None without such pairs. length_slope: log-odds that a response gains when it is twice as long as the
    other, by least squares through zero: far from 0, the judge goes by length, or length goes with quality here.
    consistency: both orders name the same response. position_bias: mean P(first shown) - 0.5.
    ties: exactly half, counted as wrong. ece, brier: calibration of the averaged probability.
    margin: mean log-odds of the chosen response. shortened: share that did not fit the token budget.
    skipped_ties: pairs that the source itself calls a tie; not counted in n.
    by_source: (pairs, accuracy) of each source or subset.
    """

    n: int
    prompts: int
    accuracy: float
    interval: tuple[float, float]
    accuracy_chosen_first: float
    accuracy_chosen_second: float
    accuracy_longer: float | None
    accuracy_shorter: float | None
    length_slope: float
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
            ("pairs (prompts)", f"{self.n:,} ({self.prompts:,})"),
            ("accuracy", f"{self.accuracy:.3f}  (95 %: {low:.3f} to {high:.3f})"),
            (
                "accuracy, chosen shown first / second",
                f"{self.accuracy_chosen_first:.3f} / {self.accuracy_chosen_second:.3f}",
            ),
            (
                "accuracy, chosen is longer / shorter",
                f"{_figure(self.accuracy_longer)} / {_figure(self.accuracy_shorter)}",
            ),
            ("length slope, log-odds for twice the length", f"{self.length_slope:+.3f}"),
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
            averages = official_averages(self.by_source)
            rows += [(name, f"{share:.3f}") for name, share in averages.items()]
        return rows


def evaluate_pairs(
    scorer: Scorer | Rater,
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
        found = f"{len(records)} records, all of them ties" if records else "no records"
        raise DataError(f"no labeled pair to evaluate: {found}")
    comparisons = ((r.prompt, r.first, r.second) for r in kept)
    return report_pairs(
        list(scorer.stream(comparisons, progress=progress)),
        chosen_first=[record.chosen_first for record in kept],
        prompts=[record.prompt for record in kept],
        lengths=[(len(record.first), len(record.second)) for record in kept],
        sources=[record.source for record in kept],
        skipped_ties=len(records) - len(kept),
    )


def report_pairs(
    scores: Sequence[PairScore],
    *,
    chosen_first: Sequence[bool],
    prompts: Sequence[Hashable],
    lengths: Sequence[tuple[int, int]],
    sources: Sequence[str],
    skipped_ties: int,
) -> PairwiseReport:
    """The report of scores whose right answers are known; lengths: of the first and of the second response."""
    columns = PairScore(*(np.array(column) for column in zip(*scores, strict=True)))
    right_first = np.asarray(chosen_first, bool)
    p = np.where(right_first, columns.first, columns.second)  # P(chosen), both orders
    correct = p > np.where(right_first, columns.second, columns.first)
    margin = np.where(right_first, columns.margin, -columns.margin)
    # The gap is the same for both responses: what the chosen one has when it is shown first, and second.
    when_first = side(p + columns.order_gap / 2)
    when_second = side(p - columns.order_gap / 2)
    sizes = np.array(lengths, float)
    longer = np.where(right_first, sizes[:, 0] - sizes[:, 1], sizes[:, 1] - sizes[:, 0])
    cluster = number(prompts)
    names = np.array([name or "(no source)" for name in sources])
    return PairwiseReport(
        n=len(scores),
        prompts=int(cluster.max()) + 1,
        accuracy=float(correct.mean()),
        interval=clustered_interval(correct, cluster),
        accuracy_chosen_first=float((when_first > 0).mean()),
        accuracy_chosen_second=float((when_second > 0).mean()),
        accuracy_longer=_mean(correct[longer > 0]),
        accuracy_shorter=_mean(correct[longer < 0]),
        length_slope=length_slope(columns.margin, sizes),
        consistency=float((when_first == when_second).mean()),
        position_bias=float(columns.order_gap.mean() / 2),
        ties=float((columns.first == columns.second).mean()),
        ece=expected_calibration_error(p),
        brier=float(((1 - p) ** 2).mean()),
        margin=float(margin.mean()),
        shortened=float(columns.shortened.mean()),
        skipped_ties=skipped_ties,
        by_source={
            str(name): (int((names == name).sum()), float(correct[names == name].mean()))
            for name in np.unique(names)
        },
    )


def number(values: Sequence[Hashable]) -> np.ndarray:
    """i [n]: which of the different values each one is, in the order of first appearance.

    >>> number(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values])


def side(p: np.ndarray) -> np.ndarray:
    """1 where a probability is above one half, -1 where it is below, 0 where float32 cannot tell.

    >>> side(np.array([0.9, 0.5 + 3e-8, 0.1])).tolist()
    [1.0, 0.0, -1.0]
    """
    return np.where(np.abs(p - 0.5) <= RESOLUTION, 0.0, np.sign(p - 0.5))


def length_slope(margin: np.ndarray, lengths: np.ndarray) -> float:
    """Log-odds gained by twice the other's length: least squares through zero; 0 where all lengths are equal.

    margin: log-odds of the first response, [n]; lengths: of the first and the second, [n, 2].

    >>> length_slope(np.array([3.0, -3.0]), np.array([[7, 1], [0, 3]]))
    1.5
    """
    doublings = np.diff(np.log2(lengths[:, ::-1] + 1), axis=1)[:, 0]  # + 1: a response may be empty
    return float((margin * doublings).sum() / max((doublings**2).sum(), 1e-9))


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): honest for small n and near 0 and 1.

    >>> tuple(round(x, 3) for x in wilson_interval(8, 10))
    (0.49, 0.943)
    """
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def clustered_interval(correct: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """Wilson's interval where pairs of one prompt tend to be right or wrong together.

    correct: bool [n]; cluster: i [n], the prompt of each pair, 0 .. C-1.
    n is divided by the design effect (Kish 1965): the variance of the mean over prompts by that of independent pairs.
    Where nothing varies, a prompt counts once.

    >>> independent = clustered_interval(np.arange(40) % 2 == 0, np.arange(40))
    >>> alike = clustered_interval(np.repeat(np.arange(10) % 2 == 0, 4), np.repeat(np.arange(10), 4))
    >>> independent == wilson_interval(20, 40), alike == wilson_interval(5, 10)
    (True, True)
    """
    n, clusters, share = len(correct), int(cluster.max()) + 1, float(correct.mean())
    effect = n / clusters
    if clusters > 1 and 0 < share < 1:
        sums = np.bincount(cluster, correct - share, minlength=clusters)
        effect = max(1.0, float((sums**2).sum()) / (share * (1 - share) * n))
    return wilson_interval(share * n / effect, n / effect)


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


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
