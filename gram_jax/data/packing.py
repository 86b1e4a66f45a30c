"""Which document stands in which row of which batch, for one epoch.

A unit is what must stay together: the one or two documents of an example. Units are taken near the
order of the epoch's permutation; each goes where it leaves the least room, and a unit that does not
fit waits for the next batch.
"""

from typing import NamedTuple

import numpy as np

# How many units that do not fit may be passed over before a batch is closed. A wider window fills
# the rows better and moves units further from their place in the permutation.
WINDOW = 64


class EpochPlan(NamedTuple):
    """Places of all documents of an epoch, sorted by batch, row and start. All i64.

    document: i64 [N], index of the document; row: i64 [N], counted over the whole epoch (row //
    rows is the batch); start: i64 [N], its first column; slot: i64 [N], 0.. among the documents of
    the row. batches: how many.
    """

    document: np.ndarray
    row: np.ndarray
    start: np.ndarray
    slot: np.ndarray
    batches: int


def epoch_order(units: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch: i64 [units], a function of (seed, epoch) alone.

    Sorted raw bits of Philox, which numpy keeps the same from version to version;
    `Generator.permutation` it does not.
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

    lengths: i64 [units, D], tokens of the D documents of each unit (D is 1 or 2), each at most
    `length`; order: the permutation of the units. together: both documents of a unit stand in the
    same row; else they may stand in two rows of the same batch. pack = False gives every row one
    unit (together) or one document.
    """
    documents = lengths.shape[1]
    if not pack:
        return _one_a_row(lengths, order, rows, together)
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
            found = _rows_for(free, sizes[unit], together)
            if found is None:
                waiting.append(unit)
                if len(waiting) >= WINDOW:
                    break
                continue
            for d, row in enumerate(found):
                start = length - int(free[row])
                places.append((unit * documents + d, batch * rows + row, start))
                free[row] -= sizes[unit][d]
        queue = waiting + queue[taken:]
        batch += 1
    return _sorted_plan(np.array(places, np.int64).reshape(-1, 3), batch)


def _rows_for(free: np.ndarray, sizes: list[int], together: bool) -> list[int] | None:
    """The row for each document of a unit: the one that it fills best, or else two."""
    if max(sizes) > free.max():
        return None
    row = _best_row(free, sum(sizes))
    if row is not None:
        return [row] * len(sizes)
    if together or len(sizes) == 1:
        return None
    first = _best_row(free, sizes[0])
    if first is None:
        return None
    others = free.copy()
    others[first] = -1  # both in one row was tried above
    second = _best_row(others, sizes[1])
    return None if second is None else [first, second]


def _best_row(free: np.ndarray, size: int) -> int | None:
    room = np.where(free >= size, free, np.iinfo(np.int64).max)
    row = int(room.argmin())
    return row if free[row] >= size else None


def _one_a_row(lengths: np.ndarray, order: np.ndarray, rows: int, together: bool) -> EpochPlan:
    units, documents = lengths.shape
    per_batch = rows if together else rows // documents
    number = np.arange(units)
    batch, place = number // per_batch, number % per_batch
    row = batch * rows + (place if together else place * documents)
    step = np.zeros(documents, np.int64) if together else np.arange(documents)
    start = np.zeros((units, documents), np.int64)
    if together:
        start[:, 1:] = np.cumsum(lengths[order], axis=1)[:, :-1]
    document = order[:, None] * documents + np.arange(documents)
    places = np.stack([document, row[:, None] + step, start], axis=-1).reshape(-1, 3)
    return _sorted_plan(places, -(-units // per_batch))


def _sorted_plan(places: np.ndarray, batches: int) -> EpochPlan:
    document, row, start = places[np.lexsort((places[:, 2], places[:, 1]))].T
    new = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
    slot = np.arange(len(row)) - np.repeat(new, np.diff(np.r_[new, len(row)]))
    return EpochPlan(document, row, start, slot, batches)


def most_units_in_a_row(sizes: np.ndarray, length: int) -> int:
    """No row can hold more units than its shortest ones. sizes: i64 [units]."""
    return max(1, int(np.searchsorted(np.cumsum(np.sort(sizes)), length, side="right")))
