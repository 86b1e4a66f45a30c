"""All scores at once, as the definition says. The reference for the other back ends."""

import jax
import jax.numpy as jnp

from gram_jax.model.attention.scores import dot, seen


def xla_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    start: int | jax.Array,
) -> jax.Array:
    """q: [B, K, G, T, H]; k, v: [B, K, S, H]; start: as in `seen`. Returns [B, K, G, T, H].

    Two arrays of the size of q's heads x T x S live through the backward pass.
    """
    scores = dot("bkgth,bksh->bkgts", q, k)
    scores = jnp.where(seen(q_segments, k_segments, start)[:, None, None], scores, -jnp.inf)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return dot("bkgts,bksh->bkgth", probs, v).astype(v.dtype)
