"""Long rows, cut over the mesh: keys and values travel round a ring of devices (arXiv 2310.01889).

Every device keeps its own stretch of the queries. In each of P - 1 turns it hands the keys and
values that it holds to the next device and takes those of the one before, and what they add is
merged into the output by log-sum-exp, which is exact. No device ever holds the keys of a whole row.

The backward pass goes the same way round: keys and values travel again, and their gradients follow
them, one turn behind, until they are home. Kept for it are the stretches of q, k, v, the output and
the log-sum-exp.

Stretches lie in the order of the row, so device i has work in i + 1 of P turns: keys that are wholly
in the future are not multiplied, but the last device is busy in every turn and sets the pace.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gram_jax.model.attention import blocked
from gram_jax.model.attention.masked import ATTENTION_OUTPUT


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    axes: tuple[str, ...],
    size: int,
) -> jax.Array:
    """Inside shard_map over the mesh axes `axes` of `size` devices: [B, K, G, T, H].

    q: [B, K, G, T, H]; k, v: [B, K, T, H]; segments: i32 [B, T]; all of this device's stretch.
    """
    return _forward(q, k, v, segments, axes, size)[0]


def _forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    axes: tuple[str, ...],
    size: int,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    def absorb(turn: Any, travelling: tuple[jax.Array, ...], result: Any) -> Any:
        def merge(out: jax.Array, log_sum: jax.Array) -> tuple[jax.Array, jax.Array]:
            k, v, k_segments = travelling
            more, more_log = blocked.forward(
                False, q, k, v, segments, k_segments, k.shape[2], dtype=jnp.float32
            )
            both = jnp.logaddexp(log_sum, more_log)
            weigh = partial(_weigh, both)
            return weigh(log_sum, out) + weigh(more_log, more), both

        return _unless_future(turn, axes, merge, result)

    # While the first stretch travels, everyone is busy with their own.
    travelling = _pass_on((k, v, segments), axes, size)
    result = _own_forward(q, k, v, segments)

    def step(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        travelling, result = carry
        return (_pass_on(travelling, axes, size), absorb(turn, travelling, result)), None

    if size > 2:
        (travelling, result), _ = jax.lax.scan(step, (travelling, result), jnp.arange(1, size - 1))
    if size > 1:
        result = absorb(size - 1, travelling, result)
    out, log_sum = result
    out, log_sum = (
        checkpoint_name(out.astype(v.dtype), ATTENTION_OUTPUT),
        checkpoint_name(log_sum, ATTENTION_OUTPUT),
    )
    return out, (q, k, v, segments, out, log_sum)


def _backward(
    axes: tuple[str, ...], size: int, saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, segments, out, log_sum = saved
    delta = blocked.delta_of(d_out, out)

    def absorb(turn: Any, travelling: tuple[jax.Array, ...], sums: Any) -> Any:
        def add(*sums: jax.Array) -> tuple[jax.Array, ...]:
            k, v, k_segments = travelling
            where = (segments, k_segments, k.shape[2])  # after all of these keys
            more = blocked.backward(
                False, q, k, v, *where, log_sum, delta, d_out, dtype=jnp.float32
            )
            return tuple(a + b for a, b in zip(sums, more, strict=True))

        return _unless_future(turn, axes, add, sums)

    travelling = _pass_on((k, v, segments), axes, size)
    sums = _own_backward(q, k, v, segments, log_sum, delta, d_out)

    def step(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        travelling, (d_q, d_k, d_v) = carry
        follow = _pass_on((d_k, d_v), axes, size)
        sums = absorb(turn, travelling, (d_q, *follow))
        return (_pass_on(travelling, axes, size), sums), None

    if size > 2:
        (travelling, sums), _ = jax.lax.scan(step, (travelling, sums), jnp.arange(1, size - 1))
    d_q, d_k, d_v = sums
    if size > 1:
        follow = _pass_on((d_k, d_v), axes, size)
        d_q, d_k, d_v = absorb(size - 1, travelling, (d_q, *follow))
        d_k, d_v = _pass_on((d_k, d_v), axes, size)  # home
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


ring_attention.defvjp(_forward, _backward)


def _own_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the device's own keys give to its queries: (output, log-sum-exp), both f32."""
    found = []
    for first, end in _quarters(k.shape[2]):
        where = (segments[:, first:end], segments[:, :end], first)
        q_s, k_s, v_s = q[:, :, :, first:end], k[:, :, :end], v[:, :, :end]
        found.append(blocked.forward(False, q_s, k_s, v_s, *where, dtype=jnp.float32))
    out, log_sum = (jnp.concatenate(parts, axis=3) for parts in zip(*found, strict=True))
    return out, log_sum


def _own_backward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, *of_queries: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v (f32) of that. of_queries: log-sum-exp, delta, gradient of the output."""
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for first, end in _quarters(k.shape[2]):
        where = (segments[:, first:end], segments[:, :end], first)
        q_s, *of_strip = (x[:, :, :, first:end] for x in (q, *of_queries))
        k_s, v_s = k[:, :, :end], v[:, :, :end]
        more = blocked.backward(False, q_s, k_s, v_s, *where, *of_strip, dtype=jnp.float32)
        d_q.append(more[0])
        d_k, d_v = d_k.at[:, :, :end].add(more[1]), d_v.at[:, :, :end].add(more[2])
    return jnp.concatenate(d_q, axis=3), d_k, d_v


def _quarters(T: int) -> list[tuple[int, int]]:
    """(first, end) of four parts of a stretch, fewer of a short one.

    Each meets the keys up to its own end, which is 5/8 of all products. Sixteen strips would be 17/32,
    but take more than twice the memory and the time to compile (T = 4096 of 16 heads, for TPU v5e:
    peak 594 MiB and 81 s, with quarters 264 MiB and 33 s).
    """
    size = max(blocked.BLOCK, -(-T // 4))
    return [(first, min(first + size, T)) for first in range(0, T, size)]


def _unless_future(turn: Any, axes: tuple[str, ...], work: Callable[..., Any], values: Any) -> Any:
    """work(*values), or the values as they are where the stretch held in this turn is in the future."""
    # In turn s device i holds the stretch of device i - s, counted round the ring.
    return jax.lax.cond(turn <= jax.lax.axis_index(axes), work, lambda *same: same, *values)


def _pass_on(values: Any, axes: tuple[str, ...], size: int) -> Any:
    """What the device before this one held."""
    if size == 1:
        return values
    return jax.lax.ppermute(values, axes, [(i, (i + 1) % size) for i in range(size)])


def _weigh(both: jax.Array, log_sum: jax.Array, out: jax.Array) -> jax.Array:
    return jnp.exp(log_sum - both)[..., None] * out
