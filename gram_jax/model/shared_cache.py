"""A cache for several continuations of each prompt, which share the prompt's keys and values.

A token attends to its prompt, to the earlier tokens of its continuation and to itself; the three are merged by their
log-sum-exp, as in a prefix tree. Letters: u prompts, n continuations of each, k key-value heads, g query heads of each,
s keys, h head size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.model.attention.masked import attend_block, soft_cap
from gram_jax.model.cache import KeysValues, prefill
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import embed_tokens
from gram_jax.model.execution import Execution
from gram_jax.model.layer import cast_and_gather, layer, rms_norm
from gram_jax.model.layer_types import layer_variants
from gram_jax.model.matmul import dot
from gram_jax.tree import Tree


class SharedCache(NamedTuple):
    """prompt: keys and values of the prompts, [L, U, K, P, H], right-aligned; lengths: i32 [U], their tokens.

    own: keys and values of the continuations, [L, U, n, K, S, H]; end: i32, number of written columns of these.
    """

    prompt: KeysValues
    own: KeysValues
    lengths: jax.Array
    end: jax.Array


def read_prompts(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    execution: Execution,
    *,
    copies: int,
    capacity: int,
) -> tuple[jax.Array, SharedCache]:
    """Read right-aligned prompts, i32 [U, P]: (hidden states of their last tokens [U, 1, D], a SharedCache).

    copies: number of continuations of each prompt; capacity: of each, in tokens.
    """
    place = execution.placement.constrain
    hidden, cache = prefill(params, cfg, tokens, lengths, execution, capacity=0)
    U, L, _, K, H = cache.keys.shape

    def by_head(part: jax.Array) -> jax.Array:
        return place(part.transpose(1, 0, 3, 2, 4), None, "batch", "act_kv_heads", None, None)

    def empty(part: jax.Array) -> jax.Array:
        zeros = jnp.zeros((L, U, copies, K, capacity, H), part.dtype)
        return place(zeros, None, "batch", None, "act_kv_heads", None, None)

    kept = cache.keys, cache.values
    own = empty(cache.keys), empty(cache.values)
    prompt = by_head(kept[0]), by_head(kept[1])
    return hidden, SharedCache(prompt, own, lengths, jnp.int32(0))


def extend_copies(
    params: Tree, cfg: ModelConfig, tokens: jax.Array, cache: SharedCache, execution: Execution
) -> tuple[jax.Array, SharedCache]:
    """Read one more token of every continuation, i32 [U, n]: (hidden states [U n, 1, D], the SharedCache with it)."""
    U, n = tokens.shape
    lengths = jnp.repeat(cache.lengths, n)
    positions = (lengths + cache.end)[:, None]
    P, S = cache.prompt[0].shape[3], cache.own[0].shape[4]
    x = embed_tokens(params["embed"], tokens.reshape(U * n, 1), cfg, execution)
    x = execution.placement.constrain(x, "batch", None, "act_embed")
    variants = layer_variants(cfg, positions, P + S)
    # Number of keys from each one on to the query, its own included.
    of_prompt = jnp.arange(P, 0, -1, dtype=jnp.int32)[None] + cache.end + 1
    in_prompt = of_prompt - cache.end - 1 <= cache.lengths[:, None]  # [U, P]
    of_own = cache.end + 1 - jnp.arange(S, dtype=jnp.int32)
    softcap = cfg.traits.attention_softcap

    # The scan reads the cache and returns the token's keys and values, which are written afterwards: a cache that is
    # carried and written in each layer is copied once per token on TPUs.
    def step(
        x: jax.Array, inputs: tuple[Tree, Any, KeysValues, KeysValues]
    ) -> tuple[jax.Array, KeysValues]:
        weights, variant, prompt, own = inputs
        rope, window = variants.of(variant)
        widest = P + S if window is None else window

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, KeysValues]:
            (_, _, N, H), K = q.shape, k.shape[2]
            k, v = (new.astype(own[0].dtype).reshape(U, n, K, 1, H) for new in (k, v))
            q = (q * H**-0.5).reshape(U, n, K, N // K, H)
            # One product for all continuations of a prompt: its keys are read once.
            together = q.transpose(0, 2, 1, 3, 4).reshape(U, K, 1, n * (N // K), H)
            seen = (in_prompt & (of_prompt <= widest))[:, None, None, None]
            out, total = attend_block(together, prompt[0], prompt[1], seen, softcap)
            out = out.reshape(U, K, n, N // K, H).transpose(0, 2, 1, 3, 4)
            total = total.reshape(U, K, n, N // K).transpose(0, 2, 1, 3)
            seen = (of_own > 1) & (of_own <= widest)
            earlier, earlier_total = attend_block(q[:, :, :, None], own[0], own[1], seen, softcap)
            itself = soft_cap(dot("unkgh,unksh->unkgs", q, k), softcap)
            totals = jnp.stack([total, earlier_total[..., 0, :], itself[..., 0]])
            shares = jax.nn.softmax(totals, axis=0)[..., None]
            mixed = shares[0] * out + shares[1] * earlier[..., 0, :, :] + shares[2] * v
            return mixed.reshape(U * n, 1, N, H).astype(v.dtype), (k, v)

        w = cast_and_gather(weights, cfg, execution)
        return layer(x, w, cfg, rope, execution, mix)

    inputs = params["layers"], variants.numbers, cache.prompt, cache.own
    x, new = jax.lax.scan(step, x, inputs)
    at = (0, 0, 0, 0, cache.end, 0)
    own = (
        jax.lax.dynamic_update_slice(cache.own[0], new[0], at),
        jax.lax.dynamic_update_slice(cache.own[1], new[1], at),
    )
    hidden = rms_norm(x, params["final_norm"], cfg)
    return hidden, SharedCache(cache.prompt, own, cache.lengths, cache.end + 1)
