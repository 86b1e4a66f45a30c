"""Reinforcement learning from a judge.

A step samples `num_generations` responses to each of `prompts_per_step` prompts, takes their rewards from the judge,
and updates the weights `num_epochs` times over `num_mini_batches` parts. Randomness is a function of (seed, step), so a
resumed run repeats the uninterrupted one. The frozen reference is the model that the run began with.

In a job of several processes each samples and rates the responses to its part of the prompts, on its own devices and
without the others. They exchange samples and rewards, and the updates are data-parallel as in training.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.distributed.collectives import all_gather_rows, process_part
from gram_jax.distributed.preemption import StopSync
from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import CheckpointError, NonFiniteError, explain_out_of_memory
from gram_jax.formatting import format_value
from gram_jax.interop.models import load_model
from gram_jax.model.generate import Samples, SamplingConfig
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.recipes.rl import AlgorithmConfig, RlRecipe
from gram_jax.rl.advantages import adapted_kl_coef
from gram_jax.rl.judged import RewardFunction, checked, gains_over_start, win_rate
from gram_jax.rl.objective import VALUE, RolloutBatch
from gram_jax.rl.rollout import make_rollout
from gram_jax.rl.setup import RlSetup, policy_weights, set_up_rl
from gram_jax.rl.verdicts import VerdictGenerator
from gram_jax.run.directory import write_model
from gram_jax.run.lifecycle import (
    Outputs,
    Run,
    RunResult,
    is_complete,
    is_due,
    newest_step,
    open_checkpoints,
    open_outputs,
    open_run,
    result_of,
    save,
    stop_if_requested,
)
from gram_jax.run.metrics import FILE_NAME
from gram_jax.sharding import Placement
from gram_jax.training.stages import initial_weights
from gram_jax.training.state import TrainState, init_state
from gram_jax.tree import Tree

logger = logging.getLogger(__name__)

NO_SPACE = "a step of reinforcement learning does not fit"
TRY = (
    "Try, in this order: algorithm.gradient_accumulation_steps twice as many; execution.remat = "
    '"full"; fewer sampling.max_new_tokens or prompts_per_step; [lora]; more devices under [mesh] fsdp.'
)


class RlState(NamedTuple):
    """A TrainState as it is saved: params holds the policy alone, so that the run's name is that of a model."""

    step: Any
    params: Any
    value: Any
    opt_state: Any
    skipped: Any
    in_a_row: Any


def run_rl(
    recipe: RlRecipe,
    *,
    placement: Placement | None = None,
    reward: RewardFunction | None = None,
    process: ProcessContext | None = None,
    progress: ProgressFactory = no_progress,
) -> RunResult:
    """Train a policy as a recipe states, or resume the run in its directory.

    reward: instead of the recipe's judge; for win rates it is called with the greedy responses of the policy and of the
    start, the latter as its third argument both times. process: this process in a job of several, which all call this
    with the same recipe; each rates the responses that it has sampled. Raises RecipeError or DataError for unusable
    input, NonFiniteError if the loss is not finite, StoppedError after Ctrl-C or SIGTERM (the state is saved).
    """
    with open_run(recipe, command="rl", process=process) as run:
        if not is_complete(run):
            run.beat("loading the policy, the prompts and the judge")
            setup = set_up_rl(recipe, run.directory, placement, reward)
            learn(setup, run, progress)
            run.directory.note(finished=True)
        return result_of(run)


def learn(setup: RlSetup, run: Run, progress: ProgressFactory) -> None:
    """Take the remaining steps, with their metrics, win rates and checkpoints."""
    recipe, steps = setup.recipe, setup.recipe.run.max_steps
    with explain_out_of_memory(NO_SPACE, TRY), open_checkpoints(run) as checkpoints:
        state = first_state(setup, checkpoints, newest_step(run, checkpoints))
        _write_description(setup, run)
        done, stop = int(state.step) // recipe.updates, StopSync(run.stop, setup.placement)
        if done:
            logger.info("resuming from step %d of %d", done, steps)
        with open_outputs(run, checkpoints, done, steps, "rl", progress) as outputs:
            metrics = outputs.metrics
            while done < steps:
                kl_coef = next_kl_coef(recipe.algorithm, outputs, done)
                state, values = rl_step(setup, run, state, done, kl_coef)
                done += 1
                metrics.write(done, values)
                shown = {name: values[name] for name in ("reward", "kl")}
                outputs.bar.update(units=values["num_tokens"], values=shown)
                if done == steps or is_due(done, recipe.evaluate.eval_steps):
                    run.beat(f"measuring the win rate after step {done}")
                    metrics.write(done, measure_win_rate(setup, done, state.params))
                if done == steps or is_due(done, recipe.checkpoint.save_steps):
                    save(outputs, done, _to_saved(state), blocking=done == steps)
                if done < steps:
                    stop_if_requested(outputs, stop.check(), done, steps, _to_saved(state))


