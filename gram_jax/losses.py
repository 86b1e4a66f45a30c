"""Losses: arrays in, arrays out, without the model."""

import jax
import jax.numpy as jnp


def smoothed_verdict_nll(logits: jax.Array, label: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy over the two verdict labels with label smoothing (GRAM, stage 2).

    With t the margin (`label_margin`) and e = `smoothing` (as in torch, e/2 on the wrong label) this is softplus(-t) +
    (e/2) t: the Bradley-Terry loss plus a linear term. Its minimum is at t = log((2 - e) / e), its gradient in t is
    sigma(t) - (1 - e/2).

    logits: [..., Y=2]; label: i32 [...], 0 or 1. Returns f32 [...].

    >>> smoothed_verdict_nll(jnp.array([2.0, 0.0]), jnp.array(0), 0.1).round(6).item()
    0.2269279956817627
    """
    margin = label_margin(logits, label)
    return jax.nn.softplus(-margin) + 0.5 * smoothing * margin


def label_margin(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The preferred label's logit minus the other's, f32 [...]. Arguments as of smoothed_verdict_nll."""
    logits = logits.astype(jnp.float32)
    logit_diff = logits[..., 0] - logits[..., 1]
    return jnp.where(label == 0, logit_diff, -logit_diff)


def ranking_nll(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """Bradley-Terry: -log sigma(chosen - rejected), scalar rewards of equal shapes, f32 [...]."""
    return jax.nn.softplus(rejected.astype(jnp.float32) - chosen.astype(jnp.float32))


def next_token_nll(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy of the next token, without [B, T, V] logits in memory.

    hidden: [B, T, D]; unembedding: [V, D]; targets: i32 [B, T]; weights: f32 [B, T]; chunk_size: maximum number of rows
    of logits in memory, over all devices (at least B). Products take hidden's dtype and accumulate in f32. Returns (sum
    of weighted nll, sum of weights), f32 scalars.
    """
    h, aims, w = time_pieces(chunk_size, hidden, targets, weights.astype(jnp.float32))
    total = _chunked_nll(h, unembedding.astype(hidden.dtype), aims, w)
    return total, weights.sum(dtype=jnp.float32)


def time_pieces(chunk_size: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Split the time of arrays [B, T, ...] into the fewest pieces of at most `chunk_size` positions: [n, B, t, ...].

    Piece i has every n-th column from i on, so its batch and time axes keep their sharding. Columns of zeros are added
    if n does not divide T.
    """
    B, T = arrays[0].shape[:2]
    time = max(1, chunk_size // B)
    n = -(-T // time)
    time = -(-T // n)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, n * time - T), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(B, time, n, *x.shape[2:]), 2, 0)

    return tuple(map(cut, arrays))


def join_pieces(pieces: jax.Array, T: int) -> jax.Array:
    """The inverse of time_pieces: [n, B, t] to [B, T]."""
    joined = jnp.moveaxis(pieces, 0, 2)
    return joined.reshape(joined.shape[0], -1)[:, :T]


@jax.custom_vjp
def _chunked_nll(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """Sum of weighted nll; hidden: [pieces, B, t, D]; targets, weights: [pieces, B, t]."""

    def step(total: jax.Array, piece: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        nll, _, _ = _piece_nll(piece[0], unembedding, *piece[1:])
        return total + nll, None

    return jax.lax.scan(step, jnp.float32(0), (hidden, targets, weights))[0]


def _chunked_nll_forward(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Loss and gradient in one pass over the pieces: three products, not four."""
    precision = _precision(hidden)

    def step(carry: tuple[jax.Array, jax.Array], piece: tuple[jax.Array, ...]):
        total, d_unembedding = carry
        h, target, weight = piece
        nll, logits, log_norm = _piece_nll(h, unembedding, target, weight)
        hit = target[..., None] == jnp.arange(unembedding.shape[0])
        d_logits = ((jnp.exp(logits - log_norm) - hit) * weight[..., None]).astype(h.dtype)
        d_h = jnp.einsum("btv,vd->btd", d_logits, unembedding, precision=precision)
        d_unembedding = d_unembedding + jnp.einsum(
            "btv,btd->vd", d_logits, h, precision=precision, preferred_element_type=jnp.float32
        )
        return (total + nll, d_unembedding), d_h

    start = jnp.float32(0), jnp.zeros(unembedding.shape, jnp.float32)
    (total, d_unembedding), d_hidden = jax.lax.scan(step, start, (hidden, targets, weights))
    return total, (d_hidden, d_unembedding.astype(unembedding.dtype))


def _chunked_nll_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array):
    d_hidden, d_unembedding = residuals
    return (
        d_hidden * gradient.astype(d_hidden.dtype),
        d_unembedding * gradient.astype(d_unembedding.dtype),
        None,
        None,
    )


_chunked_nll.defvjp(_chunked_nll_forward, _chunked_nll_backward)


def _piece_nll(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sum of weighted nll, logits f32 [B, t, V], their log-sum-exp [B, t, 1]) of one piece."""
    logits = jnp.einsum(
        "btd,vd->btv",
        hidden,
        unembedding,
        precision=_precision(hidden),
        preferred_element_type=jnp.float32,
    )
    log_norm = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    aimed = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    nll = (log_norm - aimed)[..., 0]
    return jnp.sum(jnp.where(weights != 0, weights * nll, 0.0)), logits, log_norm


def _precision(x: jax.Array) -> str:
    """No TF32 on a GPU and no bfloat16 passes on a TPU for f32 operands."""
    return "highest" if x.dtype == jnp.float32 else "default"
