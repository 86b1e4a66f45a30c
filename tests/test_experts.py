"""Mixtures of experts: exact for any routing, the same on every mesh, and measured."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import random_params, random_rows

from gram_jax import tree
from gram_jax.batch import VerdictBatch
from gram_jax.errors import LayoutError, RecipeError
from gram_jax.model.config import Experts, ModelConfig
from gram_jax.model.decoder import hidden_states, hidden_states_and_load
from gram_jax.model.execution import Execution
from gram_jax.model.experts import (
    balance_loss,
    grouped_kernel,
    max_load,
    mixture,
    outer_kernel,
    route,
)
from gram_jax.model.lora import LoraConfig, lora_specs, lora_targets
from gram_jax.model.quantize import quantize
from gram_jax.model.specs import param_specs
from gram_jax.plan.flops import layer_weights
from gram_jax.sharding import make_placement
from gram_jax.training.objectives import verdict_objective

CFG = replace(
    tiny_config("qwen3", False),
    family="qwen3_moe",
    mlp_size=16,
    query_heads=8,
    kv_heads=8,
    experts=Experts(count=8, per_token=3, normalized=True, balance=0.0),
)


@pytest.fixture(scope="module")
def params():
    return random_params(CFG, make_placement({}, devices=jax.devices()[:1]))


def weights_of_a_layer(params):
    return {name: leaf[0] for name, leaf in params["layers"].items()}


def of_every_expert(h, weights, experts: Experts):
    """The definition: all experts for every token, those that it is not sent to with weight 0."""
    probabilities, chosen, parts = route(h, weights["router"], experts)
    share = jnp.zeros_like(probabilities).at[
        jnp.arange(h.shape[0])[:, None, None], jnp.arange(h.shape[1])[None, :, None], chosen
    ].set(parts)  # fmt: skip
    gate, up, down = (weights[f"expert_{name}"] for name in ("gate", "up", "down"))
    hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", h, gate)) * jnp.einsum("btd,edf->btef", h, up)
    return jnp.einsum("btef,efd,bte->btd", hidden, down, share)


def test_values_and_gradients_are_those_of_all_experts_with_weights(params, execution):
    """Also if the router sends all tokens to the same experts, which a capacity would cut off."""
    weights = weights_of_a_layer(params)
    h, away = np.random.default_rng(0).normal(size=(2, 2, 70, CFG.embed_size)).astype(np.float32)
    same = weights | {"router": weights["router"].at[0, :3].set(9.0)}
    alike = np.concatenate([np.full_like(h[..., :1], 3.0), h[..., 1:]], -1)

    def ours(h, weights):
        return jnp.sum(mixture(h, weights, CFG, execution)[0] * away)

    def theirs(h, weights):
        return jnp.sum(of_every_expert(h, weights, CFG.experts) * away)

    with jax.default_matmul_precision("highest"):
        ours, theirs = (jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (ours, theirs))
        for inputs in ((h, weights), (alike, same)):
            (value, gradients), (expected, others) = ours(*inputs), theirs(*inputs)
            np.testing.assert_allclose(value, expected, rtol=1e-4)
            for leaf, other in zip(
                jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True
            ):
                largest = max(1.0, np.abs(other).max())
                np.testing.assert_allclose(leaf, other, atol=1e-5 * largest)


def test_the_bits_of_a_token_do_not_depend_on_the_other_tokens(params, execution):
    weights, rng = weights_of_a_layer(params), np.random.default_rng(1)
    h, others = rng.normal(size=(2, 1, 90, CFG.embed_size)).astype(np.float32)
    others[:, 7] = h[:, 40]
    run = jax.jit(lambda h: mixture(h, weights, CFG, execution)[0])
    assert (run(others)[:, 7] == run(h)[:, 40]).all()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}])
def test_experts_on_eight_devices_give_the_results_of_one(sizes, params, one_device):
    """Loss, metrics and gradients, with the load-balancing loss."""
    cfg = replace(CFG, experts=replace(CFG.experts, balance=0.1))
    seqs = random_rows(cfg, [[20, 9], [30], [12], [31]], 32)
    weights = np.array([[1, 1], [1, 0], [1, 0], [1, 0]], np.float32)
    at = np.array([[19, 28], [29, 0], [11, 0], [30, 0]], np.int32)
    batch = VerdictBatch(seqs, at, np.array([[0, 1], [1, 0], [0, 0], [1, 1]], np.int32), weights)
    found = []
    for placement in (one_device, make_placement(sizes, devices=jax.devices()[:8])):
        execution = Execution("float32", "blocked", "full", placement)
        objective = verdict_objective(cfg, execution, label_ids=(5, 9), smoothing=0.1)
        here = tree.map_with_path(
            lambda path, spec, placement=placement: placement.put(
                np.asarray(tree.flatten(params)[path]), *spec.axes
            ),
            param_specs(cfg),
        )
        found.append(jax.jit(jax.value_and_grad(objective, has_aux=True))(here, batch))
    (loss, metrics), gradients = found[0]
    (same, as_metrics), as_gradients = found[1]
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    assert metrics.keys() >= {"balance_loss", "max_load"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), as_metrics, metrics)
    for (path, leaf), (_, expected) in zip(
        tree.walk(as_gradients), tree.walk(gradients), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, atol=1e-5, rtol=1e-4, err_msg=path)
    experts = here["layers"]["expert_up"]
    assert experts.addressable_shards[0].data.shape[1] == 8 // placement.shards("experts")


@pytest.mark.torch
@pytest.mark.parametrize("sizes", [(64, 0, 32, 96), (0, 0, 256, 0), (32, 32, 32, 64)])
def test_the_kernels_of_a_tpu_multiply_groups_of_rows(sizes):
    x, w, d_y = (
        jax.random.normal(key, shape).astype("bfloat16")
        for key, shape in zip(
            jax.random.split(jax.random.key(0), 3),
            [(256, 128), (4, 128, 384), (256, 384)],
            strict=True,
        )
    )
    of_rows = np.repeat(np.arange(4), sizes)
    x = x.at[len(of_rows) :].set(np.nan)  # rows after the groups are not read
    exact = [np.asarray(part, np.float64) for part in (x, w, d_y)]
    groups = [np.flatnonzero(of_rows == expert) for expert in range(4)]
    counts = jnp.array(sizes, jnp.int32)
    found = [
        grouped_kernel(x, w, counts, transposed=False, interpret=True)[: len(of_rows)],
        grouped_kernel(d_y, w, counts, transposed=True, interpret=True)[: len(of_rows)],
        outer_kernel(x, d_y, counts, interpret=True),
    ]
    right = [
        np.concatenate([exact[0][rows] @ exact[1][e] for e, rows in enumerate(groups)]),
        np.concatenate([exact[2][rows] @ exact[1][e].T for e, rows in enumerate(groups)]),
        np.stack([exact[0][rows].T @ exact[2][rows] for rows in groups]),
    ]
    for one, expected in zip(found, right, strict=True):
        assert one.shape == expected.shape and one.dtype == "bfloat16"
        np.testing.assert_allclose(np.asarray(one, np.float64), expected, rtol=2**-8, atol=1e-3)


def test_the_load_balancing_loss_is_that_of_transformers(params, execution):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 3, 20, 8)).astype(np.float32)  # of two layers
    mask = np.ones((3, 20), np.float32)
    mask[1, 15:] = 0
    expected = theirs.load_balancing_loss_func(
        tuple(torch.from_numpy(x.reshape(-1, 8)) for x in logits), 8, 3, torch.from_numpy(mask)
    )
    from gram_jax.model.experts import Routing, load

    def of_layer(logits):
        probabilities = jax.nn.softmax(logits)
        weights, chosen = jax.lax.top_k(probabilities, 3)
        return load(Routing(probabilities, chosen, weights), mask > 0)

    assert balance_loss(jax.vmap(of_layer)(logits)) == pytest.approx(expected.item(), rel=1e-5)


def test_the_load_tells_balance_from_collapse(params, execution):
    seqs = random_rows(CFG, [[30], [11, 5]], 32)
    collapsed = dict(params["layers"])
    collapsed["router"] = jnp.zeros_like(collapsed["router"])  # ties: the first experts
    run = jax.jit(hidden_states_and_load, static_argnums=(1, 3))
    loads = [
        run({**params, "layers": layers}, CFG, seqs, execution)[1]
        for layers in (params["layers"], collapsed)
    ]
    for found in loads:
        np.testing.assert_allclose(found.assigned.sum(1), 3 * (30 + 16))
    assert 1 <= max_load(loads[0]) < max_load(loads[1]) == pytest.approx(8 / 3)


@pytest.mark.slow
def test_int8_experts_stay_close(params, execution):
    seqs = random_rows(CFG, [[30]], 32)
    eight = quantize(params, "int8")
    assert eight["layers"]["expert_up"].dtype == jnp.int8
    assert eight["layers"]["router"].dtype == jnp.float32
    h, exact = (hidden_states(p, CFG, seqs, execution)[:, :30] for p in (eight, params))
    assert np.corrcoef(np.ravel(h), np.ravel(exact))[0, 1] > 0.99


def test_a_lora_adapts_attention_and_is_refused_for_experts():
    assert lora_targets(CFG) == ["q", "k", "v", "o"]
    lora_specs(CFG, LoraConfig(2, 4.0, ("q", "o")))
    with pytest.raises(RecipeError, match="up"):
        lora_specs(CFG, LoraConfig(2, 4.0, ("q", "up")))


def test_the_work_of_a_token_is_that_of_its_experts():
    dense: ModelConfig = replace(CFG, experts=None, mlp_size=3 * CFG.mlp_size)
    router = CFG.layers * CFG.embed_size * 8
    assert layer_weights(CFG) == layer_weights(dense) + router


@pytest.mark.parametrize("experts", [Experts(8, 9, True, 0.0), Experts(0, 0, True, 0.0)])
def test_impossible_numbers_of_experts_are_refused(experts):
    with pytest.raises(LayoutError, match="experts"):
        replace(CFG, experts=experts)
