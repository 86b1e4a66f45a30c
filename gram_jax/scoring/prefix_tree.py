"""The decoder over a prefix tree: sequences that share prefixes, each shared token computed once.

Rows are computed in blocks of columns, as many as are in use, and attention in query blocks inside a block. A query
block gathers the keys on its paths, so its cost follows what it sees, and its softmax is that of the whole sequence:
prefix sharing is exact. All products have one shape, whatever a row holds. Hence one program serves every length, and
the bits of a verdict do not depend on the rest of the batch (tests/test_prefix_tree.py).

The last layer computes keys and values of every column, and everything else for the verdicts alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.model.attention.scores import HIDDEN, dot
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import (
    at_use,
    finish_layer,
    heads,
    hidden_at,
    look_up,
    read_labels,
    rms_norm,
)
from gram_jax.model.execution import Execution
from gram_jax.model.rope import Rotation, rotation
from gram_jax.tree import Tree

# numpy's on the host, jax's on devices.
Array = Any


class PrefixTreeBatch(NamedTuple):
    """Rows of prefix trees (prefix_layout.py builds them): B rows, T columns, S query blocks, R keys, M verdicts.

    A column sees the columns before it whose `subtree_end` lies behind it: those on its own path.

    tokens, positions, subtree_end: i32 [B, T]; used: i32 [B], number of columns in use.
    keys: i32 [B, S, R], the columns on the paths of a query block, -1 after the last; key_budget: i32 [B, S], which of
    the shape's key budgets holds them, from 1, 0 for a block of padding.
    verdict_at: i32 [B, M], columns of the verdicts, 0 for unused slots.
    """

    tokens: Array
    positions: Array
    subtree_end: Array
    used: Array
    keys: Array
    key_budget: Array
    verdict_at: Array


@dataclass(frozen=True)
class PrefixTreeShape:
    """The static sizes of a prefix tree program.

    columns: T; verdicts: M; block: columns whose products are computed together; query_block: queries that gather
    their keys together; key_budgets: the numbers of keys that may be, rising, the last one R. block is a multiple of
    query_block, columns of block.
    """

    columns: int
    verdicts: int
    block: int
    query_block: int
    key_budgets: tuple[int, ...]

    @property
    def query_blocks(self) -> int:
        """S: query blocks of a row."""
        return self.columns // self.query_block


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
    x = place(look_up(params["embed"], batch.tokens, execution), "batch", None, "act_embed")
    turn = rotation(batch.positions, cfg)
    blocks = (jnp.max(batch.used) + shape.block - 1) // shape.block
    empty = jnp.zeros((B, cfg.kv_heads, T, cfg.head_size), execution.compute)
    empty = place(empty, "batch", "act_kv_heads", None, "head_size")
    attend = partial(_attend, batch, shape, execution)

    def layer(carry: tuple[jax.Array, ...], at: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        w = at_use(_of_layer(params, at), cfg, execution)

        def block(number: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            x, k, v = carry
            first = number * shape.block
            here, turned = _columns((x, turn), first, shape.block)
            h = rms_norm(here, w["attention_norm"], cfg.norm_eps)
            q = heads(h, w, "q", cfg, turned, execution)
            k = _put_heads(k, heads(h, w, "k", cfg, turned, execution), first)
            v = _put_heads(v, heads(h, w, "v", cfg, turned, execution), first)
            here = finish_layer(here, attend(q, k, v, first), w, cfg, execution)
            return _put(x, here, first), k, v

        return jax.lax.fori_loop(0, blocks, block, carry), None

    (x, k, v), _ = jax.lax.scan(layer, (x, empty, empty), jnp.arange(cfg.layers - 1))
    x = _last_layer(params, cfg, batch, x, k, v, turn, blocks, execution, shape)
    logits = read_labels(rms_norm(x, params["final_norm"], cfg.norm_eps), params, cfg, label_ids)
    return execution.placement.constrain(logits)  # every process reads all of them


def _last_layer(
    params: Tree,
    cfg: ModelConfig,
    batch: PrefixTreeBatch,
    x: jax.Array,
    k: jax.Array,
    v: jax.Array,
    turn: Rotation,
    blocks: jax.Array,
    execution: Execution,
    shape: PrefixTreeShape,
) -> jax.Array:
    """The residual stream of the verdicts, [B, M, D], from that of all columns before the last layer."""
    w = at_use(_of_layer(params, cfg.layers - 1), cfg, execution)

    def block(number: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        k, v = carry
        first = number * shape.block
        here, turned = _columns((x, turn), first, shape.block)
        h = rms_norm(here, w["attention_norm"], cfg.norm_eps)
        k = _put_heads(k, heads(h, w, "k", cfg, turned, execution), first)
        return k, _put_heads(v, heads(h, w, "v", cfg, turned, execution), first)

    k, v = jax.lax.fori_loop(0, blocks, block, (k, v))
    here = hidden_at(x, batch.verdict_at)
    cos, sin = turn
    turned = hidden_at(cos, batch.verdict_at), hidden_at(sin, batch.verdict_at)
    h = rms_norm(here, w["attention_norm"], cfg.norm_eps)
    q = heads(h, w, "q", cfg, turned, execution)
    mixed = _attend(batch, shape, execution, q, k, v, None)
    return finish_layer(here, mixed, w, cfg, execution)


def _of_layer(params: Tree, at: jax.Array | int) -> Tree:
    def one(weights: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(weights, at, keepdims=False)

    return tree.map_with_path(lambda _, weights: one(weights), params["layers"])


def _columns(arrays: tuple, first: jax.Array, size: int) -> tuple:
    """The same columns of arrays [B, T, ...]."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, axis=1), arrays)


