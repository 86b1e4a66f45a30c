"""Length bias: effect of the lengths of the responses, in characters, on the verdicts of a judge."""

import numpy as np

from gram_jax.evals.intervals import clustered_interval
from gram_jax.evals.results import LengthBin

# Bounds of log2(length of the chosen / length of the rejected response): ratios 1/4, 1/2, 0.8, 1.25, 2 and 4.
EDGES = (-2.0, -1.0, -0.32, 0.32, 1.0, 2.0)


def doublings(lengths: np.ndarray) -> np.ndarray:
    """log2(first length / second length), [n, 2] -> [n]; 1 is added to both, since a response may be empty."""
    return -np.diff(np.log2(lengths + 1), axis=1)[:, 0]


def length_slope(margin: np.ndarray, lengths: np.ndarray) -> float:
    """Log-odds that a response gains if it is twice as long as the other, by least squares through zero.

    0 if both lengths are equal in every pair.

    margin: log-odds of the first response, [n]; lengths: of the first and the second, [n, 2].

    >>> length_slope(np.array([3.0, -3.0]), np.array([[7, 1], [0, 3]]))
    1.5
    """
    longer = doublings(lengths)
    return float((margin * longer).sum() / max((longer**2).sum(), 1e-9))


def controlled_accuracy(correct: np.ndarray, lengths: np.ndarray) -> float | None:
    """Accuracy if the chosen response were the longer one in half of the pairs; 0.5 for a judge that uses length only.

    correct: bool [n]; lengths: of the chosen and the rejected response, [n, 2]. None if the
    chosen response is never longer, or never shorter.

    >>> controlled_accuracy(np.array([True, True, True, False]), np.array([[2, 1], [3, 1], [9, 1], [1, 2]]))
    0.5
    """
    longer = lengths[:, 0] - lengths[:, 1]
    if not (longer > 0).any() or not (longer < 0).any():
        return None
    return float((correct[longer > 0].mean() + correct[longer < 0].mean()) / 2)


def length_bins(correct: np.ndarray, lengths: np.ndarray, cluster: np.ndarray) -> list[LengthBin]:
    """Accuracy by relative length of the chosen response. Bounds are EDGES, None for an open end."""
    at = np.digitize(doublings(lengths), EDGES)
    found = []
    for bin_, (low, high) in enumerate(zip((None, *EDGES), (*EDGES, None), strict=True)):
        here = at == bin_
        accuracy = interval = None
        if here.any():
            accuracy = float(correct[here].mean())
            interval = clustered_interval(correct[here], cluster[here])
        n = int(here.sum())
        found.append(LengthBin(low=low, high=high, n=n, accuracy=accuracy, interval=interval))
    return found
