"""Every weight of the decoder, declared once: shape, logical axes, initialiser."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.model.config import HEAD_ROWS, ModelConfig
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

SCORE = "score"  # the rows [Y, D] that a classifier or scalar reward model multiplies its last hidden state by


@dataclass(frozen=True)
class ParamSpec:
    """One weight. init: "normal" has standard deviation 0.02, the default of the model families.

    decays: whether weight decay applies: to matrices, not to norms and biases; default: if the weight starts random.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["normal", "zeros", "ones"]
    decays: bool | None = None

    def __post_init__(self) -> None:
        if self.decays is None:
            object.__setattr__(self, "decays", self.init == "normal")


def param_specs(cfg: ModelConfig) -> Tree:
    """The tree of ParamSpec. Layers are stacked on a leading axis and run by one scan."""
    L, D, N, K = cfg.layers, cfg.embed_size, cfg.query_heads, cfg.kv_heads
    H, F, V = cfg.head_size, cfg.mlp_size, cfg.vocab_size
    traits = cfg.traits
    unit = "zeros" if traits.norm_offset else "ones"  # of a norm that changes nothing
    norm = ParamSpec((L, D), ("layers", "act_embed"), unit)
    layers = {
        "q": ParamSpec((L, D, N, H), ("layers", "embed", "heads", "head_size"), "normal"),
        "k": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head_size"), "normal"),
        "v": ParamSpec((L, D, K, H), ("layers", "embed", "kv_heads", "head_size"), "normal"),
        "o": ParamSpec((L, N, H, D), ("layers", "heads", "head_size", "embed"), "normal"),
    }
    if cfg.experts is None:
        layers |= {
            "gate": ParamSpec((L, D, F), ("layers", "embed", "mlp"), "normal"),
            "up": ParamSpec((L, D, F), ("layers", "embed", "mlp"), "normal"),
            "down": ParamSpec((L, F, D), ("layers", "mlp", "embed"), "normal"),
        }
    else:
        E = cfg.experts.count
        wide = ("layers", "experts", "embed", "expert_mlp")
        thin = ("layers", "experts", "expert_mlp", "embed")
        layers |= {
            "router": ParamSpec((L, D, E), ("layers", "act_embed", "routes"), "normal"),
            "expert_gate": ParamSpec((L, E, D, F), wide, "normal"),
            "expert_up": ParamSpec((L, E, D, F), wide, "normal"),
            "expert_down": ParamSpec((L, E, F, D), thin, "normal"),
        }
    if traits.norms != "post":
        layers |= {"attention_norm": norm, "mlp_norm": norm}
    if traits.norms != "pre":
        layers |= {"post_attention_norm": norm, "post_mlp_norm": norm}
    if cfg.qkv_bias:
        layers["q_bias"] = ParamSpec((L, N, H), ("layers", "heads", "head_size"), "zeros")
        for name in ("k_bias", "v_bias"):
            layers[name] = ParamSpec((L, K, H), ("layers", "kv_heads", "head_size"), "zeros")
    if cfg.qk_norm:
        for name, axis, heads in (("q_norm", "heads", N), ("k_norm", "kv_heads", K)):
            layers[name] = ParamSpec((L, H), ("layers", "head_size"), unit)
            if traits.projection_norm:
                layers[name] = ParamSpec((L, heads, H), ("layers", axis, "head_size"), unit)
    specs: Tree = {
        "embed": ParamSpec((V, D), ("vocab", "embed_table"), "normal"),
        "layers": layers,
        "final_norm": ParamSpec((D,), ("act_embed",), unit),
    }
    if cfg.head != "language":
        specs[SCORE] = score_spec(cfg, HEAD_ROWS[cfg.head])
    elif not cfg.tied_head:
        specs["head"] = ParamSpec((V, D), ("vocab", "embed_table"), "normal")
    return specs


def score_spec(cfg: ModelConfig, rows: int = 1) -> ParamSpec:
    """The weight params[SCORE] of a classifier with this number of labels; 1: the discriminative baseline."""
    return ParamSpec((rows, cfg.embed_size), ("labels", "act_embed"), "normal")


def param_count(specs: Mapping[str, Any]) -> int:
    """Number of weights in a tree of specs."""
    return sum(math.prod(spec.shape) for _, spec in tree.walk(specs))


def param_shardings(specs: Mapping[str, Any], placement: Placement) -> Tree:
    """NamedSharding of every weight."""
    return tree.map_with_path(lambda _, spec: placement.sharding(*spec.axes), specs)


def init_params(specs: Mapping[str, Any], key: jax.Array, placement: Placement, dtype: str) -> Tree:
    """Random weights, each created on the devices that hold it."""

    def init(key: jax.Array) -> Tree:
        keys = jax.random.split(key, len(tree.flatten(specs)))
        rows = dict(zip(tree.flatten(specs), keys, strict=True))
        return tree.map_with_path(lambda path, spec: _initial(spec, rows[path], dtype), specs)

    return jax.jit(init, out_shardings=param_shardings(specs, placement))(key)


def _initial(spec: ParamSpec, key: jax.Array, dtype: str) -> jax.Array:
    if spec.init == "normal":
        return (0.02 * jax.random.normal(key, spec.shape, jnp.float32)).astype(dtype)
    return jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, dtype)
