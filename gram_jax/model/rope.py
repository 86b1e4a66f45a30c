"""Rotary positions, in the half-split convention of Hugging Face checkpoints.

Dimensions i and i + H/2 of a head form a plane, which is rotated by the angle position * frequency[i].
"""

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.model.config import ModelConfig, RopeScaling

Rope = tuple[jax.Array, jax.Array]  # cosines and sines of the angles, f32 [B, T, H/2]


def rotary_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Radians per position of every pair of dimensions, f64 [H/2]."""
    frequencies = base_frequencies(cfg.rope_theta, cfg.head_size)
    if cfg.rope_scaling is None:
        return frequencies
    return frequencies * llama3_factors(frequencies, cfg.rope_scaling)


def base_frequencies(theta: float, head_size: int) -> np.ndarray:
    """Frequencies without scaling, f64 [H/2]."""
    return theta ** (-np.arange(0, head_size, 2) / head_size)


def llama3_factors(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Factor of every frequency in Llama 3's long-context scaling, f64 [H/2].

    Frequencies of fewer than `low_frequency_factor` turns within the original context are divided by `factor`, those of
    more than `high_frequency_factor` turns are unchanged; between the two it interpolates linearly.
    """
    turns = scaling.original_context * frequencies / (2 * np.pi)
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    kept = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
    return kept + (1.0 - kept) / scaling.factor


def rope_angles(positions: jax.Array, cfg: ModelConfig) -> Rope:
    """Cosine and sine of every angle; positions: i32 [B, T]. f32: bfloat16 does not separate positions beyond 256."""
    frequencies = rotary_frequencies(cfg).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, rope: Rope) -> jax.Array:
    """The heads x [B, T, N, H] rotated by their positions' angles, in x's dtype; computed in f32."""
    return _rotate(x, *rope)


@jax.custom_vjp
def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jax.lax.platform_dependent(
        x, cos, sin, tpu=rotate_by_permutation, default=rotate_by_halves
    )


def _rotate_forward(
    x: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rotate(x, cos, sin), (cos, sin)


def _rotate_backward(
    rope: Rope, d_y: jax.Array
) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
    cos, sin = rope
    return _rotate(d_y, cos, -sin), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def rotate_by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [B, T, N, H] rotated; cos, sin: f32 [B, T, 1, H/2]."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)


def rotate_by_permutation(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The same: a product with a signed permutation gives (-high, low) without rounding.

    A TPU pads halves of 64 lanes to 128, writes both in f32 and joins them in another pass.
    """
    unit = jnp.eye(x.shape[-1] // 2, dtype=x.dtype)
    zero = jnp.zeros_like(unit)
    turn = jnp.block([[zero, unit], [-unit, zero]])
    precision = "highest" if x.dtype == jnp.float32 else "default"
    turned = jnp.einsum("btnh,hg->btng", x, turn, precision=precision)
    cos, sin = (jnp.concatenate([part, part], -1) for part in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x.dtype)
