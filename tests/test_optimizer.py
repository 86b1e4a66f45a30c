"""The schedule, the decay mask and the clipping that a recipe asks for."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from gram_jax import tree
from gram_jax.config import Optimizer
from gram_jax.errors import RecipeError
from gram_jax.model.specs import ParamSpec, init_params, param_specs
from gram_jax.train.optimizer import make_optimizer, make_schedule, warmup_steps
from gram_jax.train.state import abstract_state, init_state, shardings_of

BASE = Optimizer(
    learning_rate=1.0,
    warmup=0.1,
    schedule="cosine",
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    clip=1.0,
)


def changed(**values) -> Optimizer:
    return dataclasses.replace(BASE, **values)


def rates(optimizer: Optimizer, steps: int) -> np.ndarray:
    schedule = make_schedule(optimizer, steps)
    return np.array([float(schedule(step)) for step in range(steps + 1)])


def test_the_warm_up_climbs_in_equal_steps_to_the_peak_and_wastes_none():
    found = rates(BASE, 100)
    np.testing.assert_allclose(found[:11], np.arange(1, 12) / 11, rtol=1e-6)
    assert found.argmax() == 10


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        ("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * x))),
        ("linear", lambda x: 1 - x),
        ("constant", lambda x: 1.0),
    ],
)
def test_after_the_warm_up_the_rate_follows_its_curve(name: str, curve):
    found = rates(changed(schedule=name), 100)
    expected = [curve((step - 10) / 90) for step in range(10, 101)]
    np.testing.assert_allclose(found[10:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(0.1, 15, 2), (3, 15, 3), (0, 15, 0)])
def test_a_warm_up_is_a_share_or_a_number_of_steps(warmup: float, steps: int, expected: int):
    optimizer = changed(warmup=warmup)
    assert warmup_steps(optimizer, steps) == expected
    assert rates(optimizer, steps)[expected] == 1.0


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(RecipeError, match="nothing is left"):
        make_schedule(changed(warmup=5), 5)


def test_weight_decay_touches_matrices_only():
    specs = param_specs(tiny_config("qwen2", tied=False))
    optimizer = make_optimizer(changed(weight_decay=0.5, warmup=0), 10, specs)
    params = tree.map_with_path(lambda _, spec: jnp.ones(spec.shape), specs)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    decayed = {path for path, update in tree.walk(updates) if float(jnp.abs(update).max()) > 0}
    norms_and_biases = {path for path in tree.flatten(specs) if "norm" in path or "bias" in path}
    assert decayed == tree.flatten(specs).keys() - norms_and_biases


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_clipping_limits_the_global_norm_and_zero_means_none(clip: float):
    specs = {"a": ParamSpec((2,), ("embed",), "normal")}
    # Adam's first step divides by the gradient's size: look at its first moment instead
    optimizer = make_optimizer(changed(clip=clip, b1=0.0), 10, specs)
    params = {"a": jnp.zeros(2)}
    _, state = optimizer.update({"a": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (2,)]
    assert float(jnp.linalg.norm(moments[0])) == pytest.approx(1.0 if clip else 50.0, rel=1e-5)


def test_the_first_moment_can_be_kept_in_bfloat16():
    specs = {"a": ParamSpec((2,), ("embed",), "normal")}
    state = make_optimizer(changed(moments="bfloat16"), 10, specs).init({"a": jnp.zeros(2)})
    assert "bfloat16" in {x.dtype.name for x in jax.tree.leaves(state)}


def test_moments_lie_as_their_weights_do_and_scalars_are_on_every_device(cube):
    specs = param_specs(tiny_config("llama", tied=True))
    optimizer = make_optimizer(BASE, 10, specs)
    abstract = abstract_state(specs, optimizer, cube, "float32")
    params = init_params(specs, jax.random.key(0), cube, "float32")
    state = init_state(params, optimizer, abstract)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings_of(abstract)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, abstract)
    q = [x for x in jax.tree.leaves(state.opt_state) if x.shape == specs["layers"]["q"].shape]
    assert len(q) == 2
    assert all(x.sharding == state.params["layers"]["q"].sharding for x in q)
    scalars = [x for x in jax.tree.leaves(state) if x.ndim == 0]
    assert scalars
    assert all(len(x.sharding.device_set) == 8 for x in scalars)
