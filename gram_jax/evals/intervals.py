"""95 % intervals of shares and averages, clustered by prompt, since pairs of one prompt are not independent."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gram_jax.evals.results import Interval

Z95 = 1.959964
RESAMPLES = 2000
CHUNK = 100  # resamples drawn at a time: [CHUNK, prompts] weights in memory
FEW = 5  # prompts of a subset; the bootstrap samples of fewer vary too little
MOST_SUBSETS = 256
ROUNDING = 1e-9  # of means with fractional weights

# (sums of scores [..., S], counts [..., S]) of the S subsets -> [...]
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]


def factorize(values: Sequence[Hashable]) -> np.ndarray:
    """i [n]: the code of each value, in the order of first appearance.

    >>> factorize(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], int)


def wilson_interval(successes: float, n: float) -> Interval:
    """95 % interval of a share (Wilson 1927): honest for small n and near 0 and 1.

    >>> tuple(round(x, 3) for x in wilson_interval(8, 10))
    (0.49, 0.943)
    """
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The share lies within; by rounding the bound next to 0 or 1 may miss it.
    low, high = min(share, centre - half), max(share, centre + half)
    return max(0.0, float(low)), min(1.0, float(high))


def clustered_interval(correct: np.ndarray, cluster: np.ndarray) -> Interval:
    """Wilson's interval if pairs of one prompt tend to be right or wrong together.

    correct: bool [n]; cluster: i [n], the prompt of each pair, 0 .. C-1.
    n is divided by the design effect (Kish 1965): the variance of the mean over prompts by that of independent pairs.
    If nothing varies, a prompt counts once.

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


@dataclass(frozen=True)
class BootstrapTable:
    """The scores of each prompt in each subset, and intervals of whatever is computed from their sums over prompts.

    scores, counts: f64 [prompts, subsets], the sum of scores (0 to 1 each, for shares) and the number of items.

    Intervals are the percentiles of 2,000 samples of the Bayesian bootstrap (Rubin 1981): every prompt, with all that
    it has in any subset, gets a random weight. A weight is never 0, so that no sample lacks a subset, however few
    prompts that has. Fewer than five prompts vary too little in such samples, and if all are right or there is one
    prompt, nothing varies: a share then has Wilson's interval of as many prompts if that is the wider one, and other
    figures have none if nothing varies.
    """

    subsets: tuple[str, ...]
    scores: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls, scores: np.ndarray, cluster: np.ndarray, subset: Sequence[str] | np.ndarray
    ) -> "BootstrapTable":
        """scores: [n] of 0 to 1; cluster: i [n], the prompt of each item; subset: its name, in any order."""
        names, at = np.unique(np.asarray(subset, dtype=str), return_inverse=True)
        shape = int(cluster.max()) + 1, len(names)
        cell = np.ravel_multi_index((cluster, at), shape)
        sums, counts = (
            np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape)
            for weights in (np.asarray(scores, float), np.ones(len(cell)))
        )
        return cls(tuple(map(str, names)), sums, counts)

    def value(self, metric: Metric) -> float:
        """The figure of all prompts."""
        return float(metric(*self.sums))

    def interval(self, metric: Metric, within: Sequence[str] | None = None) -> Interval | None:
        """Its 95 % interval, None if it does not vary; within: the subsets it is made of, if not all."""
        low, high = map(float, np.quantile(metric(*self._resampled), (0.025, 0.975)))
        varies = high - low > ROUNDING * max(1.0, abs(high))
        if varies and self._prompts_of_subsets[self._used(within)].min() >= FEW:
            return low, high
        if not self._are_shares(within):
            return (low, high) if varies else None
        value, n = self.value(metric), self.prompts(within)
        wilson = wilson_interval(value * n, n)
        return (min(low, wilson[0]), max(high, wilson[1])) if varies else wilson

    def prompts(self, within: Sequence[str] | None = None) -> int:
        """Number of prompts in all subsets, or in these."""
        return int(self.counts[:, self._used(within)].any(1).sum())

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of scores and counts of each subset, [subsets] each."""
        return self.scores.sum(0), self.counts.sum(0)

    @cached_property
    def _prompts_of_subsets(self) -> np.ndarray:
        return (self.counts > 0).sum(0)

    @cached_property
    def _at(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.subsets)}

    def _used(self, within: Sequence[str] | None) -> list[int]:
        return list(self._at.values()) if within is None else [self._at[name] for name in within]

    def _are_shares(self, within: Sequence[str] | None) -> bool:
        """Whether the scores lie between 0 and 1."""
        scores, counts = (x[:, self._used(within)] for x in (self.scores, self.counts))
        return bool(((scores >= 0) & (scores <= counts)).all())

    @cached_property
    def _resampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of scores and counts in every bootstrap sample, [RESAMPLES, subsets] each."""
        rng = np.random.default_rng(0)
        chunks = (
            rng.standard_exponential((CHUNK, len(self.counts))) for _ in range(RESAMPLES // CHUNK)
        )
        sums = [(weights @ self.scores, weights @ self.counts) for weights in chunks]
        scores, counts = (np.concatenate(parts) for parts in zip(*sums, strict=True))
        return scores, counts


def subsets_of(names: Sequence[str]) -> np.ndarray:
    """The subset of each item by the name its source gave; more than 256 different names are ids, not subsets.

    >>> subsets_of(["chat", ""]).tolist(), set(subsets_of([str(at) for at in range(300)]).tolist())
    (['chat', '(no source)'], {'(many sources)'})
    """
    if len(set(names)) > MOST_SUBSETS:
        return np.full(len(names), "(many sources)")
    return np.array([name or "(no source)" for name in names])


def mean_score(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The metric that counts all items alike: sum of scores over number of items."""
    return scores.sum(-1) / counts.sum(-1)
