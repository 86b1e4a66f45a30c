"""Losses: arrays in, arrays out, without the model."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gram_jax.sharding import Placement


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


def order_divergence(logit_diff: jax.Array, swapped: jax.Array) -> jax.Array:
    """Symmetric divergence of the verdicts on a pair in both orders: KL(p, q) + KL(q, p), in nats.

    p = sigma(logit_diff) is the probability of a response that is shown first, q = sigma(-swapped) that of the same
    response shown second. The sum is (p - q) (logit_diff + swapped). It is 0 only if swapped = -logit_diff, also for a
    judge that says 0.5 of every pair: without labels or pseudo-labels it teaches no preference.

    logit_diff, swapped: first label's logit minus the second's as given and swapped, equal shapes. Returns f32 [...].

    >>> order_divergence(jnp.array([2.0, 1.0]), jnp.array([-2.0, 1.0])).round(4).tolist()
    [0.0, 0.9241999983787537]
    """
    a, b = logit_diff.astype(jnp.float32), swapped.astype(jnp.float32)
    return (jax.nn.sigmoid(a) - jax.nn.sigmoid(-b)) * (a + b)


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
    placement: Placement,
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy of the next token, without [B, T, V] logits in memory.

    hidden: [B, T, D]; unembedding: [V, D]; targets: i32 [B, T]; weights: f32 [B, T]; chunk_size: maximum number of rows
    of logits in memory, over all devices (at least B). Products take hidden's dtype and accumulate in f32. Returns (sum
    of weighted nll, sum of weights), f32 scalars.

    On a mesh the loss is parallel in the vocabulary: the head and its gradient stay sharded along V, and devices with
    different parts of V exchange a chunk's hidden states and sums, never logits or parts of the head.
    """
    head = unembedding.astype(hidden.dtype)
    total: Any = _chunked_nll(
        chunk_size, placement, hidden, head, targets, weights.astype(jnp.float32)
    )
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
    """The inverse of time_pieces: [n, B, t, ...] to [B, T, ...]."""
    joined = jnp.moveaxis(pieces, 0, 2)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :T]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_nll(chunk_size: int, placement: Placement, *arrays: jax.Array) -> jax.Array:
    """Sum of weighted nll. arrays: hidden, head, targets, weights of next_token_nll."""
    return _on_shards(_local_nll, chunk_size, placement, *arrays)


