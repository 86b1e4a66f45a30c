"""Options of the compiler by chip: which are passed on, and to which programs."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.compiler import SCORING, TRAINING, compiler_options, with_compiler_options


def placement_on(platform: str, kind: str) -> Any:
    """Of one device of this kind."""
    devices = np.array([SimpleNamespace(device_kind=kind)], object)
    return SimpleNamespace(platform=platform, mesh=SimpleNamespace(devices=devices))


@pytest.mark.parametrize("table", [TRAINING, SCORING])
@pytest.mark.parametrize("kind", sorted(SCORING))
def test_a_recipe_adds_changes_and_removes_options_of_a_chip(table, kind):
    tpu, own = placement_on("tpu", kind), table.get(kind, {})
    texts = {name: json.dumps(value) for name, value in own.items()}
    assert compiler_options(tpu, table=table) == texts
    changed = compiler_options(tpu, {"a": True, "b": 2.5}, table)
    assert changed == {**texts, "a": "true", "b": "2.5"}
    assert compiler_options(tpu, dict.fromkeys(own, ""), table) == {}


@pytest.mark.parametrize("kind", ["TPU v5", "TPU v5p", "TPU v6 lite"])
@pytest.mark.parametrize("table", [TRAINING, SCORING])
def test_weights_are_gathered_asynchronously(table, kind):
    assert (
        compiler_options(placement_on("tpu", kind), table=table)["xla_enable_async_all_gather"]
        == "true"
    )


def test_other_platforms_and_unknown_chips_have_none(one_device):
    (kind, options), *_ = SCORING.items()
    assert options and compiler_options(placement_on("gpu", kind), {"a": 1}) == {}
    assert compiler_options(placement_on("tpu", "TPU v99"), table=SCORING) == {}
    program = jax.jit(lambda x: x + 1)
    assert with_compiler_options(program, one_device)(jnp.ones(())) == 2
