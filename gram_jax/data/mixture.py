"""The units of an epoch of a mixture of sources."""

import math
from collections.abc import Sequence

import numpy as np

from gram_jax.data.packing import epoch_order


def epoch_units(source: np.ndarray, passes: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """Indices of the units of an epoch, by source: i64.

    source: i32 [units], the index of the source of each unit. passes: number of passes over each source in an epoch,
    more than 0. The units of a source are drawn without replacement in passes, each in an order of its own, and epochs
    continue where the last one ended: two epochs with 0.5 passes have every unit once, and the second epoch with 1.5
    passes begins with the half that the first one had only once.

    >>> epoch_units(np.array([0, 0, 1]), (1.0, 2.0), seed=0, epoch=0).tolist()
    [0, 1, 2, 2]
    """
    drawn = []
    for index, share in enumerate(passes):
        units = np.flatnonzero(source == index)
        low, high = (math.floor(epoch_end * share * len(units)) for epoch_end in (epoch, epoch + 1))
        drawn.append(units[np.sort(_positions(len(units), low, high, (seed, index)))])
    return np.concatenate(drawn)


def _positions(count: int, low: int, high: int, seeds: tuple[int, int]) -> np.ndarray:
    """Draws low .. high - 1 of the endless sequence of passes over range(count)."""
    parts = [np.zeros(0, np.int64)]
    while low < high:
        number, start = divmod(low, count)
        stop = min(count, start + high - low)
        whole = stop - start == count
        seed, index = seeds
        order = np.arange(count) if whole else epoch_order(count, seed, number, index + 1)
        parts.append(order[start:stop])
        low += stop - start
    return np.concatenate(parts)


def most_draws(source: np.ndarray, passes: Sequence[float]) -> np.ndarray:
    """The largest number of times that an epoch may have each unit: i64 [units]."""
    # An epoch that ends inside a pass may have the last units of one pass and the same units of the next one.
    often = [int(share) if share == int(share) else math.ceil(share) + 1 for share in passes]
    return np.array(often)[source]
