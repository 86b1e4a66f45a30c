"""The decoder over a prefix tree: sequences that share prefixes, each shared token computed once.

Rows are computed in blocks of columns, as many as are in use, and attention in query blocks inside a block. A query
block gathers the keys on its paths, so its cost follows what it sees, and its softmax is that of the whole sequence:
prefix sharing is exact. All products have one shape, whatever a row holds and however long it is, so one program serves
every length and the bits of a verdict depend neither on the rest of the batch nor on the number of columns
(tests/test_prefix_tree.py).

The last layer computes keys and values of every column, and everything else for the verdicts alone.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.batch import Array
from gram_jax.model.attention.masked import attend_block
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import embed_tokens
from gram_jax.model.execution import Execution
from gram_jax.model.heads import hidden_at, label_logits
from gram_jax.model.layer import cast_and_gather, layer, rms_norm
from gram_jax.model.layer_types import Window, layer_variants
from gram_jax.tree import Tree

# Sizes on a CPU. Blocks of 512 columns are 3 % faster, but a single short pair takes twice as long
# (0.63 s instead of 0.37 s with SmolLM2-135M); 128 are 10 % slower. Blocks of 64 queries are 10 % slower than
# 128 and waste half as much if a node has to begin a query block.
BLOCK = 256  # columns whose products are computed together
QUERY_BLOCK = 64  # queries that gather their keys together; BLOCK is a multiple of it
VERDICT_BLOCK = 32  # verdicts that pass through the last layer together

_Kept = tuple[jax.Array, jax.Array]  # keys and values of all columns, [B, K, T, H]
_Carry = tuple[jax.Array, _Kept]  # the residual stream [B, T, D], keys and values


class PrefixTreeBatch(NamedTuple):
    """Rows of prefix trees (prefix_layout.py builds them): B rows, T columns, S query blocks, R keys, M verdicts.

    A column sees the earlier columns whose `subtree_end` is greater than its own index: those on its path.

    tokens, positions, subtree_end: i32 [B, T]; used: i32 [B], number of columns in use.
    keys: i32 [B, S, R], the columns on the paths of a query block, -1 after the last; key_budget: i32 [B, S], number
    of the key budget that holds them, from 1, and 0 for a block of padding.
    verdict_at: i32 [B, M], columns of the verdicts, 0 for unused slots.
    """

    tokens: Array
    positions: Array
    subtree_end: Array
    used: Array
    keys: Array
    key_budget: Array
    verdict_at: Array


class PrefixTreeShape(NamedTuple):
    """The static sizes of a prefix tree program.

    columns: T, a multiple of BLOCK; key_budgets: the possible numbers of gathered keys, rising, the last one R.
    """

    columns: int
    key_budgets: tuple[int, ...]

    @property
    def query_blocks(self) -> int:
        """S: query blocks of a row, and the largest number of verdicts."""
        return self.columns // QUERY_BLOCK

    @property
    def verdict_slots(self) -> int:
        """M: slots for verdicts, a multiple of VERDICT_BLOCK."""
        return -(-self.query_blocks // VERDICT_BLOCK) * VERDICT_BLOCK


@partial(jax.jit, static_argnames=("cfg", "label_ids", "execution", "shape"))
def prefix_tree_logits(
    params: Tree,
    cfg: ModelConfig,
    batch: PrefixTreeBatch,
    label_ids: tuple[int, int],
    execution: Execution,
    shape: PrefixTreeShape,
) -> jax.Array:
    """Next-token logits of the two labels at every verdict, f32 [B, M, Y], replicated; unused slots are undefined."""
    B, T = batch.tokens.shape
    place = execution.placement.constrain
    x = embed_tokens(params["embed"], batch.tokens, cfg, execution)
    x = place(x, "batch", None, "act_embed")
    variants = layer_variants(cfg, batch.positions, shape.key_budgets[-1])
    blocks = (jnp.max(batch.used) + BLOCK - 1) // BLOCK
    empty = jnp.zeros((B, cfg.kv_heads, T, cfg.head_size), execution.compute_dtype)
    empty = place(empty, "batch", "act_kv_heads", None, "head_size")
    attend = partial(_attend, batch, shape.key_budgets, cfg, execution)

    def run_layer(carry: _Carry, at: jax.Array) -> tuple[_Carry, None]:
        w = _layer_weights(params, at, cfg, execution)
        rope, window = variants.of(None if numbers is None else jnp.asarray(numbers)[at])

        def block(number: jax.Array, carry: _Carry) -> _Carry:
            x, before = carry
            first = number * BLOCK

            def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, _Kept]:
                kept = _put_heads(before, k, v, first)
                return attend(window, q, *kept, first), kept

            here, rope_here = _columns((x, rope), first, BLOCK)
            here, kept = layer(here, w, cfg, rope_here, execution, mix)
            return jax.lax.dynamic_update_slice_in_dim(x, here, first, axis=1), kept

        return jax.lax.fori_loop(0, blocks, block, carry), None

    numbers = variants.numbers
    start = x, (empty, empty)
    (x, kept), _ = jax.lax.scan(run_layer, start, jnp.arange(cfg.layers - 1))

    # The last layer, whose queries and MLP only the verdicts need.
    w = _layer_weights(params, cfg.layers - 1, cfg, execution)
    rope, window = variants.of(None if numbers is None else numbers[-1])

    def store(number: jax.Array, kept: _Kept) -> _Kept:
        first = number * BLOCK

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, _Kept]:
            return q, _put_heads(kept, k, v, first)

        # Only the keys and values are used: XLA removes everything else of this layer.
        here, rope_here = _columns((x, rope), first, BLOCK)
        return layer(here, w, cfg, rope_here, execution, mix)[1]

    keys, values = jax.lax.fori_loop(0, blocks, store, kept)

    def read_verdicts(number: jax.Array, logits: jax.Array) -> jax.Array:
        first = number * VERDICT_BLOCK
        (at,) = _columns((batch.verdict_at,), first, VERDICT_BLOCK)

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            return attend(window, q, keys, values, at), None

        rope_here = jax.tree.map(lambda x: hidden_at(x, at), rope)
        here, _ = layer(hidden_at(x, at), w, cfg, rope_here, execution, mix)
        here = rms_norm(here, params["final_norm"], cfg)
        found = label_logits(params, cfg, here, label_ids)
        return jax.lax.dynamic_update_slice_in_dim(logits, found, first, axis=1)

    slots = jnp.arange(1, batch.verdict_at.shape[1] + 1)
    used = jnp.max(jnp.where(batch.verdict_at > 0, slots, 1))
    blocks = (used + VERDICT_BLOCK - 1) // VERDICT_BLOCK
    empty = place(jnp.zeros((*batch.verdict_at.shape, 2), jnp.float32), "batch", None, None)
    logits = jax.lax.fori_loop(0, blocks, read_verdicts, empty)
    return execution.placement.constrain(logits)  # every process reads all of them


def _layer_weights(
    params: Tree, at: jax.Array | int, cfg: ModelConfig, execution: Execution
) -> Tree:
    """Weights of the layer at index `at`, ready for `layer`."""
    weights = jax.tree.map(
        lambda stack: jax.lax.dynamic_index_in_dim(stack, at, keepdims=False), params["layers"]
    )
    return cast_and_gather(weights, cfg, execution)


def _columns(arrays: tuple, first: jax.Array, size: int) -> tuple:
    """The same columns of arrays [B, T, ...]."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, axis=1), arrays)


