"""One training step: the arithmetic of averages, skipped batches, placement."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from gram_jax import tree
from gram_jax.batch import BradleyTerryBatch, Sequences, TokenBatch, VerdictBatch
from gram_jax.data.feed import to_device
from gram_jax.model.execution import Execution
from gram_jax.model.lora import LoraConfig, init_lora, lora_scales, lora_specs
from gram_jax.model.specs import ParamSpec, init_params, param_specs, score_spec
from gram_jax.recipes.tables import OptimizerConfig
from gram_jax.training.objectives import (
    bradley_terry_objective,
    pretrain_objective,
    verdict_objective,
)
from gram_jax.training.optimizer import make_optimizer, make_schedule
from gram_jax.training.state import abstract_state, init_state, shardings_of
from gram_jax.training.step import make_eval_step, make_train_step

CFG = tiny_config("llama", tied=True)
ROWS, LENGTH = 8, 16
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2,
    warmup_steps=0,
    lr_scheduler_type="constant",
    b1=0.9,
    b2=0.999,
    eps=1e-4,  # large, so that rounding in a gradient near zero does not become a whole Adam step
    weight_decay=0.1,
    max_grad_norm=1.0,
)

SCHEDULE = make_schedule(OPTIMIZER, 10)


def make_batch(stage: str, seed: int = 0):
    """Rows of one document each, of different lengths and weights, on the host."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, CFG.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    lengths = rng.integers(4, LENGTH + 1, ROWS)
    real = np.arange(LENGTH) < lengths[:, None]
    positions = np.where(real, np.arange(LENGTH), 0).astype(np.int32)
    seqs = Sequences(np.where(real, tokens, 0), positions, real.astype(np.int32))
    weights = rng.integers(0, 3, (ROWS, 1)).astype(np.float32)
    weights[0] = 1
    last = (lengths - 1)[:, None].astype(np.int32)
    if stage == "pretrain":
        targets = np.roll(tokens, -1, 1)
        inside = np.arange(LENGTH) < lengths[:, None] - 1
        return TokenBatch(seqs, targets, (inside * weights).astype(np.float32))
    if stage == "finetune":
        label = rng.integers(0, 2, (ROWS, 1)).astype(np.int32)
        return VerdictBatch(seqs, last, label, weights)
    return BradleyTerryBatch(seqs, last, last // 2, weights)


def make_objective(stage: str, execution: Execution):
    if stage == "pretrain":
        return pretrain_objective(CFG, execution, chunk_size=32)
    if stage == "finetune":
        return verdict_objective(CFG, execution, label_ids=(68, 69), smoothing=0.1)
    return bradley_terry_objective(CFG, execution)


def specs_of(stage: str):
    specs = param_specs(CFG)
    if stage == "bradley_terry":
        specs["score"] = score_spec(CFG)
    return specs


@cache
def made(stage, execution, microbatches, max_skipped, lora):
    """(specs, optimizer, abstract state, step), compiled once for all tests that ask for them."""
    specs = specs_of(stage) if lora is None else lora_specs(CFG, lora)
    optimizer = make_optimizer(OPTIMIZER, 10, specs)
    abstract = abstract_state(specs, optimizer, execution.placement, "float32")
    limits = {"microbatches": microbatches, "max_skipped": max_skipped}
    objective, placement = make_objective(stage, execution), execution.placement
    step = make_train_step(
        objective, optimizer, SCHEDULE, shardings_of(abstract), placement, **limits
    )
    return specs, optimizer, abstract, step


class Bench:
    """A state and a step for one stage on one placement."""

    def __init__(self, stage, execution, microbatches=1, max_skipped=0, lora=None):
        self.placement = execution.placement
        specs, optimizer, abstract, self.step = made(
            stage, execution, microbatches, max_skipped, lora
        )
        base = init_params(specs_of(stage), jax.random.key(1), self.placement, "float32")
        self.frozen, params = {}, base
        if lora is not None:
            scale = {"layers": {"lora_scale": lora_scales(CFG, lora, self.placement)}}
            self.frozen = tree.merge(base, scale)
            params = init_lora(specs, jax.random.key(2), self.placement, "float32")
        self.state = init_state(params, optimizer, abstract)

    def run(self, batch):
        """One step; the metrics as means."""
        self.state, metrics = self.step(self.state, self.frozen, to_device(batch, self.placement))
        return {name: float(total / count) for name, (total, count) in metrics.items()}

    def weights(self):
        return jax.tree.map(np.asarray, self.state)


def assert_close(a, b, atol=2e-5):
    for (path, x), y in zip(tree.walk(a), tree.flatten(b).values(), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "bradley_terry"])
