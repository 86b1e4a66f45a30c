"""Stages 1 and 2 and the baseline: what they look at, what they hold, on one device and eight."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import LABELS, random_params, random_rows, shapes_in
from scipy.special import expit, logit

from gram_jax.batch import BradleyTerryBatch, RationaleBatch, TokenBatch, VerdictBatch
from gram_jax.model.decoder import hidden_states
from gram_jax.model.heads import hidden_at, label_logits, unembedding
from gram_jax.sharding import make_placement
from gram_jax.training.objectives import (
    bradley_terry_objective,
    consistent_verdict_objective,
    pretrain_objective,
    rationale_objective,
    verdict_objective,
)

CFG = tiny_config("qwen2", True)
ROWS = [[9, 20, 12], [40], [15, 15], [33]]
T = 48


def verdict_batch() -> VerdictBatch:
    """Documents end at their verdict; the last slot of most rows is unused."""
    at, label, weights = (np.zeros((4, 3), kind) for kind in (np.int32, np.int32, np.float32))
    for row, lengths in enumerate(ROWS):
        ends = np.cumsum(lengths) - 1
        at[row, : len(ends)] = ends
        label[row, : len(ends)] = (np.arange(len(ends)) + row) % 2
        weights[row, : len(ends)] = 1.0
    return VerdictBatch(random_rows(CFG, ROWS, T), at, label, weights)


def token_batch() -> TokenBatch:
    seqs = random_rows(CFG, ROWS, T)
    targets = np.roll(seqs.tokens, -1, axis=1)
    weights = ((seqs.segments > 0) & (seqs.segments == np.roll(seqs.segments, -1, 1))) * 1.0
    return TokenBatch(seqs, targets, weights.astype(np.float32))


def rationale_batch() -> RationaleBatch:
    """The last five tokens of every row's first document are a rationale; the last two of seven slots are unused."""
    seqs, at, label, weights = verdict_batch()
    slots = np.arange(7)
    target_at = np.where(slots < 5, at[:, :1] - 5 + slots, 0).astype(np.int32)
    targets = np.take_along_axis(seqs.tokens, target_at + 1, 1)
    target_weights = np.where(slots < 5, weights[:, :1] / 5, 0).astype(np.float32)
    return RationaleBatch(seqs, target_at, targets, target_weights, at, label, weights)


def ranking_batch() -> BradleyTerryBatch:
    """Rows of two documents: one pair each."""
    seqs = random_rows(CFG, [[10, 20], [30, 6], [5, 5], [17, 31]], T)
    chosen = np.array([[9], [35], [4], [16]], np.int32)
    rejected = np.array([[29], [29], [9], [47]], np.int32)
    return BradleyTerryBatch(seqs, chosen, rejected, np.array([[1], [1], [0], [1]], np.float32))


def mixed_objective(cfg, execution, chunk_size):
    return rationale_objective(
        cfg, execution, label_ids=LABELS, smoothing=0.1, verdict_weight=0.5, rationale_weight=2.0,
        chunk_size=chunk_size,
    )  # fmt: skip


def objective_of(stage, execution):
    if stage == "pretrain":
        return pretrain_objective(CFG, execution, chunk_size=64), token_batch()
    if stage == "finetune":
        make = verdict_objective(CFG, execution, label_ids=LABELS, smoothing=0.1)
        return make, verdict_batch()
    if stage == "rationale":
        return mixed_objective(CFG, execution, chunk_size=16), rationale_batch()
    return bradley_terry_objective(CFG, execution), ranking_batch()


def params_of(stage, placement):
    params = random_params(CFG, placement)
    if stage == "bradley_terry":
        score = np.random.default_rng(7).normal(size=(1, CFG.embed_size)).astype(np.float32)
        params["score"] = jax.device_put(score, placement.sharding(None, None))
    return params


