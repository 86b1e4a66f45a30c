"""Batches of constant shape as a pure function of (examples, seed, step, shard).

Each epoch has a different permutation and packing. The last batch of an epoch is padded with empty rows (segment 0,
weight 0). They do not change averages, which are sums divided by counts. Letters as in batch.py.
"""

import bisect
import math
import threading
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np

from gram_jax.batch import (
    BradleyTerryBatch,
    RationaleBatch,
    Sequences,
    TokenBatch,
    VerdictBatch,
)
from gram_jax.data.examples import VERDICT_STAGES, Examples
from gram_jax.data.mixture import epoch_units, most_draws
from gram_jax.data.packing import EpochPlan, epoch_order, most_units_in_a_row, pack_epoch
from gram_jax.data.report import DataReport, length_histogram, source_shares
from gram_jax.errors import DataError, RecipeError

Batch = TokenBatch | VerdictBatch | RationaleBatch | BradleyTerryBatch

LONGER_THAN_A_ROW = "longer than a row"


class BatchPlan:
    """Batches of `batch_size` rows (over all processes) of `max_length` positions, for every step.

    packing: a row holds several documents if True, else one document (one pair of the baseline). Examples longer than a
    row are dropped and counted. Both orders of a pair are in the same batch, and with `together` in adjacent slots of
    the same row. passes: number of passes over each source
    in an epoch by its name, in the order of the sources; default one each. `batch(step)` may be called in any order, on
    any process. An epoch is packed at the first use of one of its steps, or before that by `prepare`; the plans of
    three epochs are cached. Raises DataError if no example is left, RecipeError if a batch cannot hold both orders or
    if an epoch may draw no example.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        packing: bool,
        passes: Mapping[str, float] | None = None,
        together: bool = False,
    ):
        if batch_size < 1 or max_length < 2:
            raise RecipeError(f"a batch of {batch_size} rows of {max_length} positions is empty")
        two_rows = examples.per_unit == 2 and not examples.together
        if two_rows and not packing and not together and batch_size % 2:
            raise RecipeError(
                f"batch.batch_size = {batch_size} with both orders of a pair in one batch: "
                f"expected an even number of rows, such as {batch_size + 1}, or packing = true"
            )
        self.batch_size, self.max_length = batch_size, max_length
        self.seed, self.packing = seed, packing
        self.adjacent = two_rows and together
        self.together = examples.together or self.adjacent or (two_rows and batch_size == 1)
        self.examples = _without_long(examples, max_length, self.together)
        count = int(self.examples.source.max()) + 1
        self.passes = passes or {str(index): 1.0 for index in range(count)}
        self._check_passes()
        self._plans: dict[int, Future[EpochPlan]] = {}
        self._lock = threading.Lock()  # used by the feed threads and the training loop
        self._ends: list[int] = []  # steps before the end of epoch 0, 1, ...
        self.slots = self._most_slots()
        self.targets = self._most_targets()

    def _check_passes(self) -> None:
        counts = np.bincount(self.examples.source, minlength=len(self.passes)).tolist()
        if any(
            math.floor(share * n) for share, n in zip(self.passes.values(), counts, strict=True)
        ):
            return
        count, name = max(zip(counts, self.passes, strict=True))
        raise RecipeError(
            f"weight = {self.passes[name]:g} of {name} ({count:,} examples): an epoch draws no example; expected at "
            f"least {math.ceil(1e6 / count) / 1e6:g} for this source"
        )

    def _most_slots(self) -> int:
        """M, the verdicts (pairs of the baseline) that a row may hold, the same in every epoch."""
        pairs = self.examples.together
        if not self.packing:
            return self.examples.per_unit if self.together and not pairs else 1
        often = most_draws(self.examples.source, tuple(self.passes.values()))
        units = np.repeat(self.examples.unit_lengths, often, axis=0)
        if self.adjacent:
            return 2 * most_units_in_a_row(units.sum(1), self.max_length)
        return most_units_in_a_row(units.sum(1) if pairs else units.ravel(), self.max_length)

    def _most_targets(self) -> int:
        """R, the tokens of rationales that a row may hold: of its documents, and of the largest share of a document."""
        targets, lengths = self.examples.targets, self.examples.documents.lengths
        shares = targets * self.max_length // lengths
        return max(1, min(self.slots * int(targets.max()), int(shares.max())))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch. Each epoch is packed separately; their numbers of steps may differ slightly."""
        return self.steps(1)

    def steps(self, epochs: int) -> int:
        """Steps of the first `epochs` epochs."""
        while (epoch := len(self._ends)) < epochs:
            batches = self._plan(epoch).batches
            with self._lock:
                if len(self._ends) == epoch:
                    self._ends.append(sum(self._ends[-1:]) + batches)
        return self._ends[epochs - 1] if epochs else 0

    def prepare(self, epoch: int) -> None:
        """Pack an epoch ahead of its first step."""
        self._plan(epoch)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, index within it) of a step counted from 0."""
        if step < 0:
            raise ValueError(f"step {step}: expected a step of at least 0")
        while not self._ends or self._ends[-1] <= step:
            self.steps(len(self._ends) + 1)
        epoch = bisect.bisect_right(self._ends, step)
        return epoch, step - self.steps(epoch)

    def batch(self, step: int, shard: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a step, or the block `index` of `count` equal blocks of its rows.

        The blocks in order form the whole batch. Arrays are i32 and f32 [rows / count, length or slots].
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
        places = self._plan(epoch).rows(low, low + rows)
        return _fill(self.examples, places, rows, self.max_length, self.slots, self.targets)

    def share_metrics(self, step: int) -> dict[str, tuple[float, float]]:
        """(units of a source, units) of the batch of a step, by "share/SOURCE"; {} if there is one source."""
        if len(self.passes) == 1:
            return {}
        epoch, batch = self.locate(step)
        low = batch * self.batch_size
        placed = self._plan(epoch).rows(low, low + self.batch_size).document
        found = self.examples.source[placed // self.examples.per_unit]
        counts = np.bincount(found, minlength=len(self.passes))
        named = zip(self.passes, counts.tolist(), strict=True)
        return {f"share/{name}": (count, len(found)) for name, count in named}

    def report(self) -> DataReport:
        """Figures of the data and of the first epoch."""
        examples, steps = self.examples, self.steps_per_epoch
        lengths = examples.documents.lengths
        verdicts = examples.stage in VERDICT_STAGES
        count = len(self.passes)
        by_source = np.bincount(examples.source, minlength=count)
        tokens_of = np.bincount(examples.source, examples.unit_lengths.sum(1), minlength=count)
        drawn = self._plan(0).document
        tokens = int(lengths[drawn].sum())
        return DataReport(
            rows_read=examples.read.rows,
            dropped=dict(examples.read.dropped),
            examples=examples.units,
            documents=len(lengths),
            shortened=examples.shortened,
            tokens=int(lengths.sum()),
            mean_length=float(lengths.mean()),
            median_length=float(np.median(lengths)),
            max_length=int(lengths.max()),
            histogram=length_histogram(lengths),
            batch_size=self.batch_size,
            row_length=self.max_length,
            steps_per_epoch=steps,
            tokens_per_step=tokens / steps,
            examples_per_step=len(drawn) / examples.per_unit / steps,
            padding=1 - tokens / (steps * self.batch_size * self.max_length),
            first_share=float(np.mean(examples.label[examples.label >= 0] == 0))
            if verdicts
            else None,
            sources=source_shares(self.passes, by_source.tolist(), tokens_of.tolist()),
            notes=dict(examples.read.notes),
            unread=examples.read.unread,
        )

    def _plan(self, epoch: int) -> EpochPlan:
        with self._lock:
            found = self._plans.get(epoch)
            if first := found is None:
                found = self._plans[epoch] = Future()
                while len(self._plans) > 3:
                    self._plans.pop(next(iter(self._plans)))
        if first:  # outside the lock: the other epochs can be used meanwhile
            try:
                found.set_result(self._pack(epoch))
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def _pack(self, epoch: int) -> EpochPlan:
        examples = self.examples
        units = epoch_units(examples.source, tuple(self.passes.values()), self.seed, epoch)
        return pack_epoch(
            examples.unit_lengths,
            units[epoch_order(len(units), self.seed, epoch)],
            rows=self.batch_size,
            length=self.max_length,
            pack=self.packing,
            together=self.together,
        )


def _without_long(examples: Examples, length: int, together: bool) -> Examples:
    units = examples.unit_lengths
    needed = units.sum(1) if together else units.max(1, initial=0)
    kept = examples.select(needed <= length, LONGER_THAN_A_ROW)
    if not kept.units:
        raise DataError(
            f"no example is left for training: {kept.read.dropped_text or 'there were none'}; a row has "
            f"{length} positions and the shortest example needs {min(needed, default=0)}"
        )
    return kept


def _fill(
    examples: Examples, places: EpochPlan, rows: int, length: int, slots: int, targets: int
) -> Batch:
    documents, placed = examples.documents, places.document
    lengths = documents.lengths[placed]
    # for every token: its row, column, position in the document and index in documents.tokens
    row, start, slot = (np.repeat(x, lengths) for x in (places.row, places.start, places.slot))
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    column, source = start + within, np.repeat(documents.starts[placed], lengths) + within
    shape, at = (rows, length), (row, column)
    seqs = Sequences(
        tokens=_scatter(shape, at, documents.tokens[source]),
        positions=_scatter(shape, at, within),
        segments=_scatter(shape, at, slot + 1),
    )
    if examples.stage == "pretrain":
        row, column, target = _targets(lengths, within, row, column, source)
        at, weights = (row, column), examples.weights[target]
        tokens = _scatter(shape, at, documents.tokens[target])
        return TokenBatch(seqs, tokens, _scatter(shape, at, weights, np.float32))

    shape, last = (rows, slots), places.start + lengths - 1
    if examples.stage in VERDICT_STAGES:
        at = (places.row, places.slot)
        # In stage "rationale" a document's first token carries the weight of its verdict.
        weighted = documents.starts[placed] if examples.stage == "rationale" else placed
        weights = _scatter(shape, at, examples.weights[weighted], np.float32)
        label = _scatter(shape, at, examples.label[placed])
        verdicts = VerdictBatch(seqs, _scatter(shape, at, last), label, weights)
        if examples.stage == "finetune":
            return verdicts
        row, column, target = _targets(lengths, within, row, column, source)
        weights = examples.weights[target]
        row, column, target, weights = (x[weights > 0] for x in (row, column, target, weights))
        shape, at = (rows, targets), (row, np.arange(len(row)) - np.searchsorted(row, row))
        return RationaleBatch(
            seqs,
            _scatter(shape, at, column),
            _scatter(shape, at, documents.tokens[target]),
            _scatter(shape, at, weights, np.float32),
            *verdicts[1:],
        )
    # The two documents of a pair are adjacent in their row.
    at = (places.row[::2], places.slot[::2] // 2)
    chosen_at, rejected_at = (_scatter(shape, at, last[side::2]) for side in (0, 1))
    weights = _scatter(shape, at, examples.weights[placed[::2] // 2], np.float32)
    return BradleyTerryBatch(seqs, chosen_at, rejected_at, weights)


def _targets(
    lengths: np.ndarray, within: np.ndarray, row: np.ndarray, column: np.ndarray, source: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, column, index of the next token) of all tokens but the last of a document, which has no target."""
    inside = within < np.repeat(lengths, lengths) - 1
    return row[inside], column[inside], source[inside] + 1


def _scatter(
    shape: tuple[int, int], at: tuple[np.ndarray, ...], values: np.ndarray, dtype: type = np.int32
) -> np.ndarray:
    """Zeros, and `values` at the rows and columns `at`."""
    array = np.zeros(shape, dtype)
    array[at] = values
    return array
