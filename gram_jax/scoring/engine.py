"""From token sequences to label logit differences: lay out the calls, execute them, put results in order.

All scoring passes through `ScoringEngine.label_logit_diffs`. Two programs do the work: "prefix_shared" computes the
prefixes that sequences share once (prefix_tree.py), "padded" has a row for each order of a pair (padded.py).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from gram_jax.compiler import with_compiler_options
from gram_jax.errors import explain_out_of_memory
from gram_jax.finite import check_finite
from gram_jax.judge.encode import Encoded
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.scoring.calls import Call, WorkCounters
from gram_jax.scoring.padded import pad_items, padded_calls, padded_lengths, padded_logits
from gram_jax.scoring.prefix_layout import lay_out, prefix_tree_shape
from gram_jax.scoring.prefix_tree import prefix_tree_logits
from gram_jax.tree import Tree

ScoringMethod = Literal["prefix_shared", "padded"]
# Positions of one call and device. On a CPU a padded call has a fixed number of positions, so a larger one makes a
# single pair wait for dummy rows; a prefix tree call computes only the blocks in use, but a longer row lets more
# sequences wait for each other, and its keys and values take memory.
CPU_TOKENS = {"prefix_shared": 8192, "padded": 1024}
ACCELERATOR_TOKENS = 32768
# A tree of all sequences of one response should rarely be cut: each part computes its prefix again.
RANKING_TREE_TOKENS = 32768
STATIC = ("cfg", "label_ids", "execution")  # arguments of both programs
CALLS_IN_FLIGHT = 4  # calls dispatched before the first result is fetched


class ScoringEngine:
    """A judge's weights and the programs over them."""

    def __init__(
        self,
        params: Tree,
        cfg: ModelConfig,
        label_ids: tuple[int, int],
        execution: Execution,
        max_length: int,
        method: ScoringMethod | None = None,
        tokens_per_call: int | None = None,
    ):
        """max_length: tokens of the longest comparison. tokens_per_call: positions of one call and device.

        method: which program scores pairs, by default prefix sharing on CPUs, else padded rows: GPUs and TPUs have
        attention kernels that a prefix tree cannot use, and rows that are sharded over a sequence axis need ring
        attention. Rankings always share prefixes.
        """
        self.params, self.cfg, self.label_ids = params, cfg, label_ids
        self.execution, self.max_length = execution, max_length
        placement = execution.placement
        shared = placement.platform == "cpu" and placement.mesh.shape["sequence"] == 1
        self.method: ScoringMethod = method or ("prefix_shared" if shared else "padded")
        self.tokens_per_call = tokens_per_call or default_tokens_per_call(execution, self.method)
        self.counters = WorkCounters()
        self.lengths = padded_lengths(max_length)
        self.pair_shape = prefix_tree_shape(max_length, self.tokens_per_call)
        columns = max(RANKING_TREE_TOKENS, self.tokens_per_call)
        self.ranking_shape = prefix_tree_shape(max_length, columns)

    @property
    def program(self) -> str:
        """The program of pairs. The shapes of a padded one follow from its number of tokens."""
        tokens = f", {self.tokens_per_call} tokens" if self.method == "padded" else ""
        return f"{self.method}{tokens}"

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Logit of the first label minus that of the second of every sequence, f32 [n], in their order.

        sequences: each a comparison in one order. paired: sequences 2i and 2i + 1 are the two orders of a pair.
        Otherwise consecutive sequences with the same question share it, and the first response too if it is the same.
        The bits of a result depend on nothing but its sequence (paired: but its pair). progress is called with the
        number of sequences that each call has scored. Raises NonFiniteError if a logit is NaN or infinite.
        """
        diffs = np.zeros(len(sequences), np.float32)
        in_flight: deque[tuple[Call, jax.Array]] = deque()

        def fetch() -> None:
            call, logits = in_flight.popleft()
            logits = np.asarray(jax.device_get(logits))[call.rows, call.slots]
            diffs[call.indices] = logits[:, 0] - logits[:, 1]
            progress(len(call.indices))

        program, calls = self._layout(sequences, paired)
        with self._explain_out_of_memory():
            for call in calls:
                self.counters += call.work
                in_flight.append((call, self._run(program, call.batch)))
                if len(in_flight) > CALLS_IN_FLIGHT:
                    fetch()
            while in_flight:
                fetch()
        return check_finite(diffs, "the label logits", "comparisons")

    def warm_up(self, *, rankings: bool = False) -> None:
        """Compile the programs that pairs need, and with `rankings` that of rankings, before the first call."""
        with self._explain_out_of_memory():
            if self.method == "padded":
                for length in self.lengths:
                    batch = self._empty_pairs(length)
                    jax.block_until_ready(self._run(self._padded, batch))
            shapes = [self.pair_shape] * (self.method == "prefix_shared")
            # A single token, so that running takes no longer than compiling.
            token = Encoded(np.zeros(1, np.int32), np.zeros(1, np.float32))
            for shape in shapes + [self.ranking_shape] * rankings:
                (call,) = lay_out([token], shape, self._shards, paired=False)
                program = partial(self._tree, shape=shape)
                jax.block_until_ready(self._run(program, call.batch))

    def padded_program(self, length: int) -> tuple[Any, tuple[Any, ...]]:
        """The jitted program that scores pairs padded to `length`, and its arguments, the batch as shapes.

        `program.lower(*arguments)` is the program that scoring runs; the weights may be shapes as well.
        """
        sharding = self.execution.placement.sharding("batch")
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self._empty_pairs(length),
        )
        return self._padded, (self.params, self.cfg, batch, self.label_ids, self.execution)

    def pairs_per_call(self, length: int) -> int:
        """Number of pairs of this padded length in a call: fixed, and a multiple of the mesh's batch shards."""
        return max(1, self.tokens_per_call // (2 * length)) * self._shards

    @property
    def _padded(self) -> Any:
        return with_compiler_options(padded_logits, self.execution.placement, *STATIC)

    @property
    def _tree(self) -> Any:
        return with_compiler_options(prefix_tree_logits, self.execution.placement, *STATIC, "shape")

    @property
    def _shards(self) -> int:
        return self.execution.placement.batch_shards

    def _empty_pairs(self, length: int) -> Any:
        return pad_items([np.zeros(1, np.int32)] * 2 * self.pairs_per_call(length), 2, length)

    def _layout(
        self, sequences: Sequence[Encoded], paired: bool
    ) -> tuple[Callable[..., jax.Array], Iterator[Call]]:
        """The program for these sequences, and its calls."""
        if paired and self.method == "padded":
            sizes = {length: self.pairs_per_call(length) for length in self.lengths}
            return self._padded, padded_calls(sequences, self.lengths, sizes)
        shape = self.pair_shape if paired else self.ranking_shape
        calls = lay_out(sequences, shape, self._shards, paired=paired)
        return partial(self._tree, shape=shape), calls

    def _run(self, program: Callable[..., jax.Array], batch: Any) -> jax.Array:
        sharding = self.execution.placement.sharding("batch")
        batch = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding, lambda at: x[at]), batch
        )
        return program(self.params, self.cfg, batch, self.label_ids, self.execution)

    def _explain_out_of_memory(self) -> AbstractContextManager[None]:
        return explain_out_of_memory(
            "a scoring call does not fit",
            f"Try fewer tokens per call (now {self.tokens_per_call:,} for each device), bfloat16 as compute type, or a "
            "smaller model",
        )


def default_tokens_per_call(execution: Execution, method: ScoringMethod) -> int:
    """Positions of a call and device."""
    cpu = execution.placement.platform == "cpu"
    return CPU_TOKENS[method] if cpu else ACCELERATOR_TOKENS
