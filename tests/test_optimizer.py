"""The schedule, the decay mask and the clipping that a recipe asks for."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from gram_jax import tree
from gram_jax.errors import RecipeError
from gram_jax.model.lora import LoraConfig, lora_specs
from gram_jax.model.specs import ParamSpec, init_params, param_specs
from gram_jax.recipes.tables import OptimizerConfig
from gram_jax.training import compact_adam
from gram_jax.training.compact_adam import EightBitCodes, random_bits
from gram_jax.training.optimizer import make_optimizer, make_schedule, warmup_steps
from gram_jax.training.state import abstract_state, init_state, shardings_of

BASE = OptimizerConfig(
    learning_rate=1.0,
    warmup_steps=0.1,
    lr_scheduler_type="cosine",
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    max_grad_norm=1.0,
)


def changed(**values) -> OptimizerConfig:
    return dataclasses.replace(BASE, **values)


def rates(optimizer: OptimizerConfig, steps: int) -> np.ndarray:
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
    found = rates(changed(lr_scheduler_type=name), 100)
    expected = [curve((step - 10) / 90) for step in range(10, 101)]
    np.testing.assert_allclose(found[10:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(0.1, 15, 2), (3, 15, 3), (0, 15, 0)])
def test_a_warm_up_is_a_share_or_a_number_of_steps(warmup: float, steps: int, expected: int):
    optimizer = changed(warmup_steps=warmup)
    assert warmup_steps(optimizer, steps) == expected
    assert rates(optimizer, steps)[expected] == 1.0


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(RecipeError, match="nothing is left"):
        make_schedule(changed(warmup_steps=5), 5)


def decayed_by(specs) -> set[str]:
    """The weights that change without a gradient."""
    optimizer = make_optimizer(changed(weight_decay=0.5, warmup_steps=0), 10, specs)
    params = tree.map_with_path(lambda _, spec: jnp.ones(spec.shape), specs)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    return {path for path, update in tree.walk(updates) if float(jnp.abs(update).max()) > 0}


def test_weight_decay_touches_both_matrices_of_a_lora():
    specs = lora_specs(tiny_config("qwen2", tied=False), LoraConfig(2, 4.0, ("q",)))
    assert decayed_by(specs) == {"layers/lora/q/a", "layers/lora/q/b"}


@pytest.mark.slow
def test_weight_decay_touches_matrices_only():
    specs = param_specs(tiny_config("qwen2", tied=False))
    decayed = decayed_by(specs)
    norms_and_biases = {path for path in tree.flatten(specs) if "norm" in path or "bias" in path}
    assert decayed == tree.flatten(specs).keys() - norms_and_biases


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_clipping_limits_the_global_norm_and_zero_means_none(clip: float):
    specs = {"a": ParamSpec((2,), ("embed",), "normal")}
    # Adam's first step divides by the gradient's size: look at its first moment instead
    optimizer = make_optimizer(changed(max_grad_norm=clip, b1=0.0), 10, specs)
    params = {"a": jnp.zeros(2)}
    _, state = optimizer.update({"a": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (2,)]
    assert float(jnp.linalg.norm(moments[0])) == pytest.approx(1.0 if clip else 50.0, rel=1e-5)


def test_the_first_moment_can_be_kept_in_bfloat16():
    specs = {"a": ParamSpec((2,), ("embed",), "normal")}
    state = make_optimizer(changed(first_moment_dtype="bfloat16"), 10, specs).init(
        {"a": jnp.zeros(2)}
    )
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


KINDS = [("bfloat16", "bfloat16"), ("int8", "int8"), ("float32", "factored"), ("int8", "factored")]


def matrix_spec(rows: int = 64, columns: int = 256) -> dict[str, ParamSpec]:
    return {"layers": {"up": ParamSpec((2, rows, columns), ("layers", "embed", "mlp"), "normal")}}


def descend(optimizer: OptimizerConfig, steps: int = 200) -> tuple[float, np.ndarray]:
    """(loss, weights) after minimising a badly scaled quadratic with noisy gradients."""
    specs = matrix_spec()
    update = make_optimizer(optimizer, steps, specs)
    shape = specs["layers"]["up"].shape
    aim = jax.random.normal(jax.random.key(0), shape)
    # columns differ by a factor of a thousand, within every block of a scale
    stretch = jnp.logspace(-1.5, 1.5, shape[-1])

    def loss(params):
        return 0.5 * jnp.mean(stretch * jnp.square(params["layers"]["up"] - aim))

    @jax.jit
    def step(params, state, key):
        grads = jax.grad(loss)(params)
        noise = 1 + 0.5 * jax.random.normal(key, shape)
        grads = jax.tree.map(lambda g: g * noise * shape[0] * shape[1] * shape[2], grads)
        updates, state = update.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params = jax.tree.map(jnp.zeros_like, {"layers": {"up": aim}})
    state = jax.jit(update.init)(params)
    for number in range(steps):
        params, state = step(params, state, jax.random.key(number))
    return float(loss(params)), np.asarray(params["layers"]["up"])


@pytest.mark.parametrize(("first", "second"), KINDS)
def test_moments_in_fewer_bytes_descend_as_full_ones_do(first: str, second: str):
    settings = {"learning_rate": 0.03, "max_grad_norm": 0.0, "b2": 0.999, "warmup_steps": 0}
    full, weights = descend(changed(**settings))
    start = descend(changed(**settings), steps=1)[0]
    found, others = descend(
        changed(**settings, first_moment_dtype=first, second_moment_dtype=second)
    )
    assert full < 0.02 * start
    assert found < 1.2 * full
    # how far the two ways lie apart, against how far they went
    apart = np.linalg.norm(others - weights) / np.linalg.norm(weights)
    assert apart < (0.02 if second != "factored" else 0.2), apart


def test_a_second_moment_in_fewer_bytes_follows_changes_smaller_than_its_steps():
    """Rounding to the nearest value would leave it where it is: it changes by a thousandth each time."""
    specs = matrix_spec()
    shape = specs["layers"]["up"].shape
    for kind in ("bfloat16", "int8"):
        update = make_optimizer(
            changed(max_grad_norm=0.0, second_moment_dtype=kind, warmup_steps=0), 3000, specs
        )
        step = jax.jit(lambda g, s, p, update=update: update.update(g, s, p)[1])
        params = {"layers": {"up": jnp.zeros(shape)}}
        state = update.init(params)
        loud, quiet = ({"layers": {"up": jnp.full(shape, size)}} for size in (1.0, 0.1))
        for number in range(1500):
            state = step(loud if number < 300 else quiet, state, params)
        kept = [x for x in jax.tree.leaves(state) if x.shape == shape and x.dtype != jnp.float32]
        values = kept[0].astype(jnp.float32)
        if kind == "int8":  # one value everywhere: the scale carries it
            scale = next(x for x in jax.tree.leaves(state) if x.shape == (*shape[:-1], 2))
            values = jnp.repeat(scale, 128, -1) * (values / 255) ** 4
        expected = (1 - 0.999**300) * 0.999**1200 + (1 - 0.999**1200) * 0.01
        assert float(values.mean()) == pytest.approx(expected, rel=0.01)


def test_codes_of_8_bits_are_right_on_average_and_close_for_small_and_large_values():
    values = jnp.tile(jnp.logspace(-6, 0, 128), (4096, 1))
    bits = random_bits(values.shape, jnp.int32(3), 0)
    for signed in (True, False):
        codes = EightBitCodes(signed=signed)
        x = values * jnp.where(jnp.arange(128) % 2 == 0, 1, -1) if signed else values
        back = codes.read(codes.write(x, bits))
        assert codes.write(x, bits)[0].dtype == (jnp.int8 if signed else jnp.uint8)
        # on average; what is rounded up to the smallest code of a second moment is too large
        known = slice(64, None) if signed else slice(0, None)
        np.testing.assert_allclose(back.mean(0)[known], x[0][known], rtol=0.03, atol=2e-7)
        apart = jnp.abs(back - x).max(0) / jnp.abs(x[0])
        assert float(apart[-1]) < 0.04
        assert float(apart[-43:].max()) < (0.2 if signed else 0.08)  # down to a hundredth
    assert float(codes.read(codes.write(jnp.zeros((2, 128)), bits[:2])).max()) == 0.0
    tiny = codes.read(codes.write(jnp.ones((1, 128)).at[0, 1:].set(1e-30), bits[:1]))
    assert float(tiny.min()) > 0


@pytest.mark.parametrize(("first", "second"), KINDS)
def test_every_leaf_of_a_compact_state_lies_on_the_mesh_as_its_weight_does(first, second, cube):
    specs = matrix_spec() | {"embed": ParamSpec((256, 64), ("vocab", "embed_table"), "normal")}
    optimizer = make_optimizer(
        changed(first_moment_dtype=first, second_moment_dtype=second), 10, specs
    )
    abstract = abstract_state(specs, optimizer, cube, "float32")
    params = init_params(specs, jax.random.key(0), cube, "float32")
    state = init_state(params, optimizer, abstract)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), abstract
    )
    shape = specs["layers"]["up"].shape
    whole = [x for x in jax.tree.leaves(state.opt_state) if x.shape == shape]
    assert len(whole) == (1 if second == "factored" else 2)
    assert all(x.sharding == params["layers"]["up"].sharding for x in whole)
    if first == "int8":
        (scale,) = {x.sharding.spec for x in jax.tree.leaves(state) if x.shape == (2, 64, 2)}
        assert scale == params["layers"]["up"].sharding.spec


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ("float32", "float32", 8.0),
        ("bfloat16", "float32", 6.0),
        ("bfloat16", "bfloat16", 4.0),
        ("int8", "int8", 2.0625),
        ("int8", "factored", 1.039),
    ],
)
def test_moments_take_the_bytes_that_they_are_said_to(first, second, share):
    specs = matrix_spec(1024, 1024)
    optimizer = make_optimizer(
        changed(first_moment_dtype=first, second_moment_dtype=second), 10, specs
    )
    params = {"layers": {"up": jax.ShapeDtypeStruct((2, 1024, 1024), jnp.float32)}}
    state = jax.eval_shape(optimizer.init, params)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / (2 * 1024 * 1024)
    assert size == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize(("first", "second"), [("int8", "int8"), ("bfloat16", "factored")])
def test_a_weight_that_is_updated_part_by_part_gets_the_update_of_the_whole(
    first, second, monkeypatch
):
    specs = matrix_spec() | {"embed": ParamSpec((96, 256), ("vocab", "embed_table"), "normal")}
    optimizer = make_optimizer(
        changed(first_moment_dtype=first, second_moment_dtype=second), 10, specs
    )
    params = tree.map_with_path(lambda _, spec: jnp.ones(spec.shape), specs)
    grads = tree.map_with_path(
        lambda path, spec: jax.random.normal(jax.random.key(len(path)), spec.shape), specs
    )
    found = {}
    for limit in (1, 2**30):
        monkeypatch.setattr(compact_adam, "LOOPED", limit)
        update = jax.jit(lambda *given: optimizer.update(*given))
        updates, state = update(grads, optimizer.init(params), params)
        found[limit] = jax.tree.leaves(updates), jax.tree.leaves(state)
    # the random bits differ, the first update does not depend on them
    for whole, parts in zip(found[1][0], found[2**30][0], strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-6)
    for whole, parts in zip(found[1][1], found[2**30][1], strict=True):
        assert (whole.shape, whole.dtype) == (parts.shape, parts.dtype)
        size = max(np.abs(np.asarray(whole, np.float32)).max(initial=0), 1e-9)
        np.testing.assert_allclose(
            np.asarray(whole, np.float32) / size, np.asarray(parts, np.float32) / size, atol=0.02
        )
