"""One decoder layer: norms, rotary positions, grouped-query attention, a gated MLP or a mixture of them.

Training, scoring, the prefix tree, generation and the Flax view all call `layer`; they differ in `mix`, which computes
attention. The traits of a model family are values of its ModelConfig, used here.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.experts import Routing, mixture
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.model.matmul import Quantized, matmul
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
    return routed_layer(x, weights, cfg, rope, execution, mix)[:2]


def routed_layer(
    x: jax.Array, weights: Tree, cfg: ModelConfig, rope: Rope, execution: Execution, mix: Mix
) -> tuple[jax.Array, Any, Routing | None]:
    """`layer`, and the routing of its tokens if its MLP is a mixture of experts."""
    h = _gather_positions(_norm(x, weights, "attention_norm", cfg), execution)
    q, k, v = (_project_heads(h, weights, name, cfg, rope, execution) for name in "qkv")
    mixed, state = mix(q, k, v)
    h = _divide_positions(_project(mixed, weights, "o"), execution)
    x = x + _norm(h, weights, "post_attention_norm", cfg)
    h = _gather_positions(_norm(x, weights, "mlp_norm", cfg), execution)
    h, routing = _mlp(h, weights, cfg, execution)
    h = _divide_positions(h, execution)
    x = x + _norm(h, weights, "post_mlp_norm", cfg)
    return residual(x, execution), state, routing


def residual(x: jax.Array, execution: Execution) -> jax.Array:
    """The residual stream x [B, T, D] in its sharding: positions are divided by `tensor`, too, if it divides T."""
    placement = execution.placement
    return placement.constrain(x, "batch", placement.residual_time(x.shape[1]), "act_embed")


def _gather_positions(h: jax.Array, execution: Execution) -> jax.Array:
    """The normed h [B, T, D] for products: every device of a tensor group has all positions of the group."""
    if not execution.placement.divides_residual:
        return h
    return execution.placement.constrain(residual(h, execution), "batch", "time", "act_embed")


def _divide_positions(y: jax.Array, execution: Execution) -> jax.Array:
    """A product y [B, T, D] as the residual stream: a sum over the tensor group, of which a device keeps its positions.

    The transpose of `_gather_positions`. Without the first constraint a TPU's compiler would cut the product into
    windows, which by its own estimate takes longer and sends more bytes (docs/meshes.md).
    """
    if not execution.placement.divides_residual:
        return y
    return residual(execution.placement.constrain(y, "batch", "time", "act_embed"), execution)


def _mlp(
    h: jax.Array, weights: Tree, cfg: ModelConfig, execution: Execution
) -> tuple[jax.Array, Routing | None]:
    """The gated MLP of the normed h [B, T, D], or the mixture of several."""
    if cfg.experts is not None:
        return mixture(h, weights, cfg, execution)
    activate = jax.nn.silu if cfg.traits.activation == "silu" else jax.nn.gelu  # the latter by tanh
    h = activate(_project(h, weights, "gate")) * _project(h, weights, "up")
    h = execution.placement.constrain(h, "batch", "time", "act_mlp")
    return _project(h, weights, "down"), None


def cast_and_gather(weights: Tree, cfg: ModelConfig, execution: Execution) -> Tree:
    """One layer's weights for `layer`: in the compute type and gathered along "embed". Norms and routers stay f32.

    Inside the scan only one layer's copy exists; casting before the gather over fsdp halves the transfer. Weights in 8
    bits: model/quantize.py.
    """
    specs, scales = param_specs(cfg)["layers"], weights.get("scales", {})
    dynamic = weights.get("dynamic_scales", {})

    def ready(path: str, weight: jax.Array) -> jax.Array | Quantized:
        scale = path.startswith(("scales/", "dynamic_scales/"))
        if scale or path.endswith("_norm") or path in ("lora_scale", "router"):
            return weight
        if path in scales:
            weight = weight.astype(jnp.float32) * scales[path]
        if path not in dynamic:
            weight = weight.astype(execution.compute_dtype)
        if path in specs:
            weight = execution.placement.gather(weight, *specs[path].axes[1:])
        return Quantized(weight, dynamic[path]) if path in dynamic else weight

    return tree.map_with_path(ready, weights)


def rms_norm(x: jax.Array, weight: jax.Array, cfg: ModelConfig) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * (weight + offset), along weight's axes, in f32 (arXiv 1910.07467)."""
    wide, axes = x.astype(jnp.float32), tuple(range(-weight.ndim, 0))
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + cfg.norm_eps)
    weight = weight.astype(jnp.float32)
    if cfg.traits.norm_offset:
        weight = weight + cfg.traits.norm_offset
    return (wide * scale * weight).astype(x.dtype)


def _norm(x: jax.Array, weights: Tree, name: str, cfg: ModelConfig) -> jax.Array:
    """The norm `name` of x, or x if the family has none there."""
    return rms_norm(x, weights[name], cfg) if name in weights else x


def _project_heads(
    h: jax.Array, w: Tree, name: str, cfg: ModelConfig, rope: Rope, execution: Execution
) -> jax.Array:
    """Queries, keys or values ("q", "k", "v") of the normed h [B, T, D]: [B, T, N or K, H], rotated except for "v"."""
    x = _project(h, w, name)
    if name != "v":
        if cfg.qk_norm:
            x = rms_norm(x, w[f"{name}_norm"], cfg)
        x = apply_rope(x, rope)
        if name == "q" and rope.query_scale is not None:
            x = x * rope.query_scale[..., None].astype(x.dtype)
        if name == "q" and cfg.traits.query_scale is not None:  # attention multiplies by H^-0.5
            x = x * (cfg.traits.query_scale * math.sqrt(cfg.head_size))
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
