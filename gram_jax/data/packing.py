"""The row, column and batch of every document of an epoch.

A unit is the one or two documents of an example. Units are placed approximately in the order of the epoch's
permutation, each in the row with the least free space that suffices (best fit). A unit that does not fit is deferred to
the next batch.
"""

from array import array
from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

# Number of units that may be deferred before a batch is closed. A larger window reduces padding and moves units further
# from their place in the permutation.
WINDOW = 64
# Number of units whose lengths are Python objects at a time.
BLOCK = 65536


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


def epoch_order(units: int, *seeds: int) -> np.ndarray:
    """The permutation of an epoch: i64 [units], a function of the seeds alone, which are (seed, epoch).

    Sorts raw bits of Philox, which are the same in all versions of numpy, unlike `Generator.permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(units)
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
    blocks = (order[at : at + BLOCK] for at in range(0, len(order), BLOCK))
    fresh = (
        unit
        for b in blocks
        for unit in zip(b.tolist(), zip(*lengths[b].T.tolist(), strict=True), strict=True)
    )
    unit_of, row_of, start_of = array("q"), array("q"), array("q")  # 8 bytes an entry
    deferred: list[tuple[int, tuple[int, ...]]] = []
    batch, unit = 0, next(fresh, None)
    while deferred or unit is not None:
        free = _FreeRows(rows, length, pack=pack, together=together)
        waiting: list[tuple[int, tuple[int, ...]]] = []
        while len(waiting) < WINDOW:
            if deferred:
                candidate = deferred.pop()
            elif unit is not None:
                candidate, unit = unit, next(fresh, None)
            else:
                break
            found = free.place(candidate[1])
            if found is None:
                waiting.append(candidate)
                continue
            for d, (row, start) in enumerate(found):
                unit_of.append(candidate[0] * documents + d)
                row_of.append(batch * rows + row)
                start_of.append(start)
        # `deferred` is a stack: its last unit is the next one
        deferred += reversed(waiting)
        batch += 1
    in_unit, in_row, at = (np.frombuffer(x, np.int64) for x in (unit_of, row_of, start_of))
    return _sorted_plan(in_unit, in_row, at, batch)


class _FreeRows:
    """The free space of the rows of a batch, as a sorted list of the keys free * rows + row.

    A search for the least sufficient space takes the logarithm of the rows, and a unit that fits nowhere, the most
    frequent case of a nearly full batch, one comparison.
    """

    def __init__(self, rows: int, length: int, *, pack: bool, together: bool):
        self.rows, self.length, self.pack, self.together = rows, length, pack, together
        self.keys = [length * rows + row for row in range(rows)]

    def place(self, sizes: tuple[int, ...]) -> list[tuple[int, int]] | None:
        """(row, start) of each document of a unit: one row if they fit together, else two. None if they do not fit."""
        alone = len(sizes) == 1
        if self.pack or self.together or alone:
            if (key := self._pop(sum(sizes))) is not None:
                row, start = self._fill(key, sum(sizes))
                return [(row, start)] if alone else [(row, start), (row, start + sizes[0])]
            if self.together or alone:
                return None
        if (first := self._pop(sizes[0])) is None:
            return None
        if (second := self._pop(sizes[1])) is None:  # in another row than the first
            insort(self.keys, first)
            return None
        return [self._fill(first, sizes[0]), self._fill(second, sizes[1])]

    def _pop(self, size: int) -> int | None:
        """Remove the key of the row with the least free space of at least `size`, the first of several."""
        at = bisect_left(self.keys, size * self.rows)
        return self.keys.pop(at) if at < len(self.keys) else None

    def _fill(self, key: int, size: int) -> tuple[int, int]:
        """(row, start) of `size` tokens in the row of a removed key."""
        free, row = divmod(key, self.rows)
        if self.pack:
            insort(self.keys, (free - size) * self.rows + row)
        return row, self.length - free


def _sorted_plan(
    document: np.ndarray, row: np.ndarray, start: np.ndarray, batches: int
) -> EpochPlan:
    order = np.lexsort((start, row))
    document, row, start = document[order], row[order], start[order]
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    return EpochPlan(document, row, start, slot, batches)


def most_units_in_a_row(sizes: np.ndarray, length: int) -> int:
    """An upper bound on the number of units in a row: the number of the shortest units that fit. sizes: i64 [units]."""
    return max(1, int(np.searchsorted(np.cumsum(np.sort(sizes)), length, side="right")))
