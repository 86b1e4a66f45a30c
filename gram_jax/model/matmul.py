"""Matrix products: that of the layers, with its backward pass written out, in 8 bits, and einsum with f32 sums."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from gram_jax.errors import LayoutError

# The checkpoint name of a product, which remat = "dots" keeps. JAX's own policies look into `platform_dependent` and
# keep the product of every branch, in f32 zeros on the other platforms; into a custom_vjp they do not look.
PRODUCT = "product"
# The largest value of a channel or token becomes the largest of the type. int8 does not use -128: it is symmetric.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


class Quantized(NamedTuple):
    """An array in 8 bits: values (int8 or float8_e4m3fn) times scale, f32 with 1 in the dimensions that share one."""

    values: jax.Array
    scale: jax.Array


def quantize(x: jax.Array, axes: tuple[int, ...], dtype: Any) -> Quantized:
    """x in 8 bits, with one scale over `axes`: max |x| / LARGEST; values are x / scale, rounded to nearest even."""
    wide, dtype = x.astype(jnp.float32), jnp.dtype(dtype)
    largest = jnp.abs(wide).max(axis=axes, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)  # all zeros
    values = wide * (
        LARGEST[dtype.name] / largest
    )  # one division per scale instead of one per value
    values = jnp.round(values) if dtype == jnp.int8 else values
    return Quantized(values.astype(dtype), largest / LARGEST[dtype.name])


def matmul(x: jax.Array, w: jax.Array | Quantized, contracted: int) -> jax.Array:
    """x [B, T, in...] times w [in..., out...], over `contracted` dimensions: [B, T, out...], x's dtype.

    A Quantized w (one scale per output channel) is multiplied in 8 bits: see `_matmul_in_8_bits`.
    """
    if isinstance(w, Quantized):
        return _matmul_in_8_bits(contracted, x, w)
    # Not flattened to matrices: a TPU's compiler then reads heads that attention returns as [B, N, T, H] as they are;
    # before a reshape to [B, T, N H] it writes a transposed copy.
    return checkpoint_name(_matmul(contracted, x, w), PRODUCT)


def dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum that accumulates in f32."""
    # No TF32 on a GPU and no bfloat16 passes on a TPU for f32 operands.
    precision = "highest" if a.dtype == jnp.float32 else "default"
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(contracted: int, x: jax.Array, w: jax.Array) -> jax.Array:
    return contract(x, w, _dims(2, contracted), _dims(0, contracted))


def _forward(
    contracted: int, x: Any, w: Any
) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array]]:
    # A frozen matrix (the base of a LoRA) has no gradient, so x is not kept.
    kept = x.value if w.perturbed else None
    return _matmul(contracted, x.value, w.value), (kept, w.value)


def _backward(
    contracted: int, saved: tuple[jax.Array | None, jax.Array], d_y: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
    """Computes x^T d_y in the layout of w.

    JAX's own rule computes its transpose, for which XLA writes transposed copies of d_y: forward and backward of one
    MLP (2 x 512 tokens, SmolLM2-135M, CPU) took 0.237 s of processor time, this 0.176 s.
    """
    if isinstance(d_y, SymbolicZero):
        return None, None
    x, w = saved
    d_w = None if x is None else contract(x, d_y, (0, 1), (0, 1))
    outs = w.ndim - contracted
    return contract(d_y, w, _dims(2, outs), _dims(contracted, outs)), d_w


_matmul.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul_in_8_bits(contracted: int, x: jax.Array, w: Quantized) -> jax.Array:
    """(sum_k x_q[t, k] w_q[k, n]) s_x[t] s_w[n], with x_q and s_x from `quantize`, one scale per token.

    The sum is int32 for int8 and exact; for float8_e4m3fn it is f32. Dynamic per-token scales of activations with
    static per-channel scales of weights: arXiv 2206.01861; e4m3: arXiv 2209.05433.
    """
    axes = _dims(2, contracted)
    rows = quantize(x, axes, w.values.dtype)
    sums = jnp.int32 if w.values.dtype == jnp.int8 else jnp.float32
    dims = (axes, _dims(0, contracted)), ((), ())
    y = jax.lax.dot_general(rows.values, w.values, dims, preferred_element_type=sums)
    outs = w.values.ndim - contracted
    per_token = rows.scale.reshape(x.shape[:2] + (1,) * outs)
    per_channel = w.scale.reshape(w.scale.shape[contracted:])
    return (y.astype(jnp.float32) * per_token * per_channel).astype(x.dtype)


def _refuse_gradient(*_: Any) -> Any:
    raise LayoutError(
        "products in 8 bits (weights int8_dynamic or float8_dynamic) have no gradient: they are for scoring. Train on "
        "the original matrices, or train a LoRA on int8"
    )


_matmul_in_8_bits.defvjp(_refuse_gradient, _refuse_gradient)


def _dims(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def contract(a: jax.Array, b: jax.Array, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> jax.Array:
    """a times b over these dimensions of each; the sum is f32, the result has a's dtype."""
    # No TF32 on a GPU and no bfloat16 passes on a TPU for f32 operands.
    dims = ((of_a, of_b), ((), ()))
    if a.dtype == jnp.float32:
        return jax.lax.dot_general(a, b, dims, precision="highest")
    plain = partial(jax.lax.dot_general, dimension_numbers=dims, precision="default")

    def summed_in_float32(a: jax.Array, b: jax.Array) -> jax.Array:
        # JAX 0.10 on a CPU multiplies bfloat16 as float32 unless the sum is requested in float32: 1024 x 576 times
        # 576 x 1536 took 18.7 ms of one core (Zen 4), this 9.1 ms. JAX 0.12 takes 9 ms for both.
        return plain(a, b, preferred_element_type=jnp.float32).astype(a.dtype)

    return jax.lax.platform_dependent(a, b, cpu=summed_in_float32, default=plain)
