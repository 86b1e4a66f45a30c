"""95 % intervals of figures that are means over prompts and over seeds.

The variance is the sum of two parts. The prompts' part is the variance over prompts of the mean over seeds, with pairs
clustered by prompt. The seeds' part is the sample variance of the seeds' values divided by their number. The
interaction of seeds and prompts is in both parts, so intervals are slightly wide. Student's t has the degrees of
freedom of Satterthwaite (1946). With a single seed the second part is missing, and the interval says nothing about
other seeds.

The sum is an approximation. In simulations at least 95 % of the intervals contain the true value if the seeds' part is
small. If both parts are equal, 93 % do with two seeds, 94 % with three, 95 % with five; in the worst case, a seeds'
part 8 times as large, 87 %, 92 % and 94 % (tests/test_claims.py has such simulations).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    by_seed: the value of each seed, empty for a judge without training. p: two-sided, of a figure that is truly 0.
    """

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float]
    p: float = float("nan")

    def text(self, sign: bool = False) -> str:
        """The figure and its interval as text."""
        form = "{:+.3f} ({:+.3f} to {:+.3f})" if sign else "{:.3f} ({:.3f} to {:.3f})"
        return form.format(self.value, self.low, self.high)


@dataclass(frozen=True)
class SetFigure:
    """Of one set: the value of each seed, [S], the variance of their mean over prompts, and the number of prompts."""

    by_seed: np.ndarray
    variance: float
    prompts: int


def mean_over_pairs(values: np.ndarray, weights: np.ndarray, cluster: np.ndarray) -> SetFigure:
    """Weighted mean. values: [S, n], NaN for missing ones; weights, cluster: weight and prompt of each pair, [n]."""
    known = ~np.isnan(values) * weights
    sums, counts = (_by_prompt(x, cluster) for x in (known * np.nan_to_num(values), known))
    whole = counts.sum(1, keepdims=True)
    each = sums.sum(1, keepdims=True) / whole
    # Contribution of a prompt to the error of a ratio of sums, to first order (Cochran 1977, section 6.3).
    moved = ((sums - each * counts) / whole).mean(0)
    prompts = int(np.sum(counts.sum(0) > 0))
    # The variance over prompts is unknown for a single prompt.
    variance = prompts / (prompts - 1) * float(moved @ moved) if prompts > 1 else np.inf
    return SetFigure(each[:, 0], variance, prompts)


def jackknifed(
    values: np.ndarray, cluster: np.ndarray, figure: Callable[[np.ndarray], float]
) -> SetFigure:
    """Jackknife over prompts, for a figure that is not a mean over pairs. values: [S, n]."""
    prompts = int(cluster.max()) + 1
    by_seed = np.array([figure(row) for row in values])
    if prompts < 2:
        return SetFigure(by_seed, np.inf, prompts)
    left = [np.mean([figure(row[cluster != c]) for row in values]) for c in range(prompts)]
    return SetFigure(by_seed, (prompts - 1) * float(np.var(left)), prompts)


def estimate(
    sets: Sequence[SetFigure], seeds: Sequence[int], bounds: tuple[float, float]
) -> Estimate:
    """The mean over sets and seeds. bounds: limits of the figure.

    seeds: those of SetFigure.by_seed; empty for a figure that does not depend on the seed.
    """
    by_seed = np.mean([one.by_seed for one in sets], axis=0)
    parts = [(one.variance / len(sets) ** 2, one.prompts - 1) for one in sets]
    if len(by_seed) > 1:
        parts.append((float(np.var(by_seed, ddof=1)) / len(by_seed), len(by_seed) - 1))
    value = float(by_seed.mean())
    error, freedom = _standard_error(parts)
    half = float(t.ppf((1 + LEVEL) / 2, freedom) * error) if 0 < error < np.inf else error
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    named = dict(zip(seeds, by_seed.tolist(), strict=True)) if seeds else {}
    p = 2 * float(t.sf(abs(value) / error, freedom)) if 0 < error < np.inf else float("nan")
    return Estimate(value, low, high, named, p)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm (1979): the family-wise error rate is at most that of the largest one accepted.

    >>> [round(x, 6) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    scaled = [(len(p) - rank) * p[at] for rank, at in enumerate(order)]
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def _standard_error(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """(standard error, its degrees of freedom). parts: variances to add, with their degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if variance == 0 or np.isinf(variance):
        return float(variance), np.inf
    return float(np.sqrt(variance)), variance**2 / sum(part**2 / of for part, of in parts)


def _by_prompt(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Sum over the pairs of each prompt: [S, n] to [S, C]."""
    return np.array([np.bincount(cluster, row, minlength=cluster.max() + 1) for row in values])
