"""Batches of constant shape as a pure function of (examples, seed, step, shard).

Every epoch has its own permutation and its own packing. The last batch of an epoch is filled with
empty rows (segment 0, weight 0): averages are sums over counts, so an empty row changes none.
Letters as in batch.py.
"""

import bisect
import dataclasses
import threading
from typing import TypeVar

import numpy as np

from gram_jax.batch import BradleyTerryBatch, Sequences, TokenBatch, VerdictBatch
from gram_jax.data.examples import (
    BradleyTerryExamples,
    Documents,
    Examples,
    TokenExamples,
    VerdictExamples,
)
from gram_jax.data.packing import EpochPlan, epoch_order, most_units_in_a_row, pack_epoch
from gram_jax.data.report import DataReport, add_counts, length_histogram
from gram_jax.errors import DataError, RecipeError

Batch = TokenBatch | VerdictBatch | BradleyTerryBatch
E = TypeVar("E", bound=Examples)

LONGER_THAN_A_ROW = "longer than a row"


def make_batches(
    examples: Examples, *, batch_size: int, max_length: int, seed: int, packing: bool
) -> "BatchPlan":
    """Plan batches of `batch_size` rows (over all processes) of `max_length` positions.

    packing: several documents share a row; else each row holds one document (or one pair of the
    baseline). Examples longer than a row are dropped and counted. Both orders of a pair share a
    batch. Raises DataError if nothing is left, RecipeError if a batch cannot hold both orders.
    """
    if batch_size < 1 or max_length < 2:
        raise RecipeError(f"a batch of {batch_size} rows of {max_length} positions holds nothing")
    two_rows = examples.per_unit == 2 and not examples.together
    if two_rows and not packing and batch_size % 2:
        raise RecipeError(
            f"batch.batch_size = {batch_size} with both orders of a pair in one batch: "
            f"expected an even number of rows, such as {batch_size + 1}, or packing = true"
        )
    together = examples.together or (two_rows and batch_size == 1)
    kept = _without_long(examples, max_length, together)
    return BatchPlan(kept, batch_size, max_length, seed=seed, packing=packing, together=together)


class BatchPlan:
    """The batch of every step. `batch(step)` may be called in any order, on any process.

    The packing of an epoch is computed at the first of its steps; those of two epochs are cached.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        max_length: int,
        *,
        seed: int,
        packing: bool,
        together: bool,
    ):
        self.examples = examples
        self.batch_size, self.max_length = batch_size, max_length
        self.seed, self.packing, self.together = seed, packing, together
        self._unit_lengths = examples.documents.lengths.reshape(-1, examples.per_unit)
        self._plans: dict[int, EpochPlan] = {}
        # the feed's thread and the training loop ask at the same time
        self._lock = threading.RLock()
        self._ends: list[int] = []  # steps before the end of epoch 0, 1, ...
        self.slots = self._most_slots()

    def _most_slots(self) -> int:
        """M, the verdicts (pairs of the baseline) that a row may hold, the same in every epoch."""
        pairs = isinstance(self.examples, BradleyTerryExamples)
        if not self.packing:
            return 1 if pairs or not self.together else self.examples.per_unit
        sizes = self._unit_lengths.sum(1) if pairs else self.examples.documents.lengths
        return most_units_in_a_row(sizes, self.max_length)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch. Each epoch is packed anew and may differ by a step or so."""
        return self.steps(1)

    def steps(self, epochs: int) -> int:
        """Steps of the first `epochs` epochs."""
        with self._lock:
            while len(self._ends) < epochs:
                epoch = len(self._ends)
                self._ends.append(self.steps(epoch) + self._plan(epoch).batches)
        return self._ends[epochs - 1] if epochs else 0

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, index within it) of a step counted from 0."""
        if step < 0:
            raise ValueError(f"step {step} is before the first")
        while not self._ends or self._ends[-1] <= step:
            self.steps(len(self._ends) + 1)
        epoch = bisect.bisect_right(self._ends, step)
        return epoch, step - self.steps(epoch)

    def batch(self, step: int, shard: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a step, or of its rows the block `index` of `count` equal ones.

        All blocks in order are the whole batch. Arrays are i32 and f32 of shape [rows / count,
        length or slots].
        """
        index, count = shard
        if count < 1 or self.batch_size % count or not 0 <= index < count:
            raise RecipeError(
                f"shard {index} of {count} of a batch of {self.batch_size} rows: "
                "expected a number of shards that divides the rows"
            )
        epoch, batch = self.locate(step)
        rows = self.batch_size // count
        low = batch * self.batch_size + index * rows
        plan = self._plan(epoch)
        here = slice(*np.searchsorted(plan.row, [low, low + rows]))
        places = EpochPlan(
            plan.document[here], plan.row[here] - low, plan.start[here], plan.slot[here], 1
        )
        return _fill(self.examples, places, rows, self.max_length, self.slots)

    def report(self) -> DataReport:
        """Figures of the data and of the first epoch."""
        documents = self.examples.documents
        lengths = documents.lengths
        steps = self.steps_per_epoch
        tokens = int(lengths.sum())
        labels = self.examples.label if isinstance(self.examples, VerdictExamples) else None
        return DataReport(
            rows_read=self.examples.read.rows,
            dropped=dict(self.examples.read.dropped),
            examples=len(self.examples.ids),
            documents=len(documents),
            shortened=self.examples.shortened,
            tokens=tokens,
            mean_length=float(lengths.mean()),
            median_length=float(np.median(lengths)),
            max_length=int(lengths.max()),
            histogram=length_histogram(lengths),
            batch_size=self.batch_size,
            row_length=self.max_length,
            steps_per_epoch=steps,
            tokens_per_step=tokens / steps,
            examples_per_step=len(self.examples.ids) / steps,
            padding=1 - tokens / (steps * self.batch_size * self.max_length),
            first_share=None if labels is None else float(np.mean(labels == 0)),
        )

    def _plan(self, epoch: int) -> EpochPlan:
        with self._lock:
            if epoch not in self._plans:
                while len(self._plans) > 1:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[epoch] = pack_epoch(
                    self._unit_lengths,
                    epoch_order(len(self._unit_lengths), self.seed, epoch),
                    rows=self.batch_size,
                    length=self.max_length,
                    pack=self.packing,
                    together=self.together,
                )
            return self._plans[epoch]


