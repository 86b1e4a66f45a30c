"""What the tests of the Flax view share."""

import jax
import numpy as np
from flax import nnx

from gram_jax import tree
from gram_jax.interop.nnx import to_params
from gram_jax.model.lora import LoraConfig, init_lora, lora_scales, lora_specs

LORA = LoraConfig(4, 8.0, ("q", "v"))


def with_lora(params, cfg, placement):
    """The tree with a LoRA that does something: b is drawn, not zero."""
    thin = init_lora(lora_specs(cfg, LORA), jax.random.key(0), placement, "float32")
    for number, pair in enumerate(thin["layers"]["lora"].values()):
        pair["b"] = 0.1 * jax.random.normal(jax.random.key(number), pair["b"].shape)
    scales = {"layers": {"lora_scale": lora_scales(cfg, LORA, placement)}}
    return tree.merge(tree.merge(params, thin), scales)


def paths_of(view, kind):
    return {"/".join(path) for path, _ in nnx.to_flat_state(nnx.state(view, kind))}


def changed(view, params):
    """Paths of the view's leaves that are no longer those of the tree."""
    before = tree.flatten(params)
    return {
        path for path, leaf in tree.walk(to_params(view)) if not np.array_equal(leaf, before[path])
    }