def test_one_two_and_four_microbatches_make_the_same_step(stage: str, execution: Execution):
    results = []
    for microbatches in (1, 2, 4) if stage == "finetune" else (1, 4):
        bench = Bench(stage, execution, microbatches)
        metrics = [bench.run(make_batch(stage, seed)) for seed in (0, 1)]
        results.append((metrics, bench.weights()))
    for metrics, state in results[1:]:
        for mine, first in zip(metrics, results[0][0], strict=True):
            assert mine == pytest.approx(first, rel=1e-4, abs=1e-6)
        assert_close(state.params, results[0][1].params)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_one_device_and_eight_make_the_same_step(stage: str, execution: Execution, cube):
    alone = Bench(stage, execution)
    spread = Bench(stage, dataclasses.replace(execution, placement=cube), microbatches=2)
    # Random weights depend on no placement, so both begin alike.
    assert_close(spread.weights().params, alone.weights().params, atol=0)
    for seed in (0, 1):
        batch = make_batch(stage, seed)
        assert spread.run(batch) == pytest.approx(alone.run(batch), rel=1e-4, abs=1e-6)
    assert_close(spread.weights().params, alone.weights().params)


def test_the_loss_is_the_mean_over_the_weights_of_the_whole_batch(execution: Execution):
    batch = make_batch("finetune")
    bench = Bench("finetune", execution, microbatches=4)
    one_by_one = Bench("finetune", execution)
    losses = []
    objective = make_eval_step(make_objective("finetune", execution), execution.placement)
    for row in range(ROWS):
        part = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        losses.append(objective(one_by_one.state.params, {}, part)["loss"])
    total = sum(float(loss) for loss, _ in losses) / sum(float(count) for _, count in losses)
    assert bench.run(batch)["loss"] == pytest.approx(total, rel=1e-5)


def test_rows_without_weight_change_nothing(execution: Execution):
    batch = make_batch("finetune")
    other = make_batch("finetune", 7)
    empty = batch.weights[:, 0] == 0
    assert empty.any()
    swapped = batch._replace(
        seqs=Sequences(
            *(
                np.where(empty[:, None], theirs, mine)
                for mine, theirs in zip(batch.seqs, other.seqs, strict=True)
            )
        ),
        label=np.where(empty[:, None], 1 - batch.label, batch.label),
    )
    a, b = Bench("finetune", execution), Bench("finetune", execution)
    assert a.run(batch)["grad_norm"] == pytest.approx(b.run(swapped)["grad_norm"], rel=1e-5)
    assert_close(a.weights().params, b.weights().params)


def test_a_batch_of_weight_zero_is_no_error(execution: Execution):
    batch = make_batch("finetune")
    bench = Bench("finetune", execution)
    metrics = bench.run(batch._replace(weights=np.zeros_like(batch.weights)))
    assert metrics["grad_norm"] == 0
    assert metrics["bad"] == 0


def poisoned(batch):
    weights = batch.weights.copy()
    weights[0] = np.inf
    return batch._replace(weights=weights)


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def test_a_non_finite_batch_leaves_the_state_bit_for_bit_and_so_do_all_after_it(
    execution: Execution,
):
    bench = Bench("finetune", execution)
    bench.run(make_batch("finetune", 0))
    before = bench.weights()
    metrics = bench.run(poisoned(make_batch("finetune", 1)))
    assert metrics["bad"] == 1
    bench.run(make_batch("finetune", 2))  # the loop finds out one step late
    after = bench.weights()
    uncounted = {"skipped": 0, "in_a_row": 0}
    assert bits(after._replace(**uncounted)) == bits(before._replace(**uncounted))
    assert int(after.step) == 1


@pytest.mark.slow
def test_an_allowed_skip_leaves_weights_and_moments_and_goes_on(execution: Execution):
    bench = Bench("finetune", execution, max_skipped=1)
    before = bench.weights()
    bench.run(poisoned(make_batch("finetune", 1)))
    after = bench.weights()
    assert bits(after.params) == bits(before.params)
    assert bits(after.opt_state) == bits(before.opt_state)
    assert (int(after.step), int(after.skipped)) == (1, 1)
    assert bench.run(make_batch("finetune", 2))["bad"] == 0
    assert bits(bench.weights().params) != bits(before.params)
    assert int(bench.weights().step) == 2


