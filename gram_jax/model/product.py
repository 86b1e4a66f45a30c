"""The matrix product of the layers, with its backward pass written out."""

import math

import jax
import jax.numpy as jnp


def product(x: jax.Array, w: jax.Array, contracted: int) -> jax.Array:
    """x [B, T, in...] times w [in..., out...], over `contracted` dimensions: [B, T, out...], x's dtype."""
    ins, outs = w.shape[:contracted], w.shape[contracted:]
    flat = _product(x.reshape(*x.shape[:2], -1), w.reshape(math.prod(ins), math.prod(outs)))
    return flat.reshape(*x.shape[:2], *outs)


@jax.custom_vjp
def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    return _dot(x, w, ((2,), (0,)))


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dot(x, w, ((2,), (0,))), (x, w)


def _backward(saved: tuple[jax.Array, jax.Array], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x^T d_y comes out as w lies in memory.

    JAX's own rule computes its transpose, and XLA then writes transposed copies of d_y, element by
    element: on a CPU (2 x 512 tokens, SmolLM2-135M) forward and backward of one MLP took 0.237 s of
    processor time, this 0.176 s.
    """
    x, w = saved
    return _dot(d_y, w, ((2,), (1,))), _dot(x, d_y, ((0, 1), (0, 1)))


_product.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> jax.Array:
    # A person who asks for float32 wants no TF32 on a GPU and no bfloat16 passes on a TPU.
    precision = "highest" if a.dtype == jnp.float32 else "default"
    return jax.lax.dot_general(a, b, (axes, ((), ())), precision=precision)
