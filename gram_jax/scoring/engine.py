"""From token sequences to label logits: plan the calls, execute them, put the results back in place.

Scoring of pairs, all comparisons of a ranking and the calls of a server pass through `ScoringEngine.gaps`. Two
programs do the work. "shared" computes what comparisons begin with once (scoring/prefix_tree.py);
"rows" pads both orders of a pair to one of a few lengths and can use the attention kernels of GPUs and TPUs.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from gram_jax.batch import Forest, PairBatch
from gram_jax.errors import explain_out_of_memory
from gram_jax.judge.encode import Encoded
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.scoring.padded import pad_pairs, padded_lengths
from gram_jax.scoring.pair import pair_logits
from gram_jax.scoring.prefix_layout import Group, forest_shape, lay_out, pairs_seen
from gram_jax.scoring.prefix_tree import ForestShape, forest_logits
from gram_jax.tree import Tree

Method = Literal["shared", "rows"]
# Positions of one call and device. Calls are as long as what they hold; a longer row only lets more
# comparisons wait for each other, and its keys and values take memory.
COLUMNS = {"cpu": 8192, "gpu": 32768, "tpu": 32768}
# Rows are padded to a fixed number of positions, so more would make a lone pair wait for dummy rows.
PADDED = {"cpu": 1024, "gpu": 32768, "tpu": 32768}
# A tree of all rivals of one response should not be cut often: each part computes its beginning again.
LONGEST_TREE = 32768
IN_FLIGHT = 4  # calls handed to the device before the first result is awaited


@dataclass
class Work:
    """What was computed so far. sequences: comparisons in one order.

    asked: tokens of the comparisons one by one; distinct: those left when shared beginnings count
    once (by the program that shares); computed: positions that went through the model, padding
    included; seen: pairs of a distinct token and one that it attends to.
    """

    sequences: int = 0
    calls: int = 0
    asked: int = 0
    distinct: int = 0
    computed: int = 0
    seen: int = 0

    def __sub__(self, before: "Work") -> "Work":
        """What came since."""
        return Work(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


@partial(jax.jit, static_argnames=("cfg", "label_ids", "execution", "shape"))
def _judge_forest(
    params: Tree,
    cfg: ModelConfig,
    forest: Forest,
    label_ids: tuple[int, int],
    execution: Execution,
    shape: ForestShape,
) -> jax.Array:
    # Every process reads all of them.
    logits = forest_logits(params, cfg, forest, label_ids, execution, shape)
    return execution.placement.constrain(logits)


@partial(jax.jit, static_argnames=("cfg", "label_ids", "execution"))
def _judge_rows(
    params: Tree,
    cfg: ModelConfig,
    pair: PairBatch,
    label_ids: tuple[int, int],
    execution: Execution,
) -> jax.Array:
    return execution.placement.constrain(pair_logits(params, cfg, pair, label_ids, execution))


@dataclass
class ScoringEngine:
    """A judge's weights and the programs over them.

    method: which program scores pairs. max_length: tokens of the longest comparison.
    tokens_per_call: positions of one call and device.
    """

    params: Tree
    cfg: ModelConfig
    label_ids: tuple[int, int]
    execution: Execution
    max_length: int
    method: Method
    tokens_per_call: int
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        self.lengths = padded_lengths(self.max_length)
        self.pair_shape = forest_shape(self.max_length, self.tokens_per_call)
        self.tree_shape = forest_shape(self.max_length, max(LONGEST_TREE, self.tokens_per_call))

    def gaps(
        self,
        groups: Iterable[Sequence[Encoded]],
        *,
        pairs: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Logit of the first label minus that of the second of every comparison, f32 [n], in order.

        groups: comparisons that begin alike, next to each other; pairs: each group is both orders of
        one pair. progress is called with the number of comparisons that a call has answered.
        """
        groups = list(groups)
        starts = np.cumsum([0, *(len(group) for group in groups)])
        found = np.zeros(starts[-1], np.float32)
        flying: deque[tuple[Sequence[tuple[Any, int]], jax.Array]] = deque()

        def land() -> None:
            places, logits = flying.popleft()
            logits = np.asarray(jax.device_get(logits))
            for place, index in places:
                found[index] = logits[(*place, 0)] - logits[(*place, 1)]
            progress(len(places))

        calls = self._pair_calls if pairs and self.method == "rows" else self._tree_calls
        with self._explain_out_of_memory():
            for call in calls(groups, starts, pairs):
                flying.append(call)
                if len(flying) > IN_FLIGHT:
                    land()
            while flying:
                land()
        self.work.sequences += len(found)
        return found

    def warm_up(self, *, trees: bool = False) -> None:
        """Compile what scoring pairs needs, and what ranking needs besides, before the first call."""
        with self._explain_out_of_memory():
            if self.method == "rows":
                one = np.zeros(1, np.int32)
                for length in self.lengths:
                    batch = pad_pairs([(one, one)], self.pairs_per_call(length), length)
                    jax.block_until_ready(self._run_rows(batch))
            shapes = [self.pair_shape] * (self.method == "shared") + [self.tree_shape] * trees
            for shape in shapes:
                # Nothing is in it, so that it takes no longer than to compile.
                empty = Encoded(np.zeros(1, np.int32), np.zeros(1, np.float32))
                group = Group(range(1), [empty], aligned=False)
                (call,) = lay_out([group], shape, self.execution.placement.batch_shards)
                jax.block_until_ready(self._run_forest(call.forest, shape))

    def padded_length(self, group: Sequence[Encoded]) -> int:
        """The length to which rows of a pair are padded."""
        return self.lengths[bisect_left(self.lengths, max(len(side.tokens) for side in group))]

    def pairs_per_call(self, length: int) -> int:
        """How many pairs of this padded length one call scores: fixed, and a multiple of the mesh's batch shards."""
        shards = self.execution.placement.batch_shards
        return max(1, self.tokens_per_call // (2 * length)) * shards

    def _tree_calls(
        self, groups: Sequence[Sequence[Encoded]], starts: np.ndarray, pairs: bool
    ) -> Iterator[tuple[list[tuple[Any, int]], jax.Array]]:
        shape = self.pair_shape if pairs else self.tree_shape
        laid = (
            Group(range(start, start + len(group)), group, aligned=not pairs)
            for group, start in zip(groups, starts[:-1], strict=True)
        )
        for call in lay_out(laid, shape, self.execution.placement.batch_shards):
            self.work.calls += 1
            self.work.asked += call.asked
            self.work.distinct += call.tokens
            self.work.seen += call.seen
            blocks = -(-int(call.forest.used.max()) // shape.block)
            self.work.computed += blocks * shape.block * len(call.forest.used)
            places = [((row, slot), index) for row, slot, index in call.verdicts]
            yield places, self._run_forest(call.forest, shape)

    def _pair_calls(
        self, groups: Sequence[Sequence[Encoded]], starts: np.ndarray, pairs: bool
    ) -> Iterator[tuple[list[tuple[Any, int]], jax.Array]]:
        by_length: dict[int, list[int]] = defaultdict(list)
        for at, group in enumerate(groups):
            by_length[self.padded_length(group)].append(at)
        for length in sorted(by_length, reverse=True):
            rows, members = self.pairs_per_call(length), by_length[length]
            for first in range(0, len(members), rows):
                here = members[first : first + rows]
                sides = [[side.tokens for side in groups[at]] for at in here]
                tokens = sum(len(side) for pair in sides for side in pair)
                self.work.calls += 1
                self.work.asked += tokens
                self.work.distinct += tokens
                self.work.seen += sum(pairs_seen(len(side)) for pair in sides for side in pair)
                self.work.computed += 2 * rows * length
                places = [
                    ((row, order), starts[at] + order)
                    for row, at in enumerate(here)
                    for order in (0, 1)
                ]
                yield places, self._run_rows(pad_pairs(sides, rows, length))

    def _run_forest(self, forest: Forest, shape: ForestShape) -> jax.Array:
        forest = self._spread(forest)
        return _judge_forest(self.params, self.cfg, forest, self.label_ids, self.execution, shape)

    def _run_rows(self, batch: PairBatch) -> jax.Array:
        batch = self._spread(batch)
        return _judge_rows(self.params, self.cfg, batch, self.label_ids, self.execution)

    def _spread(self, batch: Any) -> Any:
        spread = self.execution.placement.sharding("batch")
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, spread, lambda at: x[at]), batch
        )

    def _explain_out_of_memory(self) -> AbstractContextManager[None]:
        return explain_out_of_memory(
            "a scoring call does not fit",
            f"Try fewer tokens a call (now {self.tokens_per_call:,} for each device), bfloat16 as compute type, or a "
            "smaller model",
        )


def method_for(execution: Execution) -> Method:
    """Which program scores pairs where nobody chose.

    On a CPU shared beginnings win. GPUs and TPUs have attention kernels that a forest cannot use, and
    rows cut over a sequence axis need the ring.
    """
    mesh = execution.placement.mesh
    cut = mesh.shape["sequence"] > 1
    return "shared" if mesh.devices.flat[0].platform == "cpu" and not cut else "rows"


def default_tokens(execution: Execution, method: Method) -> int:
    """Positions of a call and device where nobody chose."""
    platform = execution.placement.mesh.devices.flat[0].platform
    table = COLUMNS if method == "shared" else PADDED
    return table.get(platform, table["gpu"])
