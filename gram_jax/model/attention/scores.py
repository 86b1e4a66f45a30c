"""What all back ends share: which key a query sees, and how products are taken.

Letters inside the back ends: b rows, k key-value heads, g query heads of each, t queries, s keys,
h head size. Queries arrive scaled by 1 / sqrt(H).
"""

import jax
import jax.numpy as jnp

# What a recomputing backward pass keeps of an attention: its output and its log-sum-exp.
KEPT = "attention"

# The score of a key that is not seen. exp(HIDDEN - x) is exactly 0 for every score x that occurs,
# as with minus infinity, but a row that sees no key at all gives no NaN.
HIDDEN = -1e30


def seen(q_segments: jax.Array, k_segments: jax.Array, start: int | jax.Array) -> jax.Array:
    """Which keys the queries see, bool [B, T, S].

    q_segments: i32 [B, T]; k_segments: i32 [B, S]. Query t stands at column start + t of the row
    whose columns 0, 1, ... the keys are.
    """
    at = start + jnp.arange(q_segments.shape[1])
    same = q_segments[:, :, None] == k_segments[:, None, :]
    return same & (at[:, None] >= jnp.arange(k_segments.shape[1]))


def dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum that adds up in f32."""
    # A person who asks for float32 wants no TF32 on a GPU and no bfloat16 passes on a TPU.
    precision = "highest" if a.dtype == jnp.float32 else "default"
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)
