"""Weights of eight bits for scoring: a quarter of float32's memory, and close to its verdicts.

Every matrix of the layers becomes int8 with one scale per output channel, symmetric, so that an integer times its
scale is the weight: the largest of a channel is 127. `params["layers"]["scales"][name]` holds the scales, f32 with the
shape of the matrix and 1 where it is multiplied over. They are multiplied out again, one layer at a time, where the
matrix is used (model/decoder.py), and the products stay in the compute type. Embedding, head, norms and biases are
left as they are. Nothing is trained so.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.tree import Tree

LARGEST = 127


def quantize_int8(params: Tree) -> Tree:
    """The same model with its layers' matrices in int8; each matrix is given back before the next is made."""
    layers, scales = dict(params["layers"]), {}
    for name, contracted in NUM_CONTRACTED_DIMS.items():
        axes = tuple(range(1, 1 + contracted))
        layers[name], scales[name] = _quantise(layers[name], axes)
    return {**params, "layers": {**layers, "scales": scales}}


@partial(jax.jit, static_argnames="axes")
def _quantise(matrix: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    wide = matrix.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / LARGEST  # a channel of zeros
    return jnp.round(wide / scale).astype(jnp.int8), scale
