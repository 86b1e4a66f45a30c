"""Attention over rows that are sharded: keys and values pass round a ring of devices (arXiv 2310.01889).

Every device keeps its part of the queries. In each of P - 1 turns it sends the keys and values that it holds to the
next device and receives those of the previous one; their contribution is merged into the output by log-sum-exp, which
is exact. No device holds the keys of a whole row.

In the backward pass keys and values pass round again, followed one turn later by their gradients, until these reach
their own device. Kept for it are the parts of q, k, v, the output and the log-sum-exp.

Parts are in the order of the row, so device i computes in i + 1 of P turns: keys that are wholly in the future are
skipped, but the last device computes in every turn and determines the time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.model.attention import blocked
from gram_jax.model.attention.blocked import Block


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, axes: tuple[str, ...], size: int
) -> jax.Array:
    """Inside shard_map over the mesh axes `axes` of `size` devices: [B, K, G, T, H].

    q: [B, K, G, T, H]; k, v: [B, K, T, H]; segments: i32 [B, T]; all of them this device's part.
    """
    return _forward(q, k, v, segments, axes, size)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, axes: tuple[str, ...], size: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    def absorb(turn: Any, received: tuple[jax.Array, ...], result: Any) -> Any:
        def merge(out: jax.Array, log_sum: jax.Array) -> tuple[jax.Array, jax.Array]:
            block = _earlier(q, segments, received)
            more, more_log = blocked.forward(False, block, jnp.float32)
            both = jnp.logaddexp(log_sum, more_log)
            weigh = partial(_weigh, both)
            return weigh(log_sum, out) + weigh(more_log, more), both

        return _unless_future(turn, axes, merge, result)

    # The first transfer runs while every device computes with its own keys.
    received = _pass_on((k, v, segments), axes, size)
    result = _own_forward(q, k, v, segments)

    def step(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        received, result = carry
        return (_pass_on(received, axes, size), absorb(turn, received, result)), None

    if size > 2:
        (received, result), _ = jax.lax.scan(step, (received, result), jnp.arange(1, size - 1))
    if size > 1:
        result = absorb(size - 1, received, result)
    out, log_sum = blocked.named(result[0].astype(v.dtype), result[1])
    return out, (q, k, v, segments, out, log_sum)


def _backward(
    axes: tuple[str, ...], size: int, saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, segments, out, log_sum = saved
    delta = blocked.delta_of(d_out, out)

    def absorb(turn: Any, received: tuple[jax.Array, ...], sums: Any) -> Any:
        def add(*sums: jax.Array) -> tuple[jax.Array, ...]:
            block = _earlier(q, segments, received)
            more = blocked.backward(False, block, log_sum, delta, d_out, jnp.float32)
            return tuple(a + b for a, b in zip(sums, more, strict=True))

        return _unless_future(turn, axes, add, sums)

    received = _pass_on((k, v, segments), axes, size)
    sums = _own_backward(q, k, v, segments, log_sum, delta, d_out)

    def step(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        received, (d_q, d_k, d_v) = carry
        follow = _pass_on((d_k, d_v), axes, size)
        sums = absorb(turn, received, (d_q, *follow))
        return (_pass_on(received, axes, size), sums), None

    if size > 2:
        (received, sums), _ = jax.lax.scan(step, (received, sums), jnp.arange(1, size - 1))
    d_q, d_k, d_v = sums
    if size > 1:
        follow = _pass_on((d_k, d_v), axes, size)
        d_q, d_k, d_v = absorb(size - 1, received, (d_q, *follow))
        d_k, d_v = _pass_on((d_k, d_v), axes, size)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


ring_attention.defvjp(_forward, _backward)


def _earlier(q: jax.Array, segments: jax.Array, received: tuple[jax.Array, ...]) -> Block:
    """The queries with keys that are all before them in the row."""
    k, v, k_segments = received
    return Block(q, k, v, segments, k_segments, k.shape[2])


def _own_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(output, log-sum-exp), both f32, of the device's queries and its own keys."""
    blocks = (block for _, _, block in _quarters(q, k, v, segments))
    found = [blocked.forward(False, block, jnp.float32) for block in blocks]
    out, log_sum = (jnp.concatenate(parts, axis=3) for parts in zip(*found, strict=True))
    return out, log_sum


def _own_backward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, *of_queries: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v from the device's own part, f32. of_queries: log-sum-exp, delta, gradient of the
    output.
    """
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for first, end, block in _quarters(q, k, v, segments):
        log_sum, delta, d_out = (x[:, :, :, first:end] for x in of_queries)
        more = blocked.backward(False, block, log_sum, delta, d_out, jnp.float32)
        d_q.append(more[0])
        d_k, d_v = d_k.at[:, :, :end].add(more[1]), d_v.at[:, :, :end].add(more[2])
    return jnp.concatenate(d_q, axis=3), d_k, d_v


def _quarters(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> Iterator[tuple[int, int, Block]]:
    """(first query, end, block) of four parts of a device's queries, fewer if it has few.

    Each part has the keys up to its own end, 5/8 of all products. Sixteen parts would have 17/32, but take more than
    twice the memory and time to compile (T = 4096 of 16 heads, for TPU v5e: peak 594 MiB and 81 s, with quarters 264
    MiB and 33 s).
    """
    T = k.shape[2]
    size = max(blocked.BLOCK, -(-T // 4))
    for first in range(0, T, size):
        end = min(first + size, T)
        ids, k_ids = segments[:, first:end], segments[:, :end]
        yield (
            first,
            end,
            Block(q[:, :, :, first:end], k[:, :, :end], v[:, :, :end], ids, k_ids, first),
        )


def _unless_future(turn: Any, axes: tuple[str, ...], work: Callable[..., Any], values: Any) -> Any:
    """work(*values), or the values themselves if the keys of this turn are in the future."""
    # In turn s device i holds the part of device i - s, counted round the ring.
    return jax.lax.cond(turn <= jax.lax.axis_index(axes), work, lambda *same: same, *values)


def _pass_on(values: Any, axes: tuple[str, ...], size: int) -> Any:
    """The values of the previous device."""
    if size == 1:
        return values
    return jax.lax.ppermute(values, axes, [(i, (i + 1) % size) for i in range(size)])


def _weigh(both: jax.Array, log_sum: jax.Array, out: jax.Array) -> jax.Array:
    return jnp.exp(log_sum - both)[..., None] * out
