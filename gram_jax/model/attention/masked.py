"""The mask, and attention computed by its definition: the reference for every back end.

Letters of the einsums: b rows, k key-value heads, g query heads of each, t queries, s keys, h head size.
"""

import jax
import jax.numpy as jnp

from gram_jax.model.matmul import dot

# The checkpoint name of an attention's output and its log-sum-exp, which remat = "attention" and "dots" keep.
ATTENTION_OUTPUT = "attention"

# The score of a masked key. exp(MASK_VALUE - x) is exactly 0 for every score x that occurs, as with minus infinity,
# but a query without a visible key gives no NaN.
MASK_VALUE = -1e30


def masked_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: jax.Array,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(scale q k^T) v over the visible keys, with all scores at once.

    q: [B, T, N, H]; k, v: [B, S, K, H]; visible: bool [B, T, S]. Returns [B, T, N, H] in v's dtype.
    The softmax runs in f32. The backward pass keeps two arrays of N x T x S.
    """
    (B, T, N, H), K = q.shape, k.shape[2]
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = soft_cap(dot("bkgth,bksh->bkgts", q, k) * scale, softcap)
    scores = jnp.where(visible[:, None, None], scores, MASK_VALUE)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = dot("bkgts,bksh->bkgth", probs, v).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def soft_cap(scores: jax.Array, cap: float | None) -> jax.Array:
    """cap tanh(scores / cap), which is between -cap and cap (arXiv 2408.00118); None: the scores."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def attend_block(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, softcap: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """(output, log-sum-exp of the scores) of one block of scaled queries, f32.

    q: [..., K, G, T, H]; k, v: [..., K, S, H]; visible: bool, broadcast to [..., K, G, T, S].
    Returns [..., K, G, T, H] and [..., K, G, T]. Blocks of keys are merged by their log-sum-exp. A query without a
    visible key has one near MASK_VALUE and a finite, meaningless output.
    """
    scores = soft_cap(dot("...kgth,...ksh->...kgts", q, k), softcap)
    scores = jnp.where(visible, scores, MASK_VALUE)
    top = scores.max(axis=-1, keepdims=True)
    powers = jnp.exp(scores - top)
    total = powers.sum(axis=-1, keepdims=True)
    out = dot("...kgts,...ksh->...kgth", powers.astype(v.dtype), v) / total
    return out, (top + jnp.log(total))[..., 0]


def causal_segment_mask(
    q_segments: jax.Array,
    k_segments: jax.Array,
    start: int | jax.Array,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """The keys that each query sees, bool [B, T, S]: those of its own segment up to itself, the last `window` of them.

    q_segments: i32 [B, T]; k_segments: i32 [B, S]. Query t is column start + t of a row, key s is column s.
    """
    at = start + jnp.arange(q_segments.shape[1])
    same = q_segments[:, :, None] == k_segments[:, None, :]
    before = at[:, None] - jnp.arange(k_segments.shape[1])
    visible = same & (before >= 0)
    return visible if window is None else visible & (before < window)
