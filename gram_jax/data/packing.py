"""The row, column and batch of every document of an epoch.

A unit is the one or two documents of an example. Units are placed approximately in the order of the epoch's
permutation, each in the row with the least free space that suffices (best fit). A unit that does not fit is deferred to
the next batch.
"""

from typing import NamedTuple

import numpy as np

# Number of units that may be deferred before a batch is closed. A larger window reduces padding and moves units further
# from their place in the permutation.
WINDOW = 64


class EpochPlan(NamedTuple):
    """Places of all documents of an epoch, sorted by row and start. All i64 [N].

    document: index of the document; row: counted over the whole epoch (row // rows is the batch); start: its first
    column; slot: 0.. among the documents of the row. batches: number of batches.
    """

    document: np.ndarray
    row: np.ndarray
    start: np.ndarray
    slot: np.ndarray
    batches: int

    def rows(self, low: int, high: int) -> "EpochPlan":
        """The places in rows low .. high - 1, with rows counted from `low`."""
        here = slice(*np.searchsorted(self.row, [low, high]))
        return EpochPlan(
            self.document[here], self.row[here] - low, self.start[here], self.slot[here], 1
        )


def epoch_order(units: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch: i64 [units], a function of (seed, epoch) alone.

    Sorts raw bits of Philox, which are the same in all versions of numpy, unlike `Generator.permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(units)
    return np.argsort(bits, kind="stable")


def pack_epoch(
    lengths: np.ndarray,
    order: np.ndarray,
    *,
    rows: int,
    length: int,
    pack: bool,
    together: bool,
) -> EpochPlan:
    """Place every unit of an epoch.

    lengths: i64 [units, D], tokens of the D documents of each unit (D is 1 or 2), each at most `length`. order: the
    permutation of the units. together: both documents of a unit are in the same row, else in the same batch. pack:
    rows hold several units; if False, each row holds one unit (together) or one document.
    """
    documents = lengths.shape[1]
    queue = list(map(int, order))
    sizes = lengths.tolist()
    places: list[tuple[int, int, int]] = []
    batch = 0
    while queue:
        free = np.full(rows, length, np.int64)
        waiting: list[int] = []
        taken = 0
        for unit in queue:
            taken += 1
            found = _rows_for(free, sizes[unit], together=together, pack=pack)
            if found is None:
                waiting.append(unit)
                if len(waiting) >= WINDOW:
                    break
                continue
            for d, row in enumerate(found):
                start = length - int(free[row])
                places.append((unit * documents + d, batch * rows + row, start))
                free[row] -= sizes[unit][d]
            if not pack:
                free[found] = 0
        queue = waiting + queue[taken:]
        batch += 1
    return _sorted_plan(np.array(places, np.int64).reshape(-1, 3), batch)


def _rows_for(
    free: np.ndarray, sizes: list[int], *, together: bool, pack: bool
) -> list[int] | None:
    """The row for each document of a unit: one row if they fit together, else two."""
    if max(sizes) > free.max():
        return None
    if pack or together or len(sizes) == 1:
        row = _best_row(free, sum(sizes))
        if row is not None:
            return [row] * len(sizes)
        if together or len(sizes) == 1:
            return None
    first = _best_row(free, sizes[0])
    if first is None:
        return None
    others = free.copy()
    others[first] = -1
    second = _best_row(others, sizes[1])
    return None if second is None else [first, second]


def _best_row(free: np.ndarray, size: int) -> int | None:
    """The row with the least free space of at least `size`."""
    space = np.where(free >= size, free, np.iinfo(np.int64).max)
    row = int(space.argmin())
    return row if free[row] >= size else None


def _sorted_plan(places: np.ndarray, batches: int) -> EpochPlan:
    document, row, start = places[np.lexsort((places[:, 2], places[:, 1]))].T
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    return EpochPlan(document, row, start, slot, batches)


def most_units_in_a_row(sizes: np.ndarray, length: int) -> int:
    """An upper bound on the number of units in a row: the number of the shortest units that fit. sizes: i64 [units]."""
    return max(1, int(np.searchsorted(np.cumsum(np.sort(sizes)), length, side="right")))
