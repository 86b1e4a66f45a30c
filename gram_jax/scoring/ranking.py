"""From comparisons to an order. Arrays only; who compares is somebody else's business."""

from collections.abc import Sequence

import numpy as np


def round_robin(count: int) -> list[tuple[int, int]]:
    """Every pair i < j once.

    >>> round_robin(3)
    [(0, 1), (0, 2), (1, 2)]
    """
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def table_of(count: int, margins: Sequence[float]) -> np.ndarray:
    """Log-odds that response i is better than response j, f32 [n, n], from those of `round_robin(n)`."""
    table = np.zeros((count, count), np.float32)
    for (i, j), margin in zip(round_robin(count), margins, strict=True):
        table[i, j], table[j, i] = margin, -margin
    return table


def strengths(log_odds: np.ndarray) -> np.ndarray:
    """How good each of n responses is: the mean of its log-odds against the others, f32 [n].

    log_odds: [n, n], antisymmetric. Summing log-odds ranks clearly better than counting wins.
    """
    others = max(1, len(log_odds) - 1)
    return log_odds.sum(axis=1) / np.float32(others)


def order_of(values: Sequence[float] | np.ndarray) -> list[int]:
    """Indices from the largest value to the smallest; equals keep their order.

    >>> order_of([0.1, 0.7, 0.1])
    [1, 0, 2]
    """
    return np.argsort(-np.asarray(values), kind="stable").tolist()