def rl_step(
    setup: RlSetup, run: Run, state: TrainState, number: int, kl_coef: float
) -> tuple[TrainState, dict[str, float]]:
    """Take step `number`, counted from 0; returns the state after it and its metrics."""
    recipe, step = setup.recipe, number + 1
    chosen = setup.prompts.draw(recipe.sampling.prompts_per_step, number, recipe.run.seed)
    samples, rewards = rate_samples(setup, run, state.params, chosen, number)
    run.beat(f"learning from the responses of step {step}")
    batch, figures = make_rollout(
        replace(recipe.algorithm, kl_coef=kl_coef),
        [setup.prompts.tokens[at] for at in chosen],
        samples,
        rewards,
        width=setup.width,
        policy=partial(setup.token_stats, setup.full_params(state.params)),
        reference=partial(setup.token_stats, setup.reference.params),
        place=setup.placement,
    )
    state, means = update_weights(setup, state, batch, number)
    return state, means | figures | {"kl_weight": kl_coef}


def rate_samples(
    setup: RlSetup, run: Run, params: Tree, chosen: Sequence[int], number: int
) -> tuple[Samples, np.ndarray]:
    """Samples of the policy for the chosen prompts, those to one prompt in a row, and their rewards f32 [B].

    This process samples and rates its part, whole groups of prompts, and gets those of the others from them.
    """
    recipe, prompts, step = setup.recipe, setup.prompts, number + 1
    sampling, part = recipe.sampling, process_part(len(chosen))
    tokens = [prompts.tokens[at] for at in chosen[part]]
    run.beat(f"sampling the responses of step {step}")
    policy = setup.policy(params)
    seed = int(np.random.default_rng([recipe.run.seed, number]).integers(2**31))
    written = policy.generate_from_tokens(
        _repeated(tokens, sampling.num_generations),
        SamplingConfig(sampling.max_new_tokens, sampling.temperature, seed=seed),
        batch_size=recipe.rows,
        first=part.start * sampling.num_generations,
    )
    greedy = None
    if recipe.reward.needs_greedy:
        plain = policy.generate_from_tokens(tokens, SamplingConfig(sampling.max_new_tokens, 0))
        greedy = _repeated(plain.texts, sampling.num_generations)
    run.beat(f"judging the responses of step {step}")
    asked = _repeated([prompts.prompts[at] for at in chosen[part]], sampling.num_generations)
    rewards = checked(setup.reward(asked, written.texts, greedy), len(asked))
    run.beat(f"waiting for the responses of the other processes in step {step}")
    return all_gather_rows((written.samples, rewards))


def update_weights(
    setup: RlSetup, state: TrainState, batch: RolloutBatch, number: int
) -> tuple[TrainState, dict[str, float]]:
    """The state after the updates of step `number`, and the means of their metrics. Raises NonFiniteError."""
    found: dict[str, list[float]] = {}
    for part in minibatches(setup, batch, number):
        state, metrics = setup.update(state, setup.frozen, part)
        for name, (total, count) in jax.device_get(metrics).items():
            found.setdefault(name, []).append(float(total) / max(float(count), 1.0))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    # Those of a training step alone; an RL run counts the tokens of its responses.
    bad, *_ = map(means.pop, ("bad", "skipped", "skipped_in_a_row", "num_tokens"))
    if bad:
        raise NonFiniteError(
            f"step {number + 1}: the loss or its gradient is not finite; the last checkpoint is undamaged"
        )
    return state, means


def minibatches(setup: RlSetup, batch: RolloutBatch, number: int) -> Iterator[RolloutBatch]:
    """The mini-batches of all epochs, drawn by (seed, step)."""
    algorithm = setup.recipe.algorithm
    draw = np.random.default_rng([setup.recipe.run.seed, number, 1])

    for _ in range(algorithm.num_epochs):
        order = draw.permutation(setup.recipe.rows)
        for members in np.split(order, algorithm.num_mini_batches):
            whole = len(members) == len(order)
            yield batch if whole else _take(batch, np.sort(members), setup.placement)


