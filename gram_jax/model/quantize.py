"""Weights in 8 bits for scoring, in a quarter of float32's memory.

Every matrix of the layers gets one symmetric scale per output channel (`matmul.quantize`); embedding, head, norms,
biases and routers are unchanged. Scales are f32 with the shape of the matrix and 1 in its contracted dimensions.

- "int8": `params["layers"]["scales"][name]`. model/layer.py restores one layer at a time in the compute type.
- "int8_dynamic" and "float8_dynamic" (e4m3): `params["layers"]["dynamic_scales"][name]`. Activations are quantized too,
  per token, and the product is computed in 8 bits (`matmul.matmul`). The matrices of experts are restored as for
  "int8".
"""

from functools import partial
from typing import Literal

import jax

from gram_jax.model.experts import EXPERT_MATRICES
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.model.matmul import Quantized
from gram_jax.model.matmul import quantize as quantize_array
from gram_jax.tree import Tree

Weights = Literal["auto", "float32", "bfloat16", "int8", "int8_dynamic", "float8_dynamic"]
DTYPES = {"int8": "int8", "int8_dynamic": "int8", "float8_dynamic": "float8_e4m3fn"}
SCALES, DYNAMIC_SCALES = "scales", "dynamic_scales"


def quantize(params: Tree, weights: str) -> Tree:
    """The model in the format `weights`; unchanged if this is none of DTYPES."""
    if weights not in DTYPES:
        return params
    layers = dict(params["layers"])
    for name in layers.keys() & {*NUM_CONTRACTED_DIMS, *EXPERT_MATRICES}:
        first = 2 if name in EXPERT_MATRICES else 1  # after the dimensions of layers and experts
        axes = tuple(range(first, first + NUM_CONTRACTED_DIMS.get(name, 1)))
        dynamic = weights != "int8" and name in NUM_CONTRACTED_DIMS
        kind = DYNAMIC_SCALES if dynamic else SCALES
        layers[name], scale = _quantize(layers[name], axes, DTYPES[weights])
        layers[kind] = {**layers.get(kind, {}), name: scale}
    return {**params, "layers": layers}


def loaded_dtype(weights: str, compute_dtype: str) -> str:
    """The dtype in which a model is read that is then held in the format `weights`."""
    return compute_dtype if weights == "auto" or weights in DTYPES else weights


def format_of(params: Tree) -> str:
    """The format of a model's weights: a name of DTYPES, else their dtype."""
    layers = params["layers"]
    if DYNAMIC_SCALES in layers:
        eight = layers[next(iter(layers[DYNAMIC_SCALES]))].dtype
        return "int8_dynamic" if eight == "int8" else "float8_dynamic"
    return "int8" if SCALES in layers else str(jax.tree.leaves(layers)[0].dtype)


@partial(jax.jit, static_argnames=("axes", "dtype"))
def _quantize(matrix: jax.Array, axes: tuple[int, ...], dtype: str) -> Quantized:
    return quantize_array(matrix, axes, dtype)