def _put_heads(kept: _Kept, k: jax.Array, v: jax.Array, first: jax.Array) -> _Kept:
    """Put the keys and values [B, t, K, H] of the columns from `first` on into those of all."""
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(
            x, part.transpose(0, 2, 1, 3).astype(x.dtype), first, axis=2
        )
        for x, part in zip(kept, (k, v), strict=True)
    )
    return keys, values


def _attend(
    batch: PrefixTreeBatch,
    key_budgets: tuple[int, ...],
    cfg: ModelConfig,
    execution: Execution,
    window: Window,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: jax.Array,
) -> jax.Array:
    """Attention of the block of queries that begins at column `where`, or of the verdicts in columns [B, n].

    q: [B, BLOCK or n, N, H]; k, v: [B, K, T, H], filled as far as the queries see. Returns q's shape.
    """
    if where.ndim:
        # Every verdict is a query block of one query that sees what its block sees.
        at, of_block = where[..., None], where // QUERY_BLOCK
        keys = jnp.take_along_axis(batch.keys, of_block[..., None], axis=1)
        budget = jnp.take_along_axis(batch.key_budget, of_block, axis=1)
    else:
        B, size = q.shape[0], BLOCK // QUERY_BLOCK
        at = where + jnp.arange(BLOCK).reshape(1, size, QUERY_BLOCK)
        at = jnp.broadcast_to(at, (B, size, QUERY_BLOCK))
        keys, budget = _columns((batch.keys, batch.key_budget), where // QUERY_BLOCK, size)

    placement = execution.placement
    local = partial(_rows, key_budgets, cfg.traits.attention_softcap)
    # The first position that a query sees, by its column.
    positions = None if window is None else (batch.positions, batch.positions - window + 1)
    if placement.mesh.size == 1:
        return local(q, k, v, batch.subtree_end, positions, at, keys, budget)
    wide = placement.spec(("batch", None, "act_heads", None))
    thin = placement.spec(("batch", "act_kv_heads", None, None))
    row = placement.spec(("batch", None))
    return jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(wide, thin, thin, row, None if window is None else (row, row), row, row, row),
        out_specs=wide,
        check_vma=False,
    )(q, k, v, batch.subtree_end, positions, at, keys, budget)


