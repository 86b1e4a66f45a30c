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

from gram_jax.batch import Forest
from gram_jax.model.attention.masked import attend_block
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import embed_tokens
from gram_jax.model.execution import Execution
from gram_jax.model.heads import hidden_at, read_labels
from gram_jax.model.layer import cast_and_gather, layer, rms_norm
from gram_jax.model.rope import rope_angles
from gram_jax.tree import Tree

_Kept = tuple[jax.Array, jax.Array]  # keys and values of all columns, [B, K, T, H]
_Carry = tuple[jax.Array, jax.Array, jax.Array]  # the residual stream [B, T, D], keys, values


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
    x = place(embed_tokens(params["embed"], forest.tokens, execution), "batch", None, "act_embed")
    rope = rope_angles(forest.positions, cfg)
    blocks = (jnp.max(forest.used) + shape.block - 1) // shape.block
    empty = jnp.zeros((B, cfg.kv_heads, T, cfg.head_size), execution.compute)
    empty = place(empty, "batch", "act_kv_heads", None, "head_size")
    attend = partial(_attend, forest, shape, execution)

    def run_layer(carry: _Carry, at: jax.Array) -> tuple[_Carry, None]:
        w = _layer_weights(params, at, cfg, execution)

        def block(number: jax.Array, carry: _Carry) -> _Carry:
            x, keys, values = carry
            first = number * shape.block

            def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, _Kept]:
                kept = _put_heads(keys, k, first), _put_heads(values, v, first)
                return attend(q, *kept, first), kept

            here, rope_here = _columns((x, rope), first, shape.block)
            here, kept = layer(here, w, cfg, rope_here, execution, mix)
            return _put(x, here, first), *kept

        return jax.lax.fori_loop(0, blocks, block, carry), None

    (x, keys, values), _ = jax.lax.scan(run_layer, (x, empty, empty), jnp.arange(cfg.layers - 1))

    # The last layer, whose queries and MLP the verdicts alone need.
    w = _layer_weights(params, cfg.layers - 1, cfg, execution)

    def store(number: jax.Array, kept: _Kept) -> _Kept:
        first = number * shape.block

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, _Kept]:
            return q, (_put_heads(kept[0], k, first), _put_heads(kept[1], v, first))

        # Only the keys and values are used: XLA removes everything else of this layer.
        here, rope_here = _columns((x, rope), first, shape.block)
        return layer(here, w, cfg, rope_here, execution, mix)[1]

    keys, values = jax.lax.fori_loop(0, blocks, store, (keys, values))

    def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return attend(q, keys, values, None), None

    cos, sin = rope
    rope_here = hidden_at(cos, forest.verdict_at), hidden_at(sin, forest.verdict_at)
    x, _ = layer(hidden_at(x, forest.verdict_at), w, cfg, rope_here, execution, mix)
    return read_labels(rms_norm(x, params["final_norm"], cfg.norm_eps), params, cfg, label_ids)


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
    q = q.transpose(0, 1, 3, 4, 2, 5)

    def row(of_row: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, until, *strips = of_row
        return jax.lax.map(lambda one: _strip(shape.reaches, k, v, until, *one), (q, *strips))

    out = jax.lax.map(row, (q, k, v, until, at, keys, reach))
    return out.transpose(0, 1, 4, 2, 3, 5).reshape(B, strips * size, N, H)


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
    """One strip: q [K, G, queries, H], at [queries], keys [R]; k, v: [K, T, H]. Returns q's shape."""

    def over(size: int) -> Callable[[], jax.Array]:
        def attend() -> jax.Array:
            here = keys[:size]
            k_s, v_s = (jnp.take(x, here, axis=1, mode="clip") for x in (k, v))
            ends = jnp.take(until, here, mode="clip")
            visible = (here >= 0) & (at[:, None] >= here) & (at[:, None] < ends)
            return attend_block(q, k_s, v_s, visible)[0].astype(v.dtype)

        return attend

    nothing = partial(jnp.zeros, q.shape, v.dtype)
    return jax.lax.switch(reach, [nothing, *(over(size) for size in reaches)])
