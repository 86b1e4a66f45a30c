"""One decoder layer: pre-norm, rotary positions, grouped-query attention, SwiGLU.

Training, scoring, the prefix tree, generation and the Flax view all call `layer`; they differ in `mix`, which computes
attention. The traits of a model family are values of its ModelConfig, used here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.model.matmul import matmul
from gram_jax.model.rope import Rope, apply_rope
from gram_jax.model.specs import param_specs
from gram_jax.tree import Tree

# (q [B, T, N, H], k [B, T, K, H], v [B, T, K, H]) -> (mixed [B, T, N, H], state)
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def layer(
    x: jax.Array, weights: Tree, cfg: ModelConfig, rope: Rope, execution: Execution, mix: Mix
) -> tuple[jax.Array, Any]:
    """Attention, then the MLP, each added to the residual stream x [B, T, D].

    weights: those of one layer, from `cast_and_gather`. rope: angles of the positions of x. mix: from queries, keys and
    values to (attention's output, a state such as the updated cache). Returns (x after the layer, the state).
    """
    place = execution.placement.constrain
    h = rms_norm(x, weights["attention_norm"], cfg.norm_eps)
    q, k, v = (_project_heads(h, weights, name, cfg, rope, execution) for name in "qkv")
    mixed, state = mix(q, k, v)
    x = x + _project(mixed, weights, "o")
    h = rms_norm(x, weights["mlp_norm"], cfg.norm_eps)
    h = jax.nn.silu(_project(h, weights, "gate")) * _project(h, weights, "up")
    x = x + _project(place(h, "batch", "time", "act_mlp"), weights, "down")
    return place(x, "batch", "time", "act_embed"), state


def cast_and_gather(weights: Tree, cfg: ModelConfig, execution: Execution) -> Tree:
    """One layer's weights for `layer`: in the compute type and gathered along "embed". Norms stay f32.

    Inside the scan only one layer's copy exists; casting before the gather over fsdp halves the transfer.
    """
    specs, scales = param_specs(cfg)["layers"], weights.get("scales", {})

    def ready(path: str, weight: jax.Array) -> jax.Array:
        if path.endswith("_norm") or path == "lora_scale" or path.startswith("scales/"):
            return weight
        if path in scales:
            weight = weight.astype(jnp.float32) * scales[path]  # int8 (model/quantize.py)
        weight = weight.astype(execution.compute_dtype)
        if path in specs:
            axes = (None if axis == "embed" else axis for axis in specs[path].axes[1:])
            weight = execution.placement.constrain(weight, *axes)
        return weight

    return tree.map_with_path(ready, weights)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight, along the last axis, in f32 (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype)


def _project_heads(
    h: jax.Array, w: Tree, name: str, cfg: ModelConfig, rope: Rope, execution: Execution
) -> jax.Array:
    """Queries, keys or values ("q", "k", "v") of the normed h [B, T, D]: [B, T, N or K, H], rotated except for "v"."""
    x = _project(h, w, name)
    if name != "v":
        if cfg.qk_norm:
            x = rms_norm(x, w[f"{name}_norm"], cfg.norm_eps)
        x = apply_rope(x, rope)
    axis = "act_heads" if name == "q" else "act_kv_heads"
    return execution.placement.constrain(x, "batch", "time", axis, "head_size")


def _project(x: jax.Array, w: Tree, name: str) -> jax.Array:
    """x times the matrix `name`, plus its bias and its low-rank update if they exist."""
    y = matmul(x, w[name], NUM_CONTRACTED_DIMS[name])
    if f"{name}_bias" in w:
        y = y + w[f"{name}_bias"]
    if name in w.get("lora", {}):
        thin = matmul(x, w["lora"][name]["a"], NUM_CONTRACTED_DIMS[name])
        y = y + matmul(thin * w["lora_scale"].astype(x.dtype), w["lora"][name]["b"], 1)
    return y