def _without_long(examples: E, length: int, together: bool) -> E:
    lengths = examples.documents.lengths.reshape(-1, examples.per_unit)
    needed = lengths.sum(1) if together else lengths.max(1, initial=0)
    keep = needed <= length
    dropped = int(np.sum(~keep))
    counts = add_counts(examples.read.dropped, {LONGER_THAN_A_ROW: dropped} if dropped else {})
    if not keep.any():
        raise DataError(
            f"no example is left for training: {counts or 'there were none'}; a row has {length} "
            f"positions and the shortest example needs {needed.min() if len(needed) else 0}"
        )
    read = dataclasses.replace(examples.read, kept=examples.read.kept - dropped, dropped=counts)
    if not dropped:
        return dataclasses.replace(examples, read=read)
    by_document = np.repeat(keep, examples.per_unit)
    by_token = np.repeat(by_document, examples.documents.lengths)
    changed = {
        "documents": Documents(
            examples.documents.tokens[by_token],
            np.cumsum(np.r_[0, examples.documents.lengths[by_document]]),
        ),
        "ids": tuple(name for name, kept in zip(examples.ids, keep, strict=True) if kept),
        "read": read,
    }
    if isinstance(examples, TokenExamples):
        changed["weights"] = examples.weights[by_token]
    elif isinstance(examples, BradleyTerryExamples):
        changed["weights"] = examples.weights[keep]
    else:
        changed["weights"] = examples.weights[by_document]
        changed["label"] = examples.label[by_document]
    return dataclasses.replace(examples, **changed)


def _fill(examples: Examples, places: EpochPlan, rows: int, length: int, slots: int) -> Batch:
    seqs = Sequences(*(np.zeros((rows, length), np.int32) for _ in range(3)))
    lengths = examples.documents.lengths[places.document]
    for document, row, start, slot in zip(*(p.tolist() for p in places[:4]), strict=True):
        tokens = examples.documents[document]
        here = (row, slice(start, start + len(tokens)))
        seqs.tokens[here] = tokens
        seqs.positions[here] = np.arange(len(tokens))
        seqs.segments[here] = slot + 1
    last = places.start + lengths - 1
    if isinstance(examples, TokenExamples):
        return _token_batch(seqs, examples, places)
    if isinstance(examples, VerdictExamples):
        return _verdict_batch(seqs, examples, places, last, slots)
    return _ranking_batch(seqs, examples, places, last, slots)


def _token_batch(seqs: Sequences, examples: TokenExamples, places: EpochPlan) -> TokenBatch:
    """Targets are shifted inside a document: none is predicted from the document before."""
    targets = np.zeros_like(seqs.tokens)
    weights = np.zeros(seqs.tokens.shape, np.float32)
    offsets = examples.documents.offsets
    for document, row, start in zip(*(p.tolist() for p in places[:3]), strict=True):
        low, high = int(offsets[document]) + 1, int(offsets[document + 1])
        here = (row, slice(start, start + high - low))
        targets[here] = examples.documents.tokens[low:high]
        weights[here] = examples.weights[low:high]
    return TokenBatch(seqs, targets, weights)


def _verdict_batch(
    seqs: Sequences, examples: VerdictExamples, places: EpochPlan, last: np.ndarray, slots: int
) -> VerdictBatch:
    shape = (len(seqs.tokens), slots)
    verdict_at, label = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    here = (places.row, places.slot)
    verdict_at[here] = last
    label[here] = examples.label[places.document]
    weights[here] = examples.weights[places.document]
    return VerdictBatch(seqs, verdict_at, label, weights)


def _ranking_batch(
    seqs: Sequences, examples: BradleyTerryExamples, places: EpochPlan, last: np.ndarray, slots: int
) -> BradleyTerryBatch:
    shape = (len(seqs.tokens), slots)
    chosen_at, rejected_at = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    here = (places.row, places.slot // 2)  # the two documents of a pair are neighbours in their row
    for at, side in ((chosen_at, 0), (rejected_at, 1)):
        mine = places.document % 2 == side
        at[here[0][mine], here[1][mine]] = last[mine]
    weights[here] = examples.weights[places.document // 2]
    return BradleyTerryBatch(seqs, chosen_at, rejected_at, weights)