def _rows(
    key_budgets: tuple[int, ...],
    softcap: float | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    positions: tuple[jax.Array, jax.Array] | None,
    at: jax.Array,
    keys: jax.Array,
    budget: jax.Array,
) -> jax.Array:
    """What one device computes. at: columns of the queries, i32 [B, query blocks, queries]."""
    B, _, N, H = q.shape
    blocks_per_row, size = at.shape[1:]
    K = k.shape[1]
    q = (q * (1 / math.sqrt(H))).reshape(B, blocks_per_row, size, K, N // K, H)
    q = q.transpose(0, 1, 3, 4, 2, 5)

    def row(of_row: tuple[Any, ...]) -> jax.Array:
        q, k, v, subtree_end, positions, *blocks = of_row
        return jax.lax.map(
            lambda one: _query_block(key_budgets, softcap, k, v, subtree_end, positions, *one),
            (q, *blocks),
        )

    out = jax.lax.map(row, (q, k, v, subtree_end, positions, at, keys, budget))
    return out.transpose(0, 1, 4, 2, 3, 5).reshape(B, blocks_per_row * size, N, H)


def _query_block(
    key_budgets: tuple[int, ...],
    softcap: float | None,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    positions: tuple[jax.Array, jax.Array] | None,
    q: jax.Array,
    at: jax.Array,
    keys: jax.Array,
    budget: jax.Array,
) -> jax.Array:
    """One query block: q [K, G, queries, H], at [queries], keys [R]; k, v: [K, T, H]. Returns q's shape."""

    def attend(size: int) -> jax.Array:
        here = keys[:size]
        k_s, v_s = (jnp.take(x, here, axis=1, mode="clip") for x in (k, v))
        ends = jnp.take(subtree_end, here, mode="clip")
        visible = (here >= 0) & (at[:, None] >= here) & (at[:, None] < ends)
        if positions is not None:
            own, first = positions
            visible &= jnp.take(own, here, mode="clip") >= jnp.take(first, at)[:, None]
        return attend_block(q, k_s, v_s, visible, softcap)[0].astype(v.dtype)

    nothing = partial(jnp.zeros, q.shape, v.dtype)
    return jax.lax.switch(budget, [nothing, *(partial(attend, size) for size in key_budgets)])