def _put(x: jax.Array, part: jax.Array, first: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), first, axis=1)


def _put_heads(x: jax.Array, part: jax.Array, first: jax.Array) -> jax.Array:
    """Keys or values [B, t, K, H] of some columns into those of all, [B, K, T, H]."""
    part = part.transpose(0, 2, 1, 3)
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), first, axis=2)


def _attend(
    batch: PrefixTreeBatch,
    shape: PrefixTreeShape,
    execution: Execution,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    first: jax.Array | None,
) -> jax.Array:
    """Attention of the block of queries that begins at column `first`, or (None) of the verdicts.

    q: [B, block or M, N, H]; k, v: [B, K, T, H], of which what the queries see is there. Returns q's shape.
    """
    if first is None:
        # Every verdict is a query block of one query that sees what its block sees.
        at, of_block = batch.verdict_at[..., None], batch.verdict_at // shape.query_block
        keys = jnp.take_along_axis(batch.keys, of_block[..., None], axis=1)
        budget = jnp.take_along_axis(batch.key_budget, of_block, axis=1)
    else:
        B, size = q.shape[0], shape.block // shape.query_block
        at = first + jnp.arange(shape.block).reshape(1, size, shape.query_block)
        at = jnp.broadcast_to(at, (B, size, shape.query_block))
        number = first // shape.query_block
        keys, budget = _columns((batch.keys, batch.key_budget), number, size)

    placement = execution.placement
    local = partial(_rows, shape)
    if placement.mesh.size == 1:
        return local(q, k, v, batch.subtree_end, at, keys, budget)
    spec = placement.spec
    wide, thin = (
        spec(("batch", None, "act_heads", None)),
        spec(("batch", "act_kv_heads", None, None)),
    )
    row = spec(("batch", None))
    return jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(wide, thin, thin, row, row, row, row),
        out_specs=wide,
        check_vma=False,
    )(q, k, v, batch.subtree_end, at, keys, budget)


def _rows(
    shape: PrefixTreeShape,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    at: jax.Array,
    keys: jax.Array,
    budget: jax.Array,
) -> jax.Array:
    """What one device computes. at: columns of the queries, i32 [B, query blocks, queries]."""
    B, _, N, H = q.shape
    blocks_per_row, size = at.shape[1:]
    K = k.shape[1]
    q = (q * (1 / math.sqrt(H))).reshape(B, blocks_per_row, size, K, N // K, H)
    q = q.transpose(0, 1, 3, 4, 2, 5).reshape(B, blocks_per_row, K, N // K * size, H)

    def row(of_row: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, subtree_end, *blocks = of_row
        return jax.lax.map(
            lambda one: _query_block(shape.key_budgets, k, v, subtree_end, *one), (q, *blocks)
        )

    out = jax.lax.map(row, (q, k, v, subtree_end, at, keys, budget))
    out = out.reshape(B, blocks_per_row, K, N // K, size, H).transpose(0, 1, 4, 2, 3, 5)
    return out.reshape(B, blocks_per_row * size, N, H)


def _query_block(
    key_budgets: tuple[int, ...],
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    q: jax.Array,
    at: jax.Array,
    keys: jax.Array,
    budget: jax.Array,
) -> jax.Array:
    """One query block: q [K, G * queries, H], at [queries], keys [R]; k, v: [K, T, H]. Returns q's shape."""

    def over(size: int) -> Callable[[], jax.Array]:
        def seen() -> jax.Array:
            here = keys[:size]
            k_s, v_s = (jnp.take(x, here, axis=1, mode="clip") for x in (k, v))
            ends = jnp.take(subtree_end, here, mode="clip")
            visible = (here >= 0) & (at[:, None] >= here) & (at[:, None] < ends)
            visible = jnp.tile(visible, (q.shape[1] // at.shape[0], 1))
            scores = jnp.where(visible, dot("kth,ksh->kts", q, k_s), HIDDEN)
            powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
            total = powers.sum(axis=-1, keepdims=True)
            return (dot("kts,ksh->kth", powers.astype(v.dtype), v_s) / total).astype(v.dtype)

        return seen

    nothing = partial(jnp.zeros, q.shape, v.dtype)
    return jax.lax.switch(budget, [nothing, *(over(size) for size in key_budgets)])
