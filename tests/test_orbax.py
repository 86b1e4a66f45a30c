"""Training checkpoints: restored on any mesh, complete or absent, and refused for another model."""

import errno
import shutil
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config
from model_cases import random_params

from gram_jax import tree
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.sharding import Placement


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any


CFG = tiny_config("llama", True)
OPTIMIZER = optax.adamw(1e-3)


def new_state(placement: Placement, step: int = 0) -> State:
    """A training state, made without compilation."""
    params = random_params(CFG, placement, seed=step)

    def moment(leaf):
        sharding = leaf.sharding if leaf.ndim else placement.sharding()
        return jax.device_put(np.full(leaf.shape, step + 0.5, leaf.dtype), sharding)

    opt_state = jax.tree.map(moment, jax.eval_shape(OPTIMIZER.init, params))
    return State(jax.device_put(np.int32(step), placement.sharding()), params, opt_state)


def shape_of(state: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_state_is_restored_bit_for_bit_on_any_mesh(tmp_path, one_device, cube):
    state = new_state(cube, 1)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(1, state)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        assert checkpoints.latest() == 1
        here = new_state(one_device)
        found = checkpoints.restore(None, shape_of(here))
        assert found.params["embed"].sharding == here.params["embed"].sharding
        assert_same(found, state)
        back = checkpoints.restore(None, shape_of(state))
    assert_same(back, state)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert a.sharding == b.sharding


def test_the_parameters_are_read_without_the_rest_and_in_any_dtype(tmp_path, one_device):
    state = new_state(one_device, 1)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(1, state)
    shutil.rmtree(tmp_path / "c" / "1" / "rest")  # it need not even be there
    with Checkpoints(tmp_path / "c", keep=None) as checkpoints:
        shapes = checkpoints.params_shapes()
        assert tree.differences(shapes, state.params) == []
        assert_same(checkpoints.restore_params(None, shape_of(state.params)), state.params)
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
        assert_same(checkpoints.restore_params(1, shape_of(half)), half)


def test_the_newest_are_kept_and_a_step_that_is_there_stays(tmp_path, one_device):
    first, second = new_state(one_device, 1), new_state(one_device, 2)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, first)
        checkpoints.wait()
        checkpoints.save(3, second, blocking=True)
        assert checkpoints.all_steps() == [2, 3]
        assert_same(checkpoints.restore(3, shape_of(first)), first)


def test_the_donated_buffers_of_a_running_save_may_be_overwritten(tmp_path, one_device):
    params = {"w": jnp.arange(1_000_000, dtype=jnp.float32)}
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(0, {"params": params, "step": jnp.int32(0)})
        for _ in range(5):
            params = step(params)
        checkpoints.wait()
        abstract = shape_of({"params": params, "step": jnp.int32(0)})
        found = checkpoints.restore(0, abstract)["params"]["w"]
    np.testing.assert_array_equal(found, np.arange(1_000_000, dtype=np.float32))


def test_an_interrupted_save_is_no_checkpoint(tmp_path, one_device):
    state = new_state(one_device, 1)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        checkpoints.save(1, state)
    torn = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "1", torn)
    with Checkpoints(tmp_path / "c", keep=None) as reader:
        assert reader.all_steps() == [1]
    assert torn.exists()  # a reader leaves it: another process may be writing it
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, state)
    with Checkpoints(tmp_path / "c", keep=None) as reader:
        assert reader.all_steps() == [1, 2]


def test_missing_checkpoints_are_errors(tmp_path, one_device):
    state = new_state(one_device)
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoints(tmp_path / "nowhere", keep=None)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            checkpoints.restore(None, shape_of(state))
        checkpoints.save(5, state, blocking=True)
        with pytest.raises(CheckpointError, match=r"of step 7; there are steps \[5\]"):
            checkpoints.restore(7, shape_of(state))
    with (
        Checkpoints(tmp_path / "c", keep=None) as reader,
        pytest.raises(CheckpointError, match="reading only"),
    ):
        reader.save(9, state)


def test_another_model_is_refused_with_every_difference(tmp_path, one_device):
    state = new_state(one_device)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        checkpoints.save(5, state, blocking=True)
        leaves = tree.flatten(shape_of(state.params))
        leaves["head"] = leaves.pop("final_norm")
        sharding = leaves["head"].sharding
        leaves["embed"] = jax.ShapeDtypeStruct((9, 32), jnp.float32, sharding=sharding)
        with pytest.raises(LayoutError) as error:
            checkpoints.restore_params(5, tree.unflatten(leaves))
        lines = str(error.value).splitlines()[1:]
        assert [line.split(":")[0].strip() for line in lines] == ["embed", "final_norm", "head"]
        assert "[288, 32]" in lines[0] and "[9, 32]" in lines[0]
        other = shape_of(state)._replace(opt_state=optax.sgd(0.1).init(state.params))
        with pytest.raises(LayoutError, match="optimizer"):
            checkpoints.restore(5, other)


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, one_device, monkeypatch):
    state = new_state(one_device)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        checkpoints.save(1, state, blocking=True)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
            with pytest.raises(CheckpointError, match=r"is full: .* MB .* 0\.0 MB"):
                checkpoints.save(2, state)
        assert checkpoints.all_steps() == [1]


def test_a_failure_in_the_background_is_raised_by_the_next_call(tmp_path, one_device, monkeypatch):
    state = new_state(one_device)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        checkpoints.save(1, state, blocking=True)

        def fail():
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "check_for_errors", fail)
            for call in (checkpoints.wait, lambda: checkpoints.save(2, state)):
                with pytest.raises(CheckpointError, match=r"disk .* is full"):
                    call()
        assert checkpoints.all_steps() == [1]


def test_the_present_interface_of_orbax_is_used(tmp_path, one_device):
    state = new_state(one_device)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
            checkpoints.save(1, state, blocking=True)
            checkpoints.restore(1, shape_of(state))