@partial(jax.jit, static_argnames="place")
def _take(batch: RolloutBatch, rows: jax.Array, place: Placement) -> RolloutBatch:
    """These rows of a batch, sharded like it."""
    return jax.tree.map(lambda x: place.constrain(x[rows], "batch", None), batch)


def next_kl_coef(algorithm: AlgorithmConfig, outputs: Outputs, done: int) -> float:
    """The divergence's weight in the next step, a function of the last step's metrics, which a resumed run reads."""
    if algorithm.kl_target is None or not done:
        return algorithm.kl_coef
    weight, kl = outputs.metrics.last("kl_weight"), outputs.metrics.last("kl")
    if weight is None or kl is None:
        raise CheckpointError(
            f"{outputs.run.directory.path / FILE_NAME} has no kl_weight and kl of step {done}, which kl_target needs: "
            "restore the file that the run wrote, or start again in another run.output_dir"
        )
    return adapted_kl_coef(weight, kl, algorithm.kl_target)


def measure_win_rate(setup: RlSetup, done: int, params: Tree) -> dict[str, float]:
    """The win rate against the start, both greedy, on held-out prompts; each process rates its part of them."""
    greedy = SamplingConfig(setup.recipe.sampling.max_new_tokens, 0)
    part = process_part(min(setup.recipe.evaluate.limit, len(setup.valid.prompts)))
    prompts, tokens = setup.valid.prompts[part], setup.valid.tokens[part]
    ours = setup.policy(params).generate_from_tokens(tokens, greedy).texts
    start = setup.on_this_process(setup.reference.params)
    theirs = start.generate_from_tokens(tokens, greedy).texts
    gains = all_gather_rows(gains_over_start(setup.contest, prompts, ours, theirs))
    won, gain = win_rate(gains), float(gains.mean())
    found = {"win_rate": won, "gain_over_start": gain}
    if setup.judge is not None:  # equal responses have 0.5
        found = {"win_rate": won, "p_better_than_start": 0.5 + gain}
    shown = ", ".join(f"{name} {format_value(value)}" for name, value in found.items())
    logger.info("after step %d: %s", done, shown)
    return found


def first_state(setup: RlSetup, checkpoints: Checkpoints, newest: int | None) -> TrainState:
    """The state of the newest checkpoint, or the one before the first step."""
    if newest is not None:
        return _from_saved(checkpoints.restore(newest, _to_saved(setup.abstract)))
    recipe, dtype = setup.recipe, setup.recipe.policy.param_dtype
    loaded = load_model(setup.start, setup.placement, dtype)[1] if recipe.lora is None else {}
    params = initial_weights(setup.specs, loaded, recipe.run.seed, dtype, setup.placement)
    return init_state(params, setup.optimizer, setup.abstract)


def _write_description(setup: RlSetup, run: Run) -> None:
    """Write model/ and run.json."""
    recipe, reference = setup.recipe, setup.reference
    write_model(
        run.directory,
        reference.cfg,
        reference.tokenizer,
        dtype=recipe.policy.param_dtype,
        stop_token_ids=reference.stop_token_ids,
        spec=reference.spec if isinstance(reference, VerdictGenerator) else None,
        base=None if recipe.lora is None else (setup.start, recipe.lora.config),
    )
    run.directory.note(
        stage="rl",
        steps=recipe.run.max_steps,
        examples=setup.prompts.fingerprint,
        start=setup.start,
        reward_judge=setup.judge,
    )


def _to_saved(state: TrainState) -> RlState:
    value = {VALUE: state.params[VALUE]} if VALUE in state.params else {}
    params = policy_weights(state.params)
    return RlState(state.step, params, value, state.opt_state, state.skipped, state.in_a_row)


def _from_saved(saved: RlState) -> TrainState:
    params = {**saved.params, **(saved.value or {})}
    return TrainState(saved.step, params, saved.opt_state, saved.skipped, saved.in_a_row)


def _repeated(values: list[Any], times: int) -> list[Any]:
    """Each value `times` times in a row."""
    return [value for value in values for _ in range(times)]
