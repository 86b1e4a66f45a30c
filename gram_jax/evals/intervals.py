"""95 % intervals of shares and means, clustered by prompt: pairs of one prompt are not independent."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gram_jax.evals.results import Interval

Z95 = 1.959964
RESAMPLES = 2000
CHUNK = 100  # resamples per batch; limits memory to [CHUNK, prompts] weights
FEW = 5  # minimum number of prompts in a subset for a bootstrap interval
MOST_SUBSETS = 256
ROUNDING = 1e-9  # relative rounding error of means with fractional weights


@dataclass(frozen=True)
class Metric:
    """A metric of subsets. of: (sums of scores [..., S], counts [..., S]) -> [...]; within: names of the subsets.

    mean: whether it is a mean of scores, which is a share if they are 0 to 1; a difference or a ratio of means is not.
    """

    of: Callable[[np.ndarray, np.ndarray], np.ndarray]
    within: tuple[str, ...]
    mean: bool


def mean_of(metrics: Sequence[Metric]) -> Metric:
    """The unweighted mean of metrics."""
    return Metric(
        lambda scores, counts: np.mean([metric.of(scores, counts) for metric in metrics], axis=0),
        tuple(dict.fromkeys(name for metric in metrics for name in metric.within)),
        mean=all(metric.mean for metric in metrics),
    )


def factorize(values: Sequence[Hashable]) -> np.ndarray:
    """i [n]: the code of each value, in the order of first appearance.

    >>> factorize(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], int)


def wilson_interval(successes: float, n: float) -> Interval:
    """95 % interval of a share (Wilson 1927), also accurate for small n and near 0 and 1.

    >>> tuple(round(x, 3) for x in wilson_interval(8, 10))
    (0.49, 0.943)
    """
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # The interval must contain the share; rounding may violate this near 0 and 1.
    low, high = min(share, centre - half), max(share, centre + half)
    return max(0.0, float(low)), min(1.0, float(high))


def clustered_interval(correct: np.ndarray, cluster: np.ndarray) -> Interval:
    """Wilson's interval of a share of pairs, wider if outcomes of pairs of one prompt are correlated.

    correct: bool [n]; cluster: i [n], the prompt of each pair, any codes.
    n is divided by the design effect (Kish 1965): the variance of the mean with clusters, relative to that with
    independent pairs. If all outcomes are equal, or there is one prompt, every prompt counts once.

    >>> independent = clustered_interval(np.arange(40) % 2 == 0, np.arange(40))
    >>> alike = clustered_interval(np.repeat(np.arange(10) % 2 == 0, 4), np.repeat(np.arange(10), 4))
    >>> independent == wilson_interval(20, 40), alike == wilson_interval(5, 10)
    (True, True)
    """
    cluster = np.unique(cluster, return_inverse=True)[1]
    n, clusters, share = len(correct), int(cluster.max()) + 1, float(correct.mean())
    effect = n / clusters
    if clusters > 1 and 0 < share < 1:
        sums = np.bincount(cluster, correct - share, minlength=clusters)
        effect = max(1.0, float((sums**2).sum()) / (share * (1 - share) * n))
    return wilson_interval(share * n / effect, n / effect)


@dataclass(frozen=True)
class BootstrapTable:
    """The scores of each prompt in each subset, and intervals of metrics of their sums.

    scores, counts: f64 [prompts, subsets], the sum of scores (0 to 1 each, for shares) and the number of items.

    Intervals are percentiles of 2,000 samples of the Bayesian bootstrap (Rubin 1981). A sample gives every prompt, with
    its items of all subsets, a random weight. Weights are positive, so every sample contains every subset.

    The bootstrap interval is too narrow if a subset has fewer than five prompts, and has no width if nothing varies. A
    share then has Wilson's interval for the number of prompts, extended to contain the bootstrap interval. Other
    metrics have the bootstrap interval, or None if nothing varies.
    """

    subsets: tuple[str, ...]
    scores: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls, scores: np.ndarray, cluster: np.ndarray, subset: Sequence[str] | np.ndarray
    ) -> "BootstrapTable":
        """scores: [n], 0 to 1 for shares; cluster: i [n], the prompt of each item; subset: its name, in any order."""
        names, at = np.unique(np.asarray(subset, dtype=str), return_inverse=True)
        shape = int(cluster.max()) + 1, len(names)
        cell = np.ravel_multi_index((cluster, at), shape)
        sums, counts = (
            np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape)
            for weights in (np.asarray(scores, float), np.ones(len(cell)))
        )
        return cls(tuple(map(str, names)), sums, counts)

    def pooled(self, *names: str) -> Metric:
        """The mean score of all items of these subsets, default: of all subsets."""
        at = self._columns(names) if names else slice(None)
        return Metric(
            lambda scores, counts: scores[..., at].sum(-1) / counts[..., at].sum(-1),
            names or self.subsets,
            mean=True,
        )

    def weighed(self, weights: Mapping[str, float]) -> Metric:
        """The weighted mean of the subsets' mean scores; weights: {subset: weight}."""
        at = self._columns(weights)
        each = np.array(list(weights.values())) / sum(weights.values())
        return Metric(
            lambda scores, counts: (scores[..., at] / counts[..., at]) @ each,
            tuple(weights),
            mean=True,
        )

    def value(self, metric: Metric | None = None) -> float:
        """The metric over all prompts; default: the mean score."""
        metric = metric or self.pooled()
        return float(metric.of(self.scores.sum(0), self.counts.sum(0)))

    def interval(self, metric: Metric | None = None) -> Interval | None:
        """The 95 % interval of a metric, default: of the mean score; None if it is not a share and does not vary."""
        metric = metric or self.pooled()
        low, high = map(float, np.quantile(metric.of(*self._resampled), (0.025, 0.975)))
        varies = high - low > ROUNDING * max(1.0, abs(high))
        at = self._columns(metric.within)
        scores, counts = self.scores[:, at], self.counts[:, at]
        if varies and (counts > 0).sum(0).min() >= FEW:
            return low, high
        share = metric.mean and ((scores >= 0) & (scores <= counts)).all()
        if not share:
            return (low, high) if varies else None
        value, n = self.value(metric), self.prompts(*metric.within)
        wilson = wilson_interval(value * n, n)
        return (min(low, wilson[0]), max(high, wilson[1])) if varies else wilson

    def prompts(self, *names: str) -> int:
        """Number of prompts in these subsets."""
        return int(self.counts[:, self._columns(names)].any(1).sum())

    def _columns(self, names: Iterable[str]) -> list[int]:
        return [self.subsets.index(name) for name in names]

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
    """The subset of each item, from the name of its source; more than 256 different names are ids, not subsets.

    >>> subsets_of(["chat", ""]).tolist(), set(subsets_of([str(at) for at in range(300)]).tolist())
    (['chat', '(no source)'], {'(many sources)'})
    """
    if len(set(names)) > MOST_SUBSETS:
        return np.full(len(names), "(many sources)")
    return np.array([name or "(no source)" for name in names])
