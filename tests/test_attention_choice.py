"""What each back end supports, and what "auto" selects."""

import dataclasses

import jax
import pytest
from conftest import tiny_config
from tiny_runs import tiny_recipe

from gram_jax.errors import RecipeError
from gram_jax.model.attention import backend_of
from gram_jax.model.attention.choice import AttentionTask, refusals, resolve_backend
from gram_jax.model.execution import Execution
from gram_jax.sharding import make_placement

TASK = AttentionTask(
    None,
    None,
    True,
    1024,
    kv_heads=8,
    head_size=128,
    compute_dtype="bfloat16",
    sequence=1,
    tensor=1,
)


@pytest.mark.parametrize(
    "changes, backend",
    [
        ({"platform": "cpu"}, "blocked"),
        ({"platform": "cpu", "packed": False}, "blocked"),
        ({"platform": "gpu"}, "blocked"),
        ({"platform": "gpu", "packed": False}, "cudnn"),
        ({"platform": "gpu", "packed": False, "compute_dtype": "float32"}, "blocked"),
        ({"platform": "gpu", "packed": False, "head_size": 256}, "blocked"),
        ({"platform": "gpu", "packed": False, "head_size": 256, "capability": (9, 0)}, "cudnn"),
        ({"platform": "gpu", "packed": False, "head_size": 100}, "blocked"),
        ({"platform": "tpu"}, "splash"),
        ({"platform": "tpu", "packed": False}, "splash"),
        ({"platform": "tpu", "compute_dtype": "float32"}, "blocked"),
        ({"platform": "tpu", "length": 1000}, "blocked"),
        ({"platform": "tpu", "head_size": 20}, "blocked"),
        ({"platform": "a new one"}, "blocked"),
        ({"platform": "cpu", "sequence": 2}, "ring"),
        ({"platform": "gpu", "sequence": 4, "packed": False}, "ring"),
        ({"platform": "tpu", "sequence": 8}, "splash"),
        ({"platform": "tpu", "sequence": 16}, "ring"),
    ],
)
def test_auto_takes_the_best_that_can_do_the_task(changes, backend):
    task = dataclasses.replace(TASK, **changes)
    assert resolve_backend("auto", task) == backend
    assert resolve_backend(backend, task) == backend


@pytest.mark.parametrize(
    "backend, changes, message",
    [
        ("cudnn", {"platform": "cpu"}, '"cpu"'),
        ("cudnn", {"platform": "gpu"}, "packing = false"),
        ("cudnn", {"platform": "gpu", "packed": False, "compute_dtype": "float32"}, "not float32"),
        ("cudnn", {"platform": "gpu", "packed": False, "sequence": 2}, 'use "ring"'),
        ("cudnn", {"platform": "gpu", "packed": False, "head_size": 256}, "128 .* 256"),
        ("splash", {"platform": "gpu"}, '"gpu"'),
        ("splash", {"platform": "tpu", "compute_dtype": "float32"}, "not float32"),
        ("splash", {"platform": "tpu", "length": 1000}, "896 and 1024"),
        ("splash", {"platform": "tpu", "length": 100}, "size is 128"),
        ("splash", {"platform": "tpu", "head_size": 20}, "16 and 24"),
        ("splash", {"platform": "tpu", "sequence": 16}, "128 .* 16 .* 1024.* 2048"),
        ("ring", {"sequence": 3}, "1024 .* sequence = 3.* 1023 and 1026"),
        ("auto", {"sequence": 3}, "1024 .* sequence = 3"),
        ("blocked", {"tensor": 3}, "8 .* tensor = 3: .* 2 and 4"),
    ],
)
def test_a_back_end_refuses_what_it_cannot_do(backend, changes, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        resolve_backend(backend, dataclasses.replace(TASK, **changes))


@pytest.mark.parametrize("backend", ["xla", "blocked", "ring", "cudnn", "splash", "auto"])
def test_what_is_not_known_yet_is_not_refused(backend):
    assert refusals(backend, AttentionTask()) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"execution__attention": "flash"}, "attention.*auto.*xla.*blocked.*cudnn.*splash.*ring"),
        (
            {
                "execution__attention": "cudnn",
                "batch__packing": True,
                "execution__compute_dtype": "bfloat16",
            },
            r'\[execution\] attention = "cudnn": .*packed row',
        ),
        ({"execution__attention": "cudnn"}, 'not float32: use compute = "bfloat16"'),
        (
            {"execution__attention": "splash", "execution__compute_dtype": "bfloat16"},
            "192: .* 128 and 256",
        ),
        ({"mesh__sequence": 5}, "192 .* sequence = 5: .* 190 and 195"),
    ],
)
def test_a_recipe_is_refused_when_it_is_read(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        tiny_recipe("finetune", tmp_path / "run", **changes)


def test_the_baseline_counts_as_packed(tmp_path):
    asked = {"execution__attention": "cudnn", "execution__compute_dtype": "bfloat16"}
    assert not tiny_recipe("finetune", tmp_path / "run", **asked).packed
    with pytest.raises(RecipeError, match="bradley_terry"):
        tiny_recipe("bradley_terry", tmp_path / "run", **asked)


def test_the_mesh_and_the_model_determine_the_back_end(one_device):
    cfg = tiny_config("llama", True)
    halves = make_placement({"sequence": 2}, devices=jax.devices()[:2])
    assert backend_of(Execution("float32", "auto", "none", one_device), cfg, 64) == "blocked"
    assert backend_of(Execution("float32", "auto", "none", halves), cfg, 64) == "ring"
    with pytest.raises(RecipeError, match="needs a TPU"):
        backend_of(Execution("bfloat16", "splash", "none", one_device), cfg, 128)
