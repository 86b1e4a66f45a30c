"""int8 weights for scoring, in a quarter of float32's memory.

Every matrix of the layers becomes int8 with one symmetric scale per output channel: the largest weight of a channel
is 127 times its scale. `params["layers"]["scales"][name]` holds the scales, f32 with the shape of the matrix and 1 in
its contracted dimensions. model/layer.py restores one layer at a time in the compute type. Embedding, head, norms,
biases and routers are unchanged.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gram_jax.model.experts import EXPERT_MATRICES
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.tree import Tree

LARGEST = 127


def quantize_int8(params: Tree) -> Tree:
    """The model with its layers' matrices in int8."""
    layers, scales = dict(params["layers"]), {}
    for name in layers.keys() & {*NUM_CONTRACTED_DIMS, *EXPERT_MATRICES}:
        first = 2 if name in EXPERT_MATRICES else 1  # after the dimensions of layers and experts
        axes = tuple(range(first, first + NUM_CONTRACTED_DIMS.get(name, 1)))
        layers[name], scales[name] = _quantise(layers[name], axes)
    return {**params, "layers": {**layers, "scales": scales}}


@partial(jax.jit, static_argnames="axes")
def _quantise(matrix: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    wide = matrix.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / LARGEST  # a channel of zeros
    return jnp.round(wide / scale).astype(jnp.int8), scale
