"""The fingerprint of weights covers every element of every tensor, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gram_jax import tree
from gram_jax.interop.models import load_model
from gram_jax.model.quantize import quantize
from gram_jax.scoring.fingerprint import weights_fingerprint
from gram_jax.sharding import make_placement


def one_device():
    return make_placement({}, devices=jax.devices()[:1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_one_element_of_the_last_layer_changes_it(dtype):
    _, params = load_model("tiny-random", one_device(), "bfloat16" if dtype != "float32" else dtype)
    params = quantize(params, dtype)
    flat = tree.flatten(params)
    original = weights_fingerprint(params)
    found = {original}
    for path, leaf in flat.items():
        last = tuple(size - 1 for size in leaf.shape)
        found.add(weights_fingerprint(tree.unflatten(flat | {path: leaf.at[last].add(1)})))
    assert len(found) == len(flat) + 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_exchanged_elements_change_it(axis):
    x = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)
    exchanged = jnp.flip(x, axis)
    assert weights_fingerprint({"w": x}) != weights_fingerprint({"w": exchanged})


def test_it_is_the_same_in_every_version():
    """Score files and runs are resumed by it."""
    x = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)
    assert weights_fingerprint({"w": x}) == "ac8c7dee6ceadf98"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_mesh_does_not_change_it(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 16)) * 50).astype(dtype)
    expected = weights_fingerprint({"w": x})
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    for spec in (P("a", "b"), P(None, None, "b"), P("b", "a"), P()):
        spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        assert weights_fingerprint({"w": spread}) == expected
