"""cuDNN: what is lowered for a GPU, and, where there is one, that it is right.

The suite runs on CPUs. On a machine with a CUDA GPU:
GRAM_JAX_TEST_PLATFORMS=cpu,cuda python -m pytest tests/test_attention_cudnn.py
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

import gram_jax.model.attention as attention_room
from gram_jax.errors import RecipeError
from gram_jax.model.attention import attention, backend_of
from gram_jax.model.execution import Execution
from gram_jax.sharding import make_placement

B, T, N, K, H = 4, 256, 4, 2, 64
LENGTHS = (256, 100, 129, 1)


def gpus():
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return []


on_gpu = pytest.mark.skipif(not gpus(), reason="no CUDA GPU, or not asked for: see the top")


@pytest.fixture
def pretended(monkeypatch):
    """JAX asks the GPU at hand what it can do before it lowers for one; there is none."""
    door = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(door, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(door, "check_compute_capability", lambda least: True)
    true_task = attention_room.attention_task

    def on_a_gpu(*args, **kwargs):
        return dataclasses.replace(true_task(*args, **kwargs), platform="gpu", capability=(9, 0))

    monkeypatch.setattr(attention_room, "attention_task", on_a_gpu)


@pytest.mark.parametrize(
    "sizes, heads",
    [({}, f"{B}x{T}x{N}x{H}"), ({"data": 2, "tensor": 2}, f"{B // 2}x{T}x{N // 2}x{H}")],
)
def test_rows_of_one_document_are_lowered_to_cudnn_calls(pretended, sizes, heads):
    placement = make_placement(sizes, devices=jax.devices()[: 4 if sizes else 1])
    execution = Execution("bfloat16", "auto", "none", placement, packed=False)

    def loss(q, k, v, segments):
        return jnp.sum(attention(q, k, v, segments, execution).astype(jnp.float32) ** 2)

    def abstract(n):
        sharding = placement.sharding("batch", "time", "act_heads", "head_size")
        return jax.ShapeDtypeStruct((B, T, n, H), "bfloat16", sharding=sharding)

    ids = jax.ShapeDtypeStruct((B, T), "int32", sharding=placement.sharding("batch", "time"))
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(abstract(N), abstract(K), abstract(K), ids)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\$\w+)\((.*)", text)
    assert [name for name, _ in calls] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    # What a device computes is its own rows and heads, in bfloat16, without repeated keys.
    for _, call in calls:
        assert f"tensor<{heads}xbf16>" in call
    assert "f32>" not in calls[0][1].split("->")[0]


def test_packed_rows_are_not_given_to_cudnn(pretended, one_device):
    cfg = dataclasses.replace(tiny_config("llama", True), head_size=64)
    packed = Execution("bfloat16", "auto", "none", one_device)
    assert backend_of(packed, cfg, T) == "blocked"
    assert backend_of(dataclasses.replace(packed, packed=False), cfg, T) == "cudnn"
    with pytest.raises(RecipeError, match="packing = false"):
        backend_of(dataclasses.replace(packed, attention="cudnn"), cfg, T)


def on_the_gpu(backend, q, k, v, weight, segments):
    """Output and gradients in f32; q, k and v go in as bfloat16."""
    placement = make_placement({}, devices=gpus()[:1])
    execution = Execution("bfloat16", backend, "none", placement, packed=False)

    def loss(q, k, v):
        out = attention(q, k, v, segments, execution)
        return jnp.sum(out.astype(jnp.float32) * weight), out

    put = [jax.device_put(jnp.asarray(x, "bfloat16"), gpus()[0]) for x in (q, k, v)]
    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*put)
    return [np.asarray(x.astype(jnp.float32)) for x in (out, *gradients)]


def inputs(seed):
    rng = np.random.default_rng(seed)
    q, k, v, weight = (rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K, N))
    real = np.arange(T) < np.array(LENGTHS)[:, None]
    return q, k, v, np.where(real[..., None, None], weight, 0), real


@on_gpu
def test_cudnn_is_the_definition_forward_and_backward():
    *arrays, real = inputs(0)
    segments = real.astype(np.int32)
    ours = on_the_gpu("cudnn", *arrays, segments)
    for got, want in zip(ours, on_the_gpu("xla", *arrays, segments), strict=True):
        assert np.isfinite(got).all()
        assert np.abs(got - want)[real].max() < 0.02 * np.abs(want).max()
    assert not any(gradient[~real].any() for gradient in ours[1:])


@on_gpu
def test_cudnn_lets_nothing_out_of_padding_or_of_the_future():
    q, k, v, weight, real = inputs(0)
    segments = real.astype(np.int32)
    before = on_the_gpu("cudnn", q, k, v, weight, segments)
    other = inputs(1)
    q, k, v = (
        np.where(real[..., None, None], a, b) for a, b in zip((q, k, v), other, strict=False)
    )
    padding_changed = on_the_gpu("cudnn", q, k, v, weight, segments)
    assert np.array_equal(before[0][real], padding_changed[0][real])
    for a, b in zip(before[1:], padding_changed[1:], strict=True):
        # cuDNN adds gradients up in no fixed order; what leaks would be of the size of the values.
        assert np.abs(a - b)[real].max() < 0.02 * np.abs(a).max()
    for x, y in zip((q, k, v), other, strict=False):
        x[:, 128:] = y[:, 128:]
    future_changed = on_the_gpu("cudnn", q, k, v, weight, segments)
    past = real & (np.arange(T) < 128)
    assert np.array_equal(before[0][past], future_changed[0][past])
