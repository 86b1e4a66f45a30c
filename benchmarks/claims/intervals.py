"""95 % intervals of figures that are means over prompts and over seeds.

The variance has two parts, added. That by prompts is of the mean over seeds, prompt by prompt: pairs of one prompt stay
together. That by seeds is the sample variance of what each seed alone gives, over their number; what a seed does to
single prompts is in both, which makes intervals a little wide. Student's t then has the degrees of freedom that
Satterthwaite (1946) gives to such a sum: few where few seeds decide. With a single seed the second part is missing, and
the interval says nothing of other seeds.

The sum is an approximation. In simulations 95 % of intervals or a little more hold the truth where the seeds' part is
small beside the prompts'. Where both are equal, 93 % do with two seeds, 94 % with three, 95 % with five; where the
seeds' part is 8 times as large, which is the worst, 87 %, 92 % and 94 % (tests/test_claims.py has such).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; by_seed: what each seed alone gives, empty where nothing was trained."""

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float]

    def text(self, sign: bool = False) -> str:
        """As a table has it."""
        form = "{:+.3f} ({:+.3f} to {:+.3f})" if sign else "{:.3f} ({:.3f} to {:.3f})"
        return form.format(self.value, self.low, self.high)


@dataclass(frozen=True)
class SetFigure:
    """Of one set: what each seed gives, [S], and the variance of their mean by the prompts, which are so many."""

    by_seed: np.ndarray
    variance: float
    prompts: int


def mean_over_pairs(values: np.ndarray, weights: np.ndarray, cluster: np.ndarray) -> SetFigure:
    """values: [S, n], NaN where a seed has none; weights, cluster: of each pair its weight and its prompt, [n]."""
    known = ~np.isnan(values) * weights
    sums, counts = (_by_prompt(x, cluster) for x in (known * np.nan_to_num(values), known))
    whole = counts.sum(1, keepdims=True)
    each = sums.sum(1, keepdims=True) / whole
    # A prompt's part in the error of a ratio of sums, to first order (Cochran 1977, section 6.3).
    moved = ((sums - each * counts) / whole).mean(0)
    prompts = int(np.sum(counts.sum(0) > 0))
    # One prompt alone tells nothing of how prompts differ.
    variance = prompts / (prompts - 1) * float(moved @ moved) if prompts > 1 else np.inf
    return SetFigure(each[:, 0], variance, prompts)


def jackknifed(
    values: np.ndarray, cluster: np.ndarray, figure: Callable[[np.ndarray], float]
) -> SetFigure:
    """For a figure that is no mean over pairs: computed again without each prompt. values: [S, n]."""
    prompts = int(cluster.max()) + 1
    by_seed = np.array([figure(row) for row in values])
    if prompts < 2:
        return SetFigure(by_seed, np.inf, prompts)
    left = [np.mean([figure(row[cluster != c]) for row in values]) for c in range(prompts)]
    return SetFigure(by_seed, (prompts - 1) * float(np.var(left)), prompts)


def estimate(
    sets: Sequence[SetFigure], seeds: Sequence[int], bounds: tuple[float, float]
) -> Estimate:
    """The mean over sets and seeds. bounds: what no figure can lie beyond.

    seeds: those of SetFigure.by_seed; none for what is the same with every seed.
    """
    by_seed = np.mean([one.by_seed for one in sets], axis=0)
    parts = [(one.variance / len(sets) ** 2, one.prompts - 1) for one in sets]
    if len(by_seed) > 1:
        parts.append((float(np.var(by_seed, ddof=1)) / len(by_seed), len(by_seed) - 1))
    value = float(by_seed.mean())
    half = _half_width(parts)
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    named = dict(zip(seeds, by_seed.tolist(), strict=True)) if seeds else {}
    return Estimate(value, low, high, named)


def _half_width(parts: Sequence[tuple[float, int]]) -> float:
    """parts: variances that are added, each with its degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if variance == 0 or np.isinf(variance):
        return variance
    freedom = variance**2 / sum(part**2 / of for part, of in parts)
    return float(t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))


def _by_prompt(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """[S, n] summed to [S, C]."""
    return np.array([np.bincount(cluster, row, minlength=cluster.max() + 1) for row in values])
