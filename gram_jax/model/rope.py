"""Rotary positions, in the half-split convention of Hugging Face checkpoints.

Dimensions i and i + H/2 of a head form a plane, which is rotated by the angle position * frequency[i].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.model.config import (
    LayerType,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
)


class Rope(NamedTuple):
    """Of some positions: cosines and sines of the angles, f32 [B, T, H/2], and a factor of queries, f32 [B, T, 1]."""

    cos: jax.Array
    sin: jax.Array
    query_scale: jax.Array | None = None


def rotary_frequencies(cfg: ModelConfig, layer_type: LayerType = "full") -> np.ndarray:
    """Radians per position of every pair of the dimensions that rotate, f64 [H/2] or fewer."""
    size = cfg.traits.rotary_size or cfg.head_size
    if layer_type == "no_rope":
        return np.zeros(size // 2)
    theta, scaling = cfg.rope_theta, cfg.rope_scaling
    if layer_type == "sliding" and cfg.traits.local_rope_theta is not None:
        theta, scaling = cfg.traits.local_rope_theta, None
    frequencies = base_frequencies(theta, size)
    if isinstance(scaling, LongScaling):
        return frequencies / np.array(scaling.short)
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return frequencies * llama3_factors(frequencies, scaling)
    if isinstance(scaling, YarnScaling):
        return frequencies * yarn_factors(theta, size, scaling)
    return frequencies


def base_frequencies(theta: float, head_size: int) -> np.ndarray:
    """Frequencies without scaling, f64 [H/2]."""
    return theta ** (-np.arange(0, head_size, 2) / head_size)


def llama3_factors(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Factor of every frequency in Llama 3's long-context scaling, f64 [H/2].

    Frequencies of fewer than `low_frequency_factor` turns within the original context are divided by `factor`, those of
    more than `high_frequency_factor` turns are unchanged; between the two it interpolates linearly.
    """
    turns = scaling.original_context * frequencies / (2 * np.pi)
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    kept = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
    return kept + (1.0 - kept) / scaling.factor


def yarn_factors(theta: float, head_size: int, scaling: YarnScaling) -> np.ndarray:
    """Factor of every frequency in YaRN, f64 [H/2].

    Dimensions that turn more than beta_fast times within the original context are unchanged, those that turn less than
    beta_slow times are divided by `factor`; between the two it interpolates linearly in the number of the dimension.
    """

    def dimension(turns: float) -> float:
        """The dimension that makes this number of turns."""
        return (
            head_size
            * math.log(scaling.original_context / (2 * math.pi * turns))
            / (2 * math.log(theta))
        )

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    high += 0.001 * (low == high)
    kept = 1.0 - np.clip((np.arange(head_size // 2) - low) / (high - low), 0.0, 1.0)
    return kept + (1.0 - kept) / scaling.factor


def attention_factor(scaling: RopeScaling | None) -> float:
    """Factor of cosines and sines; 1 except in YaRN and LongRoPE."""
    if not isinstance(scaling, YarnScaling | LongScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if isinstance(scaling, LongScaling):
        extension = scaling.extended_context / scaling.original_context
        return math.sqrt(1 + max(0.0, math.log(extension)) / math.log(scaling.original_context))

    def mscale(scale: float) -> float:
        return 0.1 * scale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def rope_angles(positions: jax.Array, cfg: ModelConfig, layer_type: LayerType = "full") -> Rope:
    """Cosine and sine of every angle; positions: i32 [B, T]. f32: bfloat16 does not separate positions beyond 256."""
    frequencies = rotary_frequencies(cfg, layer_type).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    local = layer_type == "sliding" and cfg.traits.local_rope_theta is not None
    factor = 1.0 if local or layer_type == "no_rope" else attention_factor(cfg.rope_scaling)
    scale = query_scale(positions, cfg.rope_scaling)
    if factor == 1.0:
        return Rope(jnp.cos(angles), jnp.sin(angles), scale)
    return Rope(jnp.cos(angles) * factor, jnp.sin(angles) * factor, scale)


def query_scale(positions: jax.Array, scaling: RopeScaling | None) -> jax.Array | None:
    """Factor of the queries at positions i32 [B, T], f32 [B, T, 1]; None if it is 1."""
    if not isinstance(scaling, YarnScaling) or scaling.query_beta is None:
        return None
    contexts = (positions // scaling.original_context)[..., None].astype(jnp.float32)
    return 1.0 + scaling.query_beta * jnp.log1p(contexts)


def apply_rope(x: jax.Array, rope: Rope) -> jax.Array:
    """The heads x [B, T, N, H] rotated by their positions' angles, in x's dtype; computed in f32.

    Dimensions without an angle stay.
    """
    if (rotated := 2 * rope.cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([apply_rope(x[..., :rotated], rope), x[..., rotated:]], -1)
    return _rotate(x, rope.cos, rope.sin)


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
    rope: tuple[jax.Array, jax.Array], d_y: jax.Array
) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
    cos, sin = rope
    return _rotate(d_y, cos, -sin), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def rotate_by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [B, T, N, H] rotated; cos, sin: f32 [B, T, 1, H/2]."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)


def rotate_by_permutation(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The same rotation: a product with a signed permutation gives (-high, low) without rounding.

    A TPU pads halves of 64 lanes to 128, writes both in f32 and joins them in another pass.
    """
    unit = jnp.eye(x.shape[-1] // 2, dtype=x.dtype)
    zero = jnp.zeros_like(unit)
    turn = jnp.block([[zero, unit], [-unit, zero]])
    precision = "highest" if x.dtype == jnp.float32 else "default"
    turned = jnp.einsum("btnh,hg->btng", x, turn, precision=precision)
    cos, sin = (jnp.concatenate([part, part], -1) for part in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned.astype(jnp.float32) * sin).astype(x.dtype)