def step(stage, execution):
    """((loss sum, metrics), gradients), the batch spread as training spreads it."""
    objective, batch = objective_of(stage, execution)
    sharding = execution.placement.sharding("batch", None)
    batch = jax.tree.map(lambda x: jax.device_put(x, sharding), batch)
    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    return run(params_of(stage, execution.placement), batch)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["blocked", "xla"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "rationale", "bradley_terry"])
def test_eight_devices_compute_what_one_computes(stage, backend, execution, cube):
    execution = dataclasses.replace(execution, attention=backend)
    (loss, metrics), gradients = step(stage, execution)
    assert loss == metrics["loss"][0]
    spread = dataclasses.replace(execution, placement=cube)
    (loss8, metrics8), gradients8 = step(stage, spread)
    np.testing.assert_allclose(loss, loss8, rtol=1e-5)
    # A margin of nothing may fall on either side, hence the strict accuracy is left out.
    for name in metrics.keys() - {"accuracy"}:
        np.testing.assert_allclose(metrics[name], metrics8[name], rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(a).max())),
        gradients,
        gradients8,
    )


@pytest.mark.parametrize("stage", ["finetune", "rationale"])
def test_a_mesh_may_spread_time_too(stage, execution):
    (loss, _), _ = step(stage, execution)
    mesh = make_placement({"data": 2, "sequence": 2, "tensor": 2}, devices=jax.devices()[:8])
    (spread, _), _ = step(stage, dataclasses.replace(execution, placement=mesh))
    np.testing.assert_allclose(loss, spread, rtol=1e-5)


def test_stage_one_is_the_mean_log_loss_of_the_weighted_tokens(execution, one_device):
    objective, batch = objective_of("pretrain", execution)
    params = params_of("pretrain", one_device)
    loss, metrics = objective(params, batch)
    hidden = hidden_states(params, CFG, batch.seqs, execution)
    logits = jnp.einsum("btd,vd->btv", hidden, unembedding(params, CFG), precision="highest")
    logs = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), batch.targets[..., None], axis=-1
    )
    np.testing.assert_allclose(loss, -(logs[..., 0] * batch.weights).sum(), rtol=1e-5)
    assert metrics["loss"] == (loss, batch.weights.sum())


def test_only_the_verdict_position_matters_in_stage_two(execution, one_device):
    """What stands behind the verdict, and the other rows of the head, change nothing."""
    cfg = tiny_config("qwen2", False)
    objective = verdict_objective(cfg, execution, label_ids=LABELS, smoothing=0.1)
    batch = verdict_batch()
    batch = batch._replace(
        verdict_at=np.array([[5], [30], [8], [20]], np.int32),
        label=batch.label[:, :1],
        weights=batch.weights[:, :1],
    )
    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    params = random_params(cfg, one_device)
    (loss, _), gradients = run(params, batch)
    columns = np.arange(T)
    later = (batch.seqs.segments > 0) & (columns > batch.verdict_at)
    rubbish = batch.seqs._replace(tokens=np.where(later, 3, batch.seqs.tokens).astype(np.int32))
    rows = np.arange(cfg.vocab_size)[:, None]
    head = jnp.where(np.isin(rows, LABELS), params["head"], 77.0)
    (other, _), _ = run({**params, "head": head}, batch._replace(seqs=rubbish))
    assert loss == other
    touched = np.flatnonzero(np.abs(gradients["head"]).max(axis=1))
    assert touched.tolist() == list(LABELS)


def test_unused_verdict_slots_cost_nothing(execution, one_device):
    objective, batch = objective_of("finetune", execution)
    params = params_of("finetune", one_device)
    run = jax.jit(objective)
    loss, metrics = run(params, batch)
    unused = batch.weights == 0
    other = batch._replace(
        verdict_at=np.where(unused, T - 1, batch.verdict_at).astype(np.int32),
        label=np.where(unused, 1, batch.label).astype(np.int32),
    )
    assert loss == run(params, other)[0]
    assert metrics["accuracy"][1] == batch.weights.sum() == 7


