"""Random weights and rows for the tests of the model, and what a traced function holds."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_specs
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

LABELS = (49, 50)


def random_params(cfg: ModelConfig, placement: Placement, seed: int = 0) -> Tree:
    """f32 weights, none of them special: norms are not one, biases not zero, attention not even."""
    rng = np.random.default_rng(seed)

    def draw(path: str, spec: Any) -> jax.Array:
        value = rng.normal(size=spec.shape).astype(np.float32)
        if path.endswith("norm"):
            value = 1 + 0.3 * value
        elif path not in ("embed", "head"):
            value *= 0.25
        return jax.device_put(value, placement.sharding(*spec.axes))

    return tree.map_with_path(draw, param_specs(cfg))


def random_rows(cfg: ModelConfig, lengths: list[list[int]], T: int, seed: int = 0) -> Sequences:
    """One row per list, holding documents of these lengths one after another and then padding."""
    rng = np.random.default_rng(seed)
    tokens, positions, segments = (np.zeros((len(lengths), T), np.int32) for _ in range(3))
    for row, documents in enumerate(lengths):
        start = 0
        for number, length in enumerate(documents, 1):
            part = slice(start, start + length)
            tokens[row, part] = rng.integers(1, cfg.vocab_size, length)
            positions[row, part] = np.arange(length)
            segments[row, part] = number
            start += length
    return Sequences(tokens, positions, segments)


def shapes_in(function: Any, *args: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(primitive, shape of a result) of every equation of a traced function, at any depth."""
    return _shapes(jax.make_jaxpr(function)(*args).jaxpr)


def _shapes(jaxpr: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for equation in jaxpr.eqns:
        for result in equation.outvars:
            yield equation.primitive.name, getattr(result.aval, "shape", ())
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)
