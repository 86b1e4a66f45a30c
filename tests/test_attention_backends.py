"""Every back end means the same, on one device and on rows cut over a mesh, and lets nothing leak."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import random_params, random_rows

from gram_jax.model.attention import attention, splash
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.sharding import make_placement

T, B, H = 256, 2, 16
HEADS = {"MHA": (4, 4), "GQA": (4, 2), "MQA": (4, 1)}
MESHES = {
    "one": {},
    "data 2": {"data": 2},
    "sequence 2": {"sequence": 2},
    "sequence 4": {"sequence": 4},
    "sequence 8": {"sequence": 8},
    "data 2, sequence 4": {"data": 2, "sequence": 4},
    "tensor 2, sequence 4": {"tensor": 2, "sequence": 4},
    "data 2, tensor 2, sequence 2": {"data": 2, "tensor": 2, "sequence": 2},
}
# What runs here: splash step by step in Pallas' interpreter.
CASES = [
    ("blocked", "one"),
    ("blocked", "data 2"),
    ("blocked", "sequence 4"),
    ("xla", "data 2, tensor 2, sequence 2"),
    *(("ring", mesh) for mesh in MESHES if mesh != "data 2"),
    ("splash", "one"),
    ("splash", "data 2"),
    ("splash", "sequence 2"),
]


@cache
def placement_of(mesh):
    sizes = MESHES[mesh]
    return make_placement(sizes, devices=jax.devices()[: int(np.prod([*sizes.values(), 1]))])


@pytest.fixture(autouse=True)
def interpreted(monkeypatch, request):
    if "splash" in request.node.name:
        monkeypatch.setattr(splash, "INTERPRET", True)


def inputs(heads="GQA", seed=0):
    """q, k, v and the weights of a loss; documents across borders of blocks and devices, padding."""
    N, K = HEADS[heads]
    rng = np.random.default_rng(seed)
    q, k, v, weight = (rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K, N))
    segments = np.ones((B, T), np.int32)
    segments[0, 100:] = 2
    segments[1, 50:190], segments[1, 190:] = 2, 0
    return q, k, v, weight, segments


@cache
def compiled(backend, mesh, compute_dtype):
    """The output, and the gradients of q, k and v, of (q, k, v, weight, segments)."""
    execution = Execution(compute_dtype, backend, "none", placement_of(mesh))

    def loss(q, k, v, weight, segments):
        out = attention(q, k, v, segments, execution)
        assert out.dtype == compute_dtype
        return jnp.sum(out.astype(jnp.float32) * weight), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def outcome(backend, mesh, q, k, v, weight, segments, compute_dtype="float32"):
    q, k, v = (jnp.asarray(x, compute_dtype) for x in (q, k, v))
    gradients, out = compiled(backend, mesh, compute_dtype)(q, k, v, weight, segments)
    return [np.asarray(x.astype(jnp.float32)) for x in (out, *gradients)]


@pytest.mark.parametrize(
    "backend, mesh, heads",
    [
        *((*case, "GQA") for case in CASES),
        *((backend, "one", heads) for backend in ("blocked", "splash") for heads in ("MHA", "MQA")),
        *(("ring", "sequence 4", heads) for heads in ("MHA", "MQA")),
    ],
)
def test_every_back_end_is_the_definition_forward_and_backward(backend, mesh, heads):
    asked = inputs(heads)
    for got, want in zip(
        outcome(backend, mesh, *asked), outcome("xla", "one", *asked), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "backend, mesh", [("blocked", "one"), ("ring", "sequence 4"), ("splash", "one")]
)
def test_bfloat16_stays_near_float32(backend, mesh):
    asked = inputs()
    found = outcome(backend, mesh, *asked, compute_dtype="bfloat16")
    for got, want in zip(found, outcome("xla", "one", *asked), strict=True):
        # 8 bits of mantissa in inputs, probabilities and results
        assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("backend", ["blocked", "ring"])
def test_stretches_of_many_strips_and_a_rest_are_the_definition(backend):
    rng = np.random.default_rng(0)
    q, k, v, weight = (rng.normal(size=(1, 1240, 2, 8)).astype(np.float32) for _ in range(4))
    asked = q, k[:, :, :1], v[:, :, :1], weight, np.repeat([[1, 2]], 620, axis=1)
    found = outcome(backend, "sequence 2", *asked)
    for got, want in zip(found, outcome("xla", "one", *asked), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend, mesh", CASES)
def test_no_document_notices_another(backend, mesh):
    q, k, v, weight, segments = inputs()
    document = segments == 2
    before = outcome(backend, mesh, q, k, v, weight, segments)
    other = inputs(seed=1)
    q, k, v, weight = (
        np.where(document[..., None, None], b, a)
        for a, b in zip((q, k, v, weight), other, strict=False)
    )
    after = outcome(backend, mesh, q, k, v, weight, segments)
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a[~document], b[~document])
        assert np.abs(a[document] - b[document]).max() > 0.1


@pytest.mark.parametrize("backend, mesh", CASES)
def test_the_past_does_not_notice_the_future(backend, mesh):
    q, k, v, weight, _ = inputs()
    segments = np.ones((B, T), np.int32)
    first = 150  # inside a block, a strip and a device's stretch
    before = outcome(backend, mesh, q, k, v, weight, segments)[0]
    other = inputs(seed=1)
    for x, y in zip((q, k, v), other, strict=False):
        x[:, first:] = y[:, first:]
    after = outcome(backend, mesh, q, k, v, weight, segments)[0]
    assert np.array_equal(before[:, :first], after[:, :first])
    assert np.abs(before[:, first:] - after[:, first:]).max() > 0.1


@pytest.mark.parametrize("backend, mesh", CASES)
def test_padding_stays_finite_and_gives_nothing(backend, mesh):
    q, k, v, weight, segments = inputs()
    weight[segments == 0] = 0
    found = outcome(backend, mesh, q, k, v, weight, segments)
    assert all(np.isfinite(x).all() for x in found)
    for gradient in found[1:]:
        assert not gradient[segments == 0].any()


@cache
def loss_and_gradients(backend, mesh, remat):
    """Of a tiny model on packed rows of 64 positions."""
    cfg = tiny_config("qwen3", True)
    execution = Execution("float32", backend, remat, placement_of(mesh))
    seqs = random_rows(cfg, [[20, 11], [40, 20]], 64)
    aim = np.random.default_rng(5).normal(size=(*seqs.tokens.shape, cfg.embed_size))

    def loss(params):
        away = jnp.abs(hidden_states(params, cfg, seqs, execution) - aim)
        return jnp.sum(jnp.where(seqs.segments[..., None] > 0, away, 0)) / aim.size

    found = jax.jit(jax.value_and_grad(loss))(random_params(cfg, execution.placement))
    return jax.tree.map(np.asarray, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, mesh, remat",
    [
        ("ring", "sequence 2", "dots"),
        ("ring", "sequence 4", "dots"),
        ("ring", "sequence 8", "dots"),
        ("ring", "sequence 8", "none"),
        ("ring", "sequence 8", "full"),
        ("ring", "sequence 4", "attention"),
        ("ring", "tensor 2, sequence 4", "dots"),
        ("ring", "data 2, tensor 2, sequence 2", "dots"),
        ("blocked", "data 2, sequence 4", "none"),
        ("xla", "tensor 2, sequence 4", "full"),
    ],
)
def test_a_model_on_cut_rows_is_the_model_on_one_device(backend, mesh, remat):
    loss, gradients = loss_and_gradients(backend, mesh, remat)
    alone = loss_and_gradients("blocked", "one", "none")
    np.testing.assert_allclose(loss, alone[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(alone[1]), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def program(backend, mesh, length):
    """The compiled text of the gradients of one attention."""
    placement = placement_of(mesh)
    execution = Execution("float32", backend, "none", placement)
    heads = placement.sharding("batch", "time", "act_heads", "head_size")

    def abstract(n):
        return jax.ShapeDtypeStruct((B, length, n, H), "float32", sharding=heads)

    ids = jax.ShapeDtypeStruct((B, length), "int32", sharding=placement.sharding("batch", "time"))

    def loss(q, k, v, segments):
        return jnp.sum(attention(q, k, v, segments, execution) ** 2)

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(abstract(4), abstract(2), abstract(2), ids)
    return lowered.compile().as_text()


def collectives(text):
    """Collectives that stand in a program, by kind; one in a loop counts once."""
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}
    return {kind: count for kind, count in found.items() if count}


def test_gathering_costs_one_collective_for_each_of_keys_and_values():
    text = program("blocked", "sequence 8", 1024)
    # Keys, values and segments there, the gradients of keys and values back.
    assert collectives(text) == {"all-gather": 3, "reduce-scatter": 2}


def test_the_ring_never_holds_a_whole_row():
    text = program("ring", "sequence 8", 1024)
    assert set(collectives(text)) == {"collective-permute"}
    assert not re.search(r"[\[,]1024[,\]]", text)
    assert re.search(r"[\[,]1024[,\]]", program("blocked", "sequence 8", 1024))


@pytest.mark.parametrize("backend", ["blocked", "xla"])
def test_a_cut_batch_needs_no_collectives(backend):
    assert collectives(program(backend, "data 2", 256)) == {}
