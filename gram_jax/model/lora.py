"""Low-rank adaptation (arXiv 2106.09685): frozen matrices plus trained products of two thin ones.

`params["layers"]["lora"][name]` holds "a" [L, in..., r] and "b" [L, r, out...]; `params["layers"]["lora_scale"]` holds
alpha / r for every layer.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.errors import LayoutError, RecipeError
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import ParamSpec, init_params, param_specs
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

# Number of contracted dimensions of each matrix, which follow the layer dimension.
NUM_CONTRACTED_DIMS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}


@dataclass(frozen=True)
class LoraConfig:
    """rank: r; alpha: the update is scaled by alpha / r; targets: matrices, such as ("q", "v")."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - NUM_CONTRACTED_DIMS.keys())
        if unknown or not self.targets:
            raise RecipeError(
                f"LoRA targets {unknown or 'are empty'}: expected {', '.join(NUM_CONTRACTED_DIMS)}"
            )
        if self.rank < 1:
            raise RecipeError(f"LoRA rank is {self.rank}: expected at least 1")


def lora_targets(cfg: ModelConfig) -> list[str]:
    """The matrices of a model that can have a LoRA: all but those of experts."""
    return [name for name in NUM_CONTRACTED_DIMS if name in param_specs(cfg)["layers"]]


def lora_specs(cfg: ModelConfig, lora: LoraConfig) -> Tree:
    """The trainable weights, as {"layers": {"lora": {name: {"a", "b"}}}}. Raises RecipeError for targets in experts."""
    layers = param_specs(cfg)["layers"]
    if missing := sorted(set(lora.targets) - set(lora_targets(cfg))):
        raise RecipeError(
            f"LoRA targets {', '.join(missing)}: the MLPs of this model are experts, which have no LoRA; targets are "
            f"{', '.join(lora_targets(cfg))}"
        )
    specs: Tree = {}
    for name in lora.targets:
        base, cut = layers[name], 1 + NUM_CONTRACTED_DIMS[name]
        a = (*base.shape[:cut], lora.rank), (*base.axes[:cut], "rank")
        b = (base.shape[0], lora.rank, *base.shape[cut:]), ("layers", "rank", *base.axes[cut:])
        specs[name] = {"a": ParamSpec(*a, "normal"), "b": ParamSpec(*b, "zeros", decays=True)}
    return {"layers": {"lora": specs}}


def init_lora(specs: Tree, key: jax.Array, placement: Placement, dtype: str) -> Tree:
    """Random a (standard deviation 1 / sqrt(inputs)) and zero b, so that the model starts as its base."""
    weights = init_params(specs, key, placement, dtype)
    for pair in weights["layers"]["lora"].values():
        inputs = math.prod(pair["a"].shape[1:-1])
        pair["a"] = pair["a"] * (1 / (0.02 * math.sqrt(inputs)))
    return weights


def lora_scales(cfg: ModelConfig, lora: LoraConfig, placement: Placement) -> jax.Array:
    """The leaf `params["layers"]["lora_scale"]`: f32 [L], not trained."""
    scales = np.full(cfg.layers, lora.alpha / lora.rank, np.float32)
    return jax.make_array_from_callback(scales.shape, placement.sharding(), lambda at: scales[at])


def merge_lora(params: Tree) -> Tree:
    """The model without LoRA: W + (alpha / r) a b, computed in f32 and stored in W's dtype.

    Raises LayoutError if W has 8 bits, whose steps are larger than most updates.
    """
    layers = dict(params["layers"])
    if eight := sorted(name for name in layers["lora"] if layers[name].dtype.itemsize == 1):
        raise LayoutError(
            f"a LoRA cannot be merged into {layers[eight[0]].dtype} matrices ({', '.join(eight)}): merge it before "
            "quantize"
        )
    scale = layers.pop("lora_scale")
    for name, pair in layers.pop("lora").items():
        update = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1, precision="highest"))(
            pair["a"].astype(jnp.float32), pair["b"].astype(jnp.float32)
        )
        steps = scale.reshape(-1, *(1,) * (update.ndim - 1))
        base = layers[name]
        layers[name] = (base.astype(jnp.float32) + steps * update).astype(base.dtype)
    return {**params, "layers": layers}
