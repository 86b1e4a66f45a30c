"""Losses against numbers worked out by hand or by the plain formula."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import shapes_in
from vocabulary_loops import exchanged_in_loops

from gram_jax.losses import next_token_nll, order_divergence, ranking_nll, smoothed_verdict_nll
from gram_jax.sharding import make_placement

# e: (minimum at, floor, L(0), L(2), L(-2), L(5)): t* = log((2 - e) / e), the floor is the entropy
# of (1 - e/2, e/2).
TABLE = {
    0.0: (None, 0.0, 0.693147, 0.126928, 2.126928, 0.006715),
    0.05: (3.6636, 0.11691, 0.693147, 0.176928, 2.076928, 0.131715),
    0.10: (2.9444, 0.19852, 0.693147, 0.226928, 2.026928, 0.256715),
    0.15: (2.5123, 0.26638, 0.693147, 0.276928, 1.976928, 0.381715),
    0.20: (2.1972, 0.32508, 0.693147, 0.326928, 1.926928, 0.506715),
}


def of_margin(t, smoothing):
    return smoothed_verdict_nll(jnp.array([t, 0.0]), jnp.array(0), smoothing)


@pytest.mark.parametrize("smoothing", TABLE)
def test_verdict_loss_table(smoothing):
    best, floor, *values = TABLE[smoothing]
    for t, value in zip((0.0, 2.0, -2.0, 5.0), values, strict=True):
        np.testing.assert_allclose(of_margin(t, smoothing), value, atol=1e-6)
    if best is not None:
        np.testing.assert_allclose(of_margin(best, smoothing), floor, atol=1e-5)
        assert abs(jax.grad(of_margin)(best, smoothing)) < 1e-5


@pytest.mark.parametrize("smoothing", TABLE)
@pytest.mark.parametrize("t", [-4.0, 0.0, 1.5, 7.0])
def test_verdict_gradient_is_sigma_minus_the_smoothed_label(t, smoothing):
    expected = 1 / (1 + math.exp(-t)) - (1 - smoothing / 2)
    np.testing.assert_allclose(jax.grad(of_margin)(t, smoothing), expected, atol=1e-6)


def test_verdict_loss_depends_on_the_label_and_stays_finite():
    logits = jnp.array([[1.0, -2.0], [1.0, -2.0], [90.0, -90.0], [90.0, -90.0]])
    got = smoothed_verdict_nll(logits, jnp.array([0, 1, 0, 1]), 0.1)
    expected = [of_margin(3.0, 0.1), of_margin(-3.0, 0.1), 0.05 * 180, 180 - 0.05 * 180]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_without_smoothing_the_verdict_loss_is_bradley_terry():
    logits = jax.random.normal(jax.random.key(0), (50, 2)) * 5
    label = jax.random.bernoulli(jax.random.key(1), shape=(50,)).astype(jnp.int32)
    preferred = jnp.take_along_axis(logits, label[:, None], 1)[:, 0]
    other = jnp.take_along_axis(logits, 1 - label[:, None], 1)[:, 0]
    np.testing.assert_allclose(
        smoothed_verdict_nll(logits, label, 0.0), ranking_nll(preferred, other), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("logit_diff", "swapped", "value"),
    [
        (2.0, -2.0, 0.0),  # the same response in both orders
        (0.0, 0.0, 0.0),  # a judge without a preference is consistent
        (1.0, 1.0, 2 * math.tanh(0.5)),  # always the first: p = sigma(1), q = sigma(-1)
        (3.0, 0.0, 3 * (1 / (1 + math.exp(-3)) - 0.5)),
    ],
)
def test_order_divergence_table(logit_diff, swapped, value):
    for one, other in [(logit_diff, swapped), (swapped, logit_diff)]:
        found = order_divergence(jnp.array(one), jnp.array(other))
        np.testing.assert_allclose(found, value, rtol=1e-6)


def test_order_divergence_pulls_both_orders_together_with_equal_force():
    slopes = jax.grad(order_divergence, argnums=(0, 1))(1.5, 0.5)
    assert slopes[0] > 0 and slopes[1] > 0
    swapped = jax.grad(order_divergence, argnums=(0, 1))(0.5, 1.5)
    np.testing.assert_allclose(slopes, swapped[::-1], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(order_divergence, argnums=(0, 1))(2.0, -2.0), (0, 0))


@pytest.mark.torch
def test_smoothing_means_what_it_means_in_torch():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    label = np.arange(20) % 2
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(label), label_smoothing=0.1, reduction="none"
    )
    np.testing.assert_allclose(
        smoothed_verdict_nll(logits, jnp.array(label), 0.1), theirs.numpy(), atol=1e-6
    )


# Stage 1

B, T, D, V = 2, 24, 16, 288
ONE = make_placement({}, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def written():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    head = rng.normal(size=(V, D)).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = (rng.random((B, T)) * (rng.random((B, T)) > 0.4)).astype(np.float32)
    return hidden, head, targets, weights


def plain_nll(hidden, head, targets, weights):
    logs = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head, precision="highest"))
    return -jnp.sum(weights * jnp.take_along_axis(logs, targets[..., None], -1)[..., 0])


@pytest.mark.parametrize("chunk", [1, 10, 14, 1000])
def test_chunked_cross_entropy_is_the_plain_one(chunk, written):
    hidden, head, targets, weights = written

    def chunked(hidden, head):
        # Twice, to see that an outer gradient passes through.
        return (
            2.0 * next_token_nll(hidden, head, targets, weights, chunk_size=chunk, placement=ONE)[0]
        )

    def plain(hidden, head):
        return 2.0 * plain_nll(hidden, head, targets, weights)

    got, grads = jax.jit(jax.value_and_grad(chunked, (0, 1)))(hidden, head)
    expected, expected_grads = jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, head)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(chunked)(hidden, head), expected, rtol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    total, count = next_token_nll(hidden, head, targets, weights, chunk_size=chunk, placement=ONE)
    np.testing.assert_allclose(count, weights.sum(), rtol=1e-6)
    assert total.dtype == count.dtype == jnp.float32


def test_tokens_of_weight_zero_cost_nothing(written):
    hidden, head, targets, weights = written
    other = np.where(weights > 0, targets, 0)
    loss = [
        next_token_nll(hidden, head, t, weights, chunk_size=10, placement=ONE)[0]
        for t in (targets, other)
    ]
    assert loss[0] == loss[1]
    gradient = jax.grad(
        lambda h: next_token_nll(h, head, targets, weights, chunk_size=10, placement=ONE)[0]
    )(hidden)
    assert not gradient[weights == 0].any()


def test_bfloat16_hidden_states_give_f32_sums(written):
    hidden, head, targets, weights = written

    def loss(h, w):
        return next_token_nll(h, w, targets, weights, chunk_size=10, placement=ONE)[0]

    half = jnp.asarray(hidden, jnp.bfloat16)
    got, grads = jax.value_and_grad(loss, (0, 1))(half, head)
    assert got.dtype == jnp.float32
    assert grads[0].dtype == jnp.bfloat16 and grads[1].dtype == jnp.float32
    np.testing.assert_allclose(got, loss(hidden, head), rtol=2e-2)


def test_no_array_holds_more_logits_than_a_chunk(written):
    hidden, head, targets, weights = written
    chunk = 16  # = D, so that the head and its gradient are as large as a chunk of logits

    def loss(hidden, head):
        return next_token_nll(hidden, head, targets, weights, chunk_size=chunk, placement=ONE)[0]

    step = jax.value_and_grad(loss, (0, 1))
    sizes = [math.prod(shape) for _, shape in shapes_in(step, hidden, head) if V in shape]
    assert sizes and max(sizes) <= chunk * V
    compiled = jax.jit(step).lower(hidden, head).compile().as_text()
    shapes = [[int(n) for n in s.split(",")] for s in re.findall(r"\w\[([\d,]+)\]", compiled)]
    sizes = [math.prod(shape) for shape in shapes if V in shape]
    assert sizes and max(sizes) <= chunk * V


@pytest.mark.parametrize("kind, expected", [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_float32_products_ask_for_float32_and_bfloat16_ones_for_one_pass(kind, expected, written):
    hidden, head, targets, weights = written
    hidden, head = hidden.astype(kind), head.astype(kind)

    def loss(hidden, head):
        return next_token_nll(hidden, head, targets, weights, chunk_size=10, placement=ONE)[0]

    for function in (loss, jax.grad(loss, (0, 1))):
        found = re.findall(
            r"precision=\S*?(HIGHEST|DEFAULT)", str(jax.make_jaxpr(function)(hidden, head))
        )
        assert set(found) == {expected}


# Stage 1 on a mesh

MESHES = (
    {"fsdp": 8},
    {"data": 8},
    {"tensor": 8},
    {"data": 2, "fsdp": 4},
    {"fsdp": 4, "sequence": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "tensor": 2, "sequence": 2},
)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_the_loss_and_its_gradients_are_the_same_on_every_mesh(mesh, dtype, rounding):
    """Products of bfloat16: hidden states' gradients are sums of rounded parts over the vocabulary."""
    rng = np.random.default_rng(1)
    hidden, head = (rng.normal(size=size).astype(np.float32) for size in ((8, T, D), (V, D)))
    targets = rng.integers(0, V, (8, T)).astype(np.int32)
    weights = (rng.random((8, T)) * (rng.random((8, T)) > 0.4)).astype(np.float32)

    def of(placement):
        def loss(hidden, head):
            given = hidden.astype(dtype), head, targets, weights
            return next_token_nll(*given, chunk_size=50, placement=placement)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)

    for one, many in zip(
        jax.tree.leaves(of(ONE)), jax.tree.leaves(of(make_placement(mesh))), strict=True
    ):
        np.testing.assert_allclose(many, one, rtol=0, atol=rounding * np.abs(one).max())


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_no_loop_exchanges_logits_their_gradient_or_the_head(mesh, tied):
    """The head, tied to a table that is sharded the other way in its lookup, or apart from it."""
    exchanged, of_vocabulary = exchanged_in_loops(make_placement(mesh), tied=tied)
    assert not of_vocabulary
    assert exchanged or mesh == {"data": 8}