def _chunked_nll_forward(
    chunk_size: int, placement: Placement, *arrays: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Loss and gradient in one pass over the pieces: three products, not four."""
    total, d_hidden, d_head = _on_shards(_local_nll_and_gradient, chunk_size, placement, *arrays)
    return total, (d_hidden, d_head)


def _chunked_nll_backward(
    _chunk_size: int,
    _placement: Placement,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array | None, ...]:
    d_hidden, d_head = residuals
    return (
        d_hidden * gradient.astype(d_hidden.dtype),
        d_head * gradient.astype(d_head.dtype),
        None,
        None,
    )


_chunked_nll.defvjp(_chunked_nll_forward, _chunked_nll_backward)


class _Axes(NamedTuple):
    """Mesh axes that are larger than 1. vocab: that shard V; shared: those of them that shard rows too, so that a
    chunk's rows are gathered over them; rest: the other axes that shard rows and positions.
    """

    vocab: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


def _on_shards(
    local: Callable[..., Any], chunk_size: int, placement: Placement, *arrays: jax.Array
) -> Any:
    """local(axes, rows in a chunk, ...) on every device's part of (hidden, head, targets, weights)."""
    if placement.mesh.size == 1:
        return local(_Axes(), chunk_size, *arrays)
    table, sizes = dict(placement.rules), placement.mesh.shape
    time = placement.residual_time(arrays[0].shape[1])
    vocab, rows = (
        tuple(axis for name in names for axis in table[name] if sizes[axis] > 1)
        for names in (("vocab",), ("batch", time))
    )
    axes = _Axes(
        vocab,
        tuple(axis for axis in rows if axis in vocab),
        tuple(axis for axis in rows if axis not in vocab),
    )
    tokens = placement.spec(("batch", time))
    of_hidden, of_head = (
        placement.spec(names) for names in (("batch", time, None), ("vocab", None))
    )
    gradients = local is _local_nll_and_gradient
    return jax.shard_map(
        partial(local, axes, chunk_size // math.prod(sizes[axis] for axis in rows)),
        mesh=placement.mesh,
        in_specs=(of_hidden, of_head, tokens, tokens),
        out_specs=(PartitionSpec(), of_hidden, of_head) if gradients else PartitionSpec(),
        check_vma=False,
    )(*arrays)


def _local_nll(axes: _Axes, chunk_size: int, *arrays: jax.Array) -> jax.Array:
    pieces, head = _pieces(axes, chunk_size, *arrays)

    def step(total: jax.Array, piece: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + _piece_nll(axes, head, *piece)[0], None

    return _sum_over(axes.rest, jax.lax.scan(step, jnp.float32(0), pieces)[0])


def _local_nll_and_gradient(
    axes: _Axes, chunk_size: int, *arrays: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(loss, its gradients for this device's hidden states and its part of the head)."""
    pieces, head = _pieces(axes, chunk_size, *arrays)
    precision = _precision(head)

    def step(carry: tuple[jax.Array, jax.Array], piece: tuple[jax.Array, ...]):
        total, d_head = carry
        nll, h, d_logits = _piece_nll(axes, head, *piece)
        d_h = jnp.einsum("btv,vd->btd", d_logits, head, precision=precision)
        d_head = d_head + jnp.einsum(
            "btv,btd->vd", d_logits, h, precision=precision, preferred_element_type=jnp.float32
        )
        if axes.shared:
            d_h = jax.lax.psum_scatter(d_h, axes.shared, scatter_dimension=0, tiled=True)
        d_h = _sum_over(tuple(axis for axis in axes.vocab if axis not in axes.shared), d_h)
        return (total + nll, d_head), d_h

    start = jnp.float32(0), jnp.zeros(head.shape, jnp.float32)
    (total, d_head), d_hidden = jax.lax.scan(step, start, pieces)
    total, d_head = _sum_over(axes.rest, (total, d_head))
    return total, join_pieces(d_hidden, arrays[0].shape[1]), d_head.astype(head.dtype)


def _pieces(
    axes: _Axes,
    chunk_size: int,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """((hidden of this device, targets and weights of the rows of all devices in `shared`), head) in pieces."""
    h, targets, weights = time_pieces(chunk_size, hidden, targets, weights)
    if axes.shared:
        targets, weights = (
            jax.lax.all_gather(x, axes.shared, axis=1, tiled=True) for x in (targets, weights)
        )
    return (h, targets, weights), head


def _piece_nll(
    axes: _Axes, head: jax.Array, h: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sum of weighted nll, the piece's hidden states, gradient of the device's logits [B, t, V])."""
    if axes.shared:
        h = jax.lax.all_gather(h, axes.shared, axis=0, tiled=True)
    logits = jnp.einsum(
        "btd,vd->btv", h, head, precision=_precision(h), preferred_element_type=jnp.float32
    )
    V = head.shape[0]
    own = targets[..., None] - (jax.lax.axis_index(axes.vocab) * V if axes.vocab else 0)
    top = logits.max(axis=-1, keepdims=True)
    top = jax.lax.pmax(top, axes.vocab) if axes.vocab else top
    aimed = jnp.take_along_axis(logits, own.clip(0, V - 1), axis=-1)
    total, aimed = _sum_over(
        axes.vocab,
        (
            jnp.exp(logits - top).sum(axis=-1, keepdims=True),
            jnp.where((own >= 0) & (own < V), aimed, 0.0),
        ),
    )
    log_norm = top + jnp.log(total)
    nll = (log_norm - aimed)[..., 0]
    hit = own == jnp.arange(V)
    d_logits = ((jnp.exp(logits - log_norm) - hit) * weights[..., None]).astype(h.dtype)
    return jnp.sum(jnp.where(weights != 0, weights * nll, 0.0)), h, d_logits


def _sum_over(axes: tuple[str, ...], values: Any) -> Any:
    return jax.lax.psum(values, axes) if axes else values


def _precision(x: jax.Array) -> str:
    """No TF32 on a GPU and no bfloat16 passes on a TPU for f32 operands."""
    return "highest" if x.dtype == jnp.float32 else "default"