@pytest.mark.parametrize("scale", [1.0, 0.02])  # without and with margins between 0 and 1
def test_verdict_metrics_by_hand(execution, one_device, scale):
    objective, batch = objective_of("finetune", execution)
    params = params_of("finetune", one_device)
    params["embed"] *= scale
    _, metrics = objective(params, batch)
    hidden = hidden_at(hidden_states(params, CFG, batch.seqs, execution), batch.verdict_at)
    logits = np.asarray(label_logits(params, CFG, hidden, LABELS), np.float64)
    gap = (logits[..., 0] - logits[..., 1])[batch.weights > 0]
    margin = np.where(batch.label[batch.weights > 0] == 0, gap, -gap)
    assert ((margin > 0) & (margin < 1)).any() == (scale < 1)
    expected = {
        "accuracy": (margin > 0).sum(),
        "margin": margin.sum(),
        "p_first": (1 / (1 + np.exp(-gap))).sum(),
        "loss": (np.log1p(np.exp(-margin)) + 0.05 * margin).sum(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name][0], value, rtol=1e-4)


def shapes_of_products(compiled: str) -> list[list[int]]:
    """Every shape, of results and operands, in the lines of compiled HLO that multiply matrices."""
    lines = [x for x in compiled.splitlines() if re.search(r"\b(dot|custom-call|convolution)\(", x)]
    assert lines
    found = re.findall(r"\w\[([\d,]+)\]", "\n".join(lines))
    return [[int(n) for n in shape.split(",")] for shape in found]


def test_stage_two_multiplies_by_nothing_of_the_size_of_the_vocabulary(execution, one_device):
    objective, batch = objective_of("finetune", execution)
    params = params_of("finetune", one_device)
    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    compiled = run.lower(params, batch).compile().as_text()
    assert not [shape for shape in shapes_of_products(compiled) if CFG.vocab_size in shape]


def test_stage_one_holds_no_more_logits_than_a_chunk(execution, one_device):
    cfg = dataclasses.replace(CFG, vocab_size=1024)
    chunk = 2 * cfg.embed_size
    objective = pretrain_objective(cfg, execution, chunk_size=chunk)
    batch = token_batch()
    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    compiled = run.lower(random_params(cfg, one_device), batch).compile().as_text()
    shapes = [[int(n) for n in s.split(",")] for s in re.findall(r"\w\[([\d,]+)\]", compiled)]
    largest = max(math.prod(shape) for shape in shapes if cfg.vocab_size in shape)
    assert largest <= chunk * cfg.vocab_size < batch.targets.size * cfg.vocab_size


def test_stage_rationale_computes_logits_of_the_vocabulary_for_targets_only(execution, one_device):
    cfg, chunk = (
        dataclasses.replace(CFG, vocab_size=1024),
        12,
    )  # of 4 rows of 7 targets and 48 columns
    run = jax.value_and_grad(mixed_objective(cfg, execution, chunk), has_aux=True)
    found = list(shapes_in(run, random_params(cfg, one_device), rationale_batch()))
    logits = {
        shape for _, shape in found if cfg.vocab_size in shape and cfg.embed_size not in shape
    }
    assert logits and {math.prod(shape[:-1]) for shape in logits} <= {1, chunk}
    # 3 pieces of 3 columns, and in each one product for the logits and two for the gradients
    products = [shape for name, shape in found if name == "dot_general" and cfg.vocab_size in shape]
    assert sorted(products) == [(4, 3, cfg.vocab_size), (cfg.vocab_size, cfg.embed_size)]


def test_ranking_loss_is_bradley_terry_of_the_two_rewards(execution, one_device):
    objective, batch = objective_of("bradley_terry", execution)
    params = params_of("bradley_terry", one_device)
    loss, metrics = objective(params, batch)
    rewards = np.asarray(hidden_states(params, CFG, batch.seqs, execution) @ params["score"][0])
    gap = np.take_along_axis(rewards, batch.chosen_at, 1) - np.take_along_axis(
        rewards, batch.rejected_at, 1
    )
    used = batch.weights > 0
    np.testing.assert_allclose(loss, np.log1p(np.exp(-gap[used])).sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["margin"], (gap[used].sum(), 3), rtol=1e-4)
    assert metrics["accuracy"] == ((gap[used] > 0).sum(), 3)
    both = np.concatenate([np.take_along_axis(rewards, at, 1)[used] for at in batch[1:3]])
    np.testing.assert_allclose(metrics["mean_reward"], (both.sum() / 2, 3), rtol=1e-4)


