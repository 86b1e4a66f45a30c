"""Causal grouped-query attention over packed rows: two back ends, one meaning.

Position t sees position s where s <= t and both belong to the same segment. Padding (segment 0)
sees padding, so that its rows stay finite; nothing real sees it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gram_jax.model.execution import Execution

# Queries of one block. With 128 the masked half costs little at any length and the products stay
# large.
BLOCK = 128


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, execution: Execution
) -> jax.Array:
    """Softmax(q k / sqrt(H)) v.

    q: [B, T, N, H]; k, v: [B, T, K, H]; segments: i32 [B, T]. Returns [B, T, N, H].

    The softmax runs in f32; products take q's dtype and add up in f32.
    """
    return _BACKENDS[execution.attention](q, k, v, segments)


def _xla_attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """All scores at once: what a compiler with fused attention may recognise."""
    mask = segments[:, :, None] == segments[:, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], is_causal=True)


def _blocked_attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Blocks of queries, each against the keys up to its end: the masked half costs nothing."""
    B, T, N, H = q.shape
    K = k.shape[2]
    q = (q * (1 / math.sqrt(H))).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    columns = jnp.arange(T)
    out = []
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        seen = (columns[start:end, None] >= columns[:end]) & (
            segments[:, start:end, None] == segments[:, None, :end]
        )
        scores = jnp.einsum(
            "bkgth,bksh->bkgts",
            q[:, :, :, start:end],
            k[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out.append(jnp.einsum("bkgts,bksh->bkgth", probs, v[:, :, :end]))
    return jnp.concatenate(out, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


_BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "xla": _xla_attention,
    "blocked": _blocked_attention,
}
