"""The decoder over a Forest: sequences that share their beginnings, each shared token computed once.

Rows are worked through in blocks of columns, as many as hold something, and attention in strips of
queries inside a block. A strip gathers the keys on its paths, so what it costs is what it sees, and
a softmax over them is that over the whole sequence: shared prefixes are exact. All products have
one shape, whatever a row holds. Hence one program serves every length, and the bits of a verdict
do not depend on what stands beside it (tests/test_forest.py).

The last layer makes keys and values of every column, and the rest for the verdicts alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.batch import Forest
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


@dataclass(frozen=True)
class ForestShape:
    """The static sizes of a Forest program.

    columns: T; verdicts: M; block: columns whose products are taken together; strip: queries that
    gather their keys together; reaches: how many keys that may be, rising, the last one R.
    block is a multiple of strip, columns of block.
    """

    columns: int
    verdicts: int
    block: int
    strip: int
    reaches: tuple[int, ...]

    @property
    def strips(self) -> int:
        """S of a row."""
        return self.columns // self.strip


def forest_logits(
    params: Tree,
    cfg: ModelConfig,
    forest: Forest,
    label_ids: tuple[int, int],
    execution: Execution,
    shape: ForestShape,
) -> jax.Array:
    """Next-token logits of the two labels at every verdict, f32 [B, M, Y]; unused slots mean nothing."""
    B, T = forest.tokens.shape
    place = execution.placement.constrain
    x = place(look_up(params["embed"], forest.tokens, execution), "batch", None, "act_embed")
    turn = rotation(forest.positions, cfg)
    blocks = (jnp.max(forest.used) + shape.block - 1) // shape.block
    empty = jnp.zeros((B, cfg.kv_heads, T, cfg.head_size), execution.compute)
    empty = place(empty, "batch", "act_kv_heads", None, "head_size")
    attend = partial(_attend, forest, shape, execution)

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
    x = _last_layer(params, cfg, forest, x, k, v, turn, blocks, execution, shape)
    return read_labels(rms_norm(x, params["final_norm"], cfg.norm_eps), params, cfg, label_ids)


def _last_layer(
    params: Tree,
    cfg: ModelConfig,
    forest: Forest,
    x: jax.Array,
    k: jax.Array,
    v: jax.Array,
    turn: Rotation,
    blocks: jax.Array,
    execution: Execution,
    shape: ForestShape,
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
    here = hidden_at(x, forest.verdict_at)
    cos, sin = turn
    turned = hidden_at(cos, forest.verdict_at), hidden_at(sin, forest.verdict_at)
    h = rms_norm(here, w["attention_norm"], cfg.norm_eps)
    q = heads(h, w, "q", cfg, turned, execution)
    mixed = _attend(forest, shape, execution, q, k, v, None)
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
    forest: Forest,
    shape: ForestShape,
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
        # Every verdict is a strip of one query that sees what its strip sees.
        at, strip = forest.verdict_at[..., None], forest.verdict_at // shape.strip
        keys = jnp.take_along_axis(forest.keys, strip[..., None], axis=1)
        reach = jnp.take_along_axis(forest.reach, strip, axis=1)
    else:
        B, size = q.shape[0], shape.block // shape.strip
        at = first + jnp.arange(shape.block).reshape(1, size, shape.strip)
        at = jnp.broadcast_to(at, (B, size, shape.strip))
        number = first // shape.strip
        keys, reach = _columns((forest.keys, forest.reach), number, size)

    placement = execution.placement
    local = partial(_rows, shape)
    if placement.mesh.size == 1:
        return local(q, k, v, forest.until, at, keys, reach)
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
    )(q, k, v, forest.until, at, keys, reach)


def _rows(
    shape: ForestShape,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    until: jax.Array,
    at: jax.Array,
    keys: jax.Array,
    reach: jax.Array,
) -> jax.Array:
    """What one device computes. at: columns of the queries, i32 [B, strips, queries]."""
    B, _, N, H = q.shape
    strips, size = at.shape[1:]
    K = k.shape[1]
    q = (q * (1 / math.sqrt(H))).reshape(B, strips, size, K, N // K, H)
    q = q.transpose(0, 1, 3, 4, 2, 5).reshape(B, strips, K, N // K * size, H)

    def row(of_row: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, until, *strips = of_row
        return jax.lax.map(lambda one: _strip(shape.reaches, k, v, until, *one), (q, *strips))

    out = jax.lax.map(row, (q, k, v, until, at, keys, reach))
    out = out.reshape(B, strips, K, N // K, size, H).transpose(0, 1, 4, 2, 3, 5)
    return out.reshape(B, strips * size, N, H)


def _strip(
    reaches: tuple[int, ...],
    k: jax.Array,
    v: jax.Array,
    until: jax.Array,
    q: jax.Array,
    at: jax.Array,
    keys: jax.Array,
    reach: jax.Array,
) -> jax.Array:
    """One strip: q [K, G * queries, H], at [queries], keys [R]; k, v: [K, T, H]. Returns q's shape."""

    def over(size: int) -> Callable[[], jax.Array]:
        def seen() -> jax.Array:
            here = keys[:size]
            k_s, v_s = (jnp.take(x, here, axis=1, mode="clip") for x in (k, v))
            ends = jnp.take(until, here, mode="clip")
            visible = (here >= 0) & (at[:, None] >= here) & (at[:, None] < ends)
            visible = jnp.tile(visible, (q.shape[1] // at.shape[0], 1))
            scores = jnp.where(visible, dot("kth,ksh->kts", q, k_s), HIDDEN)
            powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
            total = powers.sum(axis=-1, keepdims=True)
            return (dot("kts,ksh->kth", powers.astype(v.dtype), v_s) / total).astype(v.dtype)

        return seen

    nothing = partial(jnp.zeros, q.shape, v.dtype)
    return jax.lax.switch(reach, [nothing, *(over(size) for size in reaches)])