@pytest.mark.parametrize("stage, weights", [("finetune", "embed"), ("bradley_terry", "score")])
def test_a_margin_of_nothing_is_not_accurate(stage, weights, execution, one_device):
    objective, batch = objective_of(stage, execution)
    params = params_of(stage, one_device)
    _, metrics = jax.jit(objective)({**params, weights: jnp.zeros_like(params[weights])}, batch)
    assert metrics["margin"][0] == metrics["accuracy"][0] == 0
    if stage == "finetune":
        assert metrics["p_first"][0] == metrics["p_first"][1] / 2


def consistent(params, batch, execution, consistency: float):
    objective = consistent_verdict_objective(
        CFG, execution, label_ids=LABELS, smoothing=0.1, consistency=consistency
    )
    return jax.jit(objective)(params, batch)


def pair_batch(*labels: int) -> VerdictBatch:
    """Two documents in a row: both orders of a pair, with the label of the first."""
    lengths = [[10, 20], [30, 6], [5, 5], [17, 31]]
    ends = np.cumsum(lengths, axis=1).astype(np.int32) - 1
    label = np.array([[y, 1 - y if y >= 0 else -1] for y in labels], np.int32)
    return VerdictBatch(random_rows(CFG, lengths, T), ends, label, np.ones((4, 2), np.float32))


def test_order_consistency_adds_the_divergence_of_both_orders_to_the_verdict_loss(
    execution, one_device
):
    params, batch = params_of("finetune", one_device), pair_batch(0, 1, 1, 0)
    plain, known = verdict_objective(CFG, execution, label_ids=LABELS, smoothing=0.1)(params, batch)
    none, metrics = consistent(params, batch, execution, 0.0)
    np.testing.assert_allclose(none, plain, rtol=1e-6)
    for name in ("accuracy", "margin", "p_first"):
        np.testing.assert_allclose(metrics[name], known[name], rtol=1e-6)
    hidden = hidden_states(params, CFG, batch.seqs, execution)
    logits = label_logits(params, CFG, hidden_at(hidden, batch.verdict_at), LABELS)
    diff = np.asarray(logits[..., 0] - logits[..., 1], np.float64)
    p, other = expit(diff[:, 0]), expit(-diff[:, 1])  # of the same response, in both orders
    divergence = (p - other) * (logit(p) - logit(other))
    loss, metrics = consistent(params, batch, execution, 0.5)
    np.testing.assert_allclose(metrics["order_divergence"], (divergence.sum(), 4), rtol=1e-4)
    np.testing.assert_allclose(loss, plain + 0.5 * 2 * divergence.sum(), rtol=1e-5)
    assert metrics["loss"] == (loss, 8)


@pytest.mark.slow
def test_a_pair_without_a_label_has_the_divergence_only(execution, one_device):
    params = params_of("finetune", one_device)
    some, _ = consistent(params, pair_batch(0, -1, 1, -1), execution, 0.0)
    first, second = pair_batch(0, 1, 1, 0), pair_batch(0, 0, 1, 1)
    both = [consistent(params, batch, execution, 0.0)[0] for batch in (first, second)]
    none, metrics = consistent(params, pair_batch(-1, -1, -1, -1), execution, 1.0)
    assert metrics["verdict_loss"] == (0, 0) and metrics["accuracy"] == (0, 0)
    np.testing.assert_allclose(none, 2 * metrics["order_divergence"][0], rtol=1e-6)
    assert metrics["loss"][1] == 8 and 0 < some < min(both)
