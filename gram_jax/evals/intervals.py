"""How far a share or an average can be trusted: 95 % intervals over prompts, since pairs of one prompt go together."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Z95 = 1.959964
RESAMPLES = 2000
CHUNK = 100  # resamples drawn at a time: [CHUNK, prompts] weights in memory
FEW = 5  # prompts of a subset, below which its bootstrap samples vary too little
MOST_SUBSETS = 256
ROUNDING = 1e-9  # of means by weights that are no whole numbers

# (credits [..., S], counts [..., S]) of the S subsets -> [...]
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]
Interval = tuple[float, float]


def number(values: Sequence[Hashable]) -> np.ndarray:
    """i [n]: which of the different values each one is, in the order of first appearance.

    >>> number(["b", "a", "b"]).tolist()
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


@dataclass(frozen=True)
class Tally:
    """What each prompt earned in each subset, and intervals of whatever is computed from the sums over prompts.

    credit, count: f64 [prompts, subsets], the sum of credits (0 to 1 each, for shares) and how many there were.

    Intervals are the percentiles of 2,000 samples of the Bayesian bootstrap (Rubin 1981): every prompt, with all that
    it has in any subset, gets a random weight. A weight is never 0, so that no sample lacks a subset, however few
    prompts that has. Fewer than five prompts vary too little in such samples, and where all are right or there is one
    prompt, nothing varies: Wilson's interval of as many prompts is then taken for a share if it is the wider one, and
    other figures have none where nothing varies.
    """

    subsets: tuple[str, ...]
    credit: np.ndarray
    count: np.ndarray

    @classmethod
    def of(
        cls, credit: np.ndarray, cluster: np.ndarray, subset: Sequence[str] | np.ndarray
    ) -> "Tally":
        """credit: [n] of 0 to 1; cluster: i [n], the prompt of each item; subset: its name, in any order."""
        names, at = np.unique(np.asarray(subset, dtype=str), return_inverse=True)
        shape = int(cluster.max()) + 1, len(names)
        cell = np.ravel_multi_index((cluster, at), shape)
        earned, seen = (
            np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape)
            for weights in (np.asarray(credit, float), np.ones(len(cell)))
        )
        return cls(tuple(map(str, names)), earned, seen)

    def value(self, metric: Metric) -> float:
        """The figure of all prompts."""
        return float(metric(*self.sums))

    def interval(self, metric: Metric, within: Sequence[str] | None = None) -> Interval | None:
        """Its 95 % interval, None where nothing is known of it; within: the subsets it is made of, if not all."""
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
        """How many there are, in all subsets or in these."""
        return int(self.count[:, self._used(within)].any(1).sum())

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Credits and counts of each subset, [subsets] each."""
        return self.credit.sum(0), self.count.sum(0)

    @cached_property
    def _prompts_of_subsets(self) -> np.ndarray:
        return (self.count > 0).sum(0)

    @cached_property
    def _at(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.subsets)}

    def _used(self, within: Sequence[str] | None) -> list[int]:
        return list(self._at.values()) if within is None else [self._at[name] for name in within]

    def _are_shares(self, within: Sequence[str] | None) -> bool:
        """Whether what was earned lies between nothing and one for each item."""
        credit, count = (x[:, self._used(within)] for x in (self.credit, self.count))
        return bool(((credit >= 0) & (credit <= count)).all())

    @cached_property
    def _resampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of credits and counts in every bootstrap sample, [RESAMPLES, subsets] each."""
        rng = np.random.default_rng(0)
        chunks = (
            rng.standard_exponential((CHUNK, len(self.count))) for _ in range(RESAMPLES // CHUNK)
        )
        sums = [(weights @ self.credit, weights @ self.count) for weights in chunks]
        credit, count = (np.concatenate(parts) for parts in zip(*sums, strict=True))
        return credit, count


def subsets_of(names: Sequence[str]) -> np.ndarray:
    """The subset of each item by the name its source gave; more than 256 different names are no subsets but ids.

    >>> subsets_of(["chat", ""]).tolist(), set(subsets_of([str(at) for at in range(300)]).tolist())
    (['chat', '(no source)'], {'(many sources)'})
    """
    if len(set(names)) > MOST_SUBSETS:
        return np.full(len(names), "(many sources)")
    return np.array([name or "(no source)" for name in names])


def share(credit: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The metric of all items alike: credits over counts."""
    return credit.sum(-1) / count.sum(-1)