def test_so_many_bad_batches_in_a_row_stop_and_single_ones_do_not(execution: Execution):
    bench = Bench("finetune", execution, max_skipped=1)
    for number in range(
        3
    ):  # bad ones apart from each other, more of them than may follow each other
        bench.run(poisoned(make_batch("finetune", number)))
        bench.run(make_batch("finetune", number))
    state = bench.weights()
    assert (int(state.step), int(state.skipped), int(state.in_a_row)) == (6, 3, 0)
    bench.run(poisoned(make_batch("finetune", 1)))
    last_good = bench.weights()
    bench.run(poisoned(make_batch("finetune", 2)))
    bench.run(make_batch("finetune", 3))  # comes too late
    stopped = bench.weights()
    assert bits(stopped.params) == bits(last_good.params)
    assert bits(stopped.opt_state) == bits(last_good.opt_state)
    assert (int(stopped.step), int(stopped.skipped), int(stopped.in_a_row)) == (7, 5, 2)


def test_the_rate_that_is_reported_is_the_one_that_is_applied_after_a_skip(one_device):
    settings = dataclasses.replace(OPTIMIZER, lr_scheduler_type="linear", weight_decay=0.0)
    schedule = make_schedule(settings, 10)
    specs = {"w": ParamSpec((), (), "zeros")}
    optimizer = make_optimizer(settings, 10, specs)
    abstract = abstract_state(specs, optimizer, one_device, "float32")

    def objective(params, batch):
        loss = params["w"] * batch.weights.sum()
        return loss, {"loss": (loss, jnp.float32(1))}

    limits = {"microbatches": 1, "max_skipped": 1}
    step = make_train_step(
        objective, optimizer, schedule, shardings_of(abstract), one_device, **limits
    )
    weight = jax.device_put(jnp.float32(1), one_device.sharding())
    state = init_state({"w": weight}, optimizer, abstract)
    good = make_batch("pretrain")
    bad = good._replace(weights=np.full_like(good.weights, np.nan))
    for index, batch in enumerate((good, bad, good, good)):
        before = float(state.params["w"])
        state, metrics = step(state, {}, to_device(batch, one_device))
        if index != 1:  # Adam on a constant gradient moves by the rate
            moved = before - float(state.params["w"])
            assert moved == pytest.approx(float(metrics["learning_rate"][0]), rel=1e-3)


def test_lora_trains_its_own_weights_and_leaves_the_base(execution: Execution):
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q", "down"))
    bench = Bench("finetune", execution, microbatches=2, lora=lora)
    base = jax.tree.map(np.asarray, bench.frozen)
    before = bench.weights().params
    bench.run(make_batch("finetune", 0))
    bench.run(make_batch("finetune", 1))
    assert bits(bench.frozen) == bits(base)
    assert all(
        not np.array_equal(x, tree.flatten(before)[path])
        for path, x in tree.walk(bench.weights().params)
    )
    assert set(tree.flatten(bench.weights().params)) == {
        f"layers/lora/{name}/{side}" for name in ("q", "down") for side in "ab"
    }


@pytest.mark.slow
def test_the_step_reports_norm_rate_and_tokens(execution: Execution):
    batch = make_batch("finetune")
    bench = Bench("finetune", execution)
    params = bench.weights().params
    metrics = bench.run(batch)
    objective = make_objective("finetune", execution)

    def mean(params):
        total, metrics = objective(params, batch)
        return total / metrics["loss"][1]

    grads = jax.jit(jax.grad(mean))(params)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["learning_rate"] == pytest.approx(1e-2)
    assert metrics["num_tokens"] == np.sum(batch.seqs.segments > 0)


def test_a_step_makes_no_copies_of_the_state(one_device):
    size = 1 << 20
    specs = {"a": ParamSpec((size,), ("embed",), "normal")}
    optimizer = make_optimizer(OPTIMIZER, 10, specs)
    abstract = abstract_state(specs, optimizer, one_device, "float32")

    def objective(params, batch):
        loss = jnp.sum(params["a"] ** 2)
        return loss, {"loss": (loss, jnp.float32(1))}

    limits = {"microbatches": 1, "max_skipped": 0}
    step = make_train_step(
        objective, optimizer, SCHEDULE, shardings_of(abstract), one_device, **limits
    )
    compiled = step.lower(abstract, {}, make_batch("finetune")).compile()
    # The gradient and its update; selecting between the old state and the new one copies moments.
    assert compiled.memory_analysis().temp_size_in_bytes <= 2.5 * 4 * size
