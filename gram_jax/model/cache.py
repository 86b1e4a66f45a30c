"""A cache of keys and values, with which a decoder reads text in several calls.

Rows are right-aligned: all of them end in the same column, so an extension is written to the same columns in every row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.batch import Sequences
from gram_jax.model.attention import attention
from gram_jax.model.attention.masked import masked_attention
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import embed_tokens
from gram_jax.model.execution import Execution
from gram_jax.model.layer import cast_and_gather, layer, rms_norm
from gram_jax.model.layer_types import layer_variants
from gram_jax.tree import Tree

KeysValues = tuple[jax.Array, ...]
Carry = tuple[jax.Array, KeysValues]


class Cache(NamedTuple):
    """keys, values: [B, L, S, K, H] for S columns; end: i32, number of written columns.

    lengths: i32 [B], tokens of each row, which are in the columns end - lengths to end - 1.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array
    end: jax.Array


def prefill(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    execution: Execution,
    *,
    capacity: int,
) -> tuple[jax.Array, Cache]:
    """Read right-aligned rows: (hidden states of the last column [B, 1, D], a Cache with `capacity` free columns).

    tokens: i32 [B, P]; lengths: i32 [B]. The execution's attention must support padding before the text.
    """
    place = execution.placement.constrain
    P = tokens.shape[1]
    positions = jnp.arange(P, dtype=jnp.int32)[None] - (P - lengths[:, None])
    seqs = Sequences(tokens, jnp.maximum(positions, 0), (positions >= 0).astype(jnp.int32))
    x = embed_tokens(params["embed"], seqs.tokens, cfg, execution)
    x = place(x, "batch", "time", "act_embed")
    softcap = cfg.traits.attention_softcap
    variants = layer_variants(cfg, seqs.positions, P)

    def step(x: jax.Array, of_layer: tuple[Tree, Any]) -> tuple[jax.Array, KeysValues]:
        weights, number = of_layer
        rope, window = variants.of(number)

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeysValues]:
            options = {"window": window, "softcap": softcap}
            return attention(q, k, v, seqs.segments, execution, **options), (k, v)

        return layer(x, cast_and_gather(weights, cfg, execution), cfg, rope, execution, mix)

    def with_capacity(part: jax.Array) -> jax.Array:
        part = jnp.pad(part.swapaxes(0, 1), [(0, 0), (0, 0), (0, capacity), (0, 0), (0, 0)])
        return place(part, "batch", None, None, "act_kv_heads", "head_size")

    x, (keys, values) = jax.lax.scan(step, x, (params["layers"], variants.numbers))
    cache = Cache(with_capacity(keys), with_capacity(values), lengths, jnp.int32(P))
    return rms_norm(x[:, -1:], params["final_norm"], cfg), cache


def extend(
    params: Tree, cfg: ModelConfig, tokens: jax.Array, cache: Cache, execution: Execution
) -> tuple[jax.Array, Cache]:
    """Read T more tokens of every row, i32 [B, T]: (their hidden states [B, T, D], the Cache with them)."""
    after = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    positions = cache.lengths[:, None] + after
    columns = jnp.arange(cache.keys.shape[2])
    begun = columns >= (cache.end - cache.lengths)[:, None]  # [B, S]
    visible = begun[:, None] & (columns <= cache.end + after[:, None])
    return extend_visible(params, cfg, tokens, positions, visible, cache, execution)


def extend_visible(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    visible: jax.Array,
    cache: Cache,
    execution: Execution,
) -> tuple[jax.Array, Cache]:
    """`extend` with explicit positions i32 [B, T] and visible columns bool [B, T, S]."""
    x = embed_tokens(params["embed"], tokens, cfg, execution)
    x = execution.placement.constrain(x, "batch", None, "act_embed")
    softcap = cfg.traits.attention_softcap
    variants = layer_variants(cfg, positions, visible.shape[2])
    # Number of visible keys from each key on to the query: 1 for its own.
    distance = jnp.cumsum(visible[..., ::-1], axis=-1, dtype=jnp.int32)[..., ::-1]

    # The cache is carried and written in place; as an output of the scan it would be copied.
    def step(carry: Carry, inputs: tuple[jax.Array, Tree, Any]) -> tuple[Carry, None]:
        (x, kept), (number, weights, variant) = carry, inputs
        rope, window = variants.of(variant)

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeysValues]:
            at = (0, number, cache.end, 0, 0)
            written = tuple(
                jax.lax.dynamic_update_slice(stack, new[:, None].astype(stack.dtype), at)
                for stack, new in zip(kept, (k, v), strict=True)
            )
            keys, values = (
                jax.lax.dynamic_index_in_dim(stack, number, 1, keepdims=False).astype(q.dtype)
                for stack in written
            )
            seen = visible if window is None else visible & (distance <= window)
            out = masked_attention(q, keys, values, seen, cfg.head_size**-0.5, softcap)
            return out, written

        w = cast_and_gather(weights, cfg, execution)
        return layer(x, w, cfg, rope, execution, mix), None

    carry = x, (cache.keys, cache.values)
    inputs = jnp.arange(cfg.layers), params["layers"], variants.numbers
    (x, (keys, values)), _ = jax.lax.scan(step, carry, inputs)
    T = tokens.shape[1]
    hidden = rms_norm(x, params["final_norm"], cfg)
    return hidden, Cache(keys, values, cache.lengths + T, cache.end + T)
