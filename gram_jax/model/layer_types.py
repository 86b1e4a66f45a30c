"""What differs between the layers of a model: rotary angles and the window of attention, by their layer types."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.model.config import LayerType, ModelConfig
from gram_jax.model.rope import Rope, rope_angles

UNLIMITED = 2**30  # the window of a layer with full attention, if others have one

Window = (
    int | jax.Array | None
)  # number of keys that a query sees, its own included; None: all before it


class LayerVariants(NamedTuple):
    """The rope and window of every layer of a call; `numbers` goes through the scan over the layers.

    ropes: of each variant; stacked on a leading axis if there are several. windows: of each variant. numbers: i32 [L],
    variant of each layer, None if all layers are the same.
    """

    ropes: Rope
    windows: tuple[int | None, ...]
    numbers: np.ndarray | None

    def of(self, number: jax.Array | np.integer | None) -> tuple[Rope, Window]:
        """Rope and window of a layer, from its entry of `numbers`."""
        if number is None:
            return self.ropes, self.windows[0]
        rope = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), self.ropes
        )
        if set(self.windows) == {None}:
            return rope, None
        windows = [UNLIMITED if window is None else window for window in self.windows]
        return rope, jnp.array(windows, jnp.int32)[number]


def layer_variants(cfg: ModelConfig, positions: jax.Array, longest: int) -> LayerVariants:
    """The variants among the layers of `cfg` at these positions, i32 [B, T].

    longest: most keys that a query can see. A window of as many is none.
    """
    traits = cfg.traits
    window = traits.window if traits.window is not None and traits.window < longest else None

    def variant(kind: LayerType) -> tuple[LayerType, int | None]:
        """A layer type with the same angles, and the window."""
        local = kind == "sliding" and traits.local_rope_theta is not None
        angles: LayerType = kind if local or kind == "no_rope" else "full"
        return angles, window if kind == "sliding" else None

    of_layers = [variant(kind) for kind in layer_types(cfg)]
    variants = list(dict.fromkeys(of_layers))
    ropes = [rope_angles(positions, cfg, kind) for kind, _ in variants]
    windows = tuple(window for _, window in variants)
    if len(variants) == 1:
        return LayerVariants(ropes[0], windows, None)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *ropes)
    numbers = np.array([variants.index(one) for one in of_layers], np.int32)
    return LayerVariants(stacked, windows, numbers)


def layer_types(cfg: ModelConfig) -> tuple[LayerType, ...]:
    """The type of each layer."""
    kinds = cfg.traits.layer_types
    return tuple(kinds[layer % len(kinds)] for layer in range(cfg.layers))
