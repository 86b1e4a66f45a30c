"""Rotary positions, in the half-split convention of Hugging Face checkpoints.

Dimension i of a head turns together with dimension i + H/2, by the angle position * frequency[i].
"""

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.model.config import ModelConfig

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, f32 [B, T, H/2]


def rotary_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Radians per position of every pair of dimensions, f64 [H/2].

    Llama 3's scaling divides by `factor` the frequencies that turn fewer than
    `low_frequency_factor` times within the original context, leaves those that turn more than
    `high_frequency_factor` times, and blends linearly in the number of turns between the two.
    """
    frequencies = cfg.rope_theta ** (-np.arange(0, cfg.head_size, 2) / cfg.head_size)
    scaling = cfg.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_context * frequencies / (2 * np.pi)
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    kept = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def rotation(positions: jax.Array, cfg: ModelConfig) -> Rotation:
    """Cosine and sine of every angle; positions: i32 [B, T]. Angles are f32 in every compute type.

    In bfloat16 neighbouring positions beyond 256 would share an angle.
    """
    frequencies = rotary_frequencies(cfg).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, turn: Rotation) -> jax.Array:
    """Turn the heads x [B, T, N, H] by their positions' angles; the result has x's dtype."""
    cos, sin = (part[:, :, None, :] for part in turn)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)
