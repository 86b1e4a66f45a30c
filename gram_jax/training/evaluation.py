"""Evaluation of a run's weights on its held-out data."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax

from gram_jax import tree
from gram_jax.data.batches import BatchPlan
from gram_jax.data.examples import VERDICT_STAGES
from gram_jax.data.feed import prefetch
from gram_jax.distributed.preemption import StopSync
from gram_jax.evals.pairwise import evaluate_pairs
from gram_jax.formatting import format_value
from gram_jax.run.lifecycle import Outputs, stop_if_requested
from gram_jax.run.metrics import HELD_OUT
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import Placement
from gram_jax.training.program import make_execution
from gram_jax.training.setup import TrainSetup
from gram_jax.training.stages import make_objective, verdict_ids
from gram_jax.training.state import TrainState
from gram_jax.training.step import make_eval_step
from gram_jax.tree import Tree

logger = logging.getLogger(__name__)


def make_held_out_step(setup: TrainSetup) -> Any:
    """The jitted (params, frozen weights, batch) -> metrics of the run's objective."""
    execution = make_execution(setup.recipe, setup.placement, "none")
    objective = make_objective(
        setup.recipe, setup.cfg, execution, verdict_ids(setup.recipe, setup.spec)
    )
    return make_eval_step(objective, setup.placement)


def evaluate_held_out(
    setup: TrainSetup,
    outputs: Outputs,
    stop: StopSync,
    eval_step: Any,
    frozen: Tree,
    done: int,
    state: TrainState,
) -> None:
    """Write the metrics of the held-out data after `done` steps, unless they are written.

    These are the objective's metrics, and after the last step those of `judge_pairs` if a pair has a preference. Raises
    StoppedError if the job is asked to stop meanwhile.
    """
    if setup.valid_plan is None or outputs.metrics.has_held_out(done):
        return

    def between() -> None:
        outputs.run.beat(f"evaluating after step {done}")
        stop_if_requested(outputs, stop.check(), done, setup.steps, state)

    outputs.run.beat(f"evaluating after step {done}")
    found = held_out_metrics(
        eval_step, state.params, frozen, setup.valid_plan, setup.placement, between
    )
    if done == setup.steps and setup.recipe.stage in VERDICT_STAGES:
        if any(record.has_preference for record in setup.valid_records):
            found |= judge_pairs(setup, tree.merge(state.params, frozen), between)
        else:  # of order consistency alone
            logger.info("held-out data: no pair has a label, so no accuracy is measured")
    outputs.metrics.write(done, {f"{HELD_OUT}{name}": value for name, value in found.items()})
    shown = ", ".join(f"{name} {format_value(value)}" for name, value in found.items())
    logger.info("held-out data after step %d: %s", done, shown)


def held_out_metrics(
    eval_step: Any,
    params: Tree,
    frozen: Tree,
    plan: BatchPlan,
    placement: Placement,
    between: Callable[[], None],
) -> dict[str, float]:
    """The objective's metrics over all examples of `plan`, each example once: sums over counts.

    between: called before every batch; may end the evaluation by raising.
    """
    totals: Any = None
    with closing(prefetch(plan, placement, 0, plan.steps_per_epoch)) as batches:
        for _, batch in batches:
            between()
            found = eval_step(params, frozen, batch)
            totals = found if totals is None else jax.tree.map(jax.numpy.add, totals, found)
    return {name: float(a) / float(b) for name, (a, b) in jax.device_get(totals).items() if b}


def judge_pairs(setup: TrainSetup, params: Tree, between: Callable[[], None]) -> dict[str, float]:
    """Metrics of every held-out pair with a preference, scored from its texts in both orders."""
    # Pairs differ in length from training batches, and each row holds one document.
    execution = dataclasses.replace(
        make_execution(setup.recipe, setup.placement, "none"), attention="auto", packed=False
    )
    scorer = Scorer(params, setup.cfg, setup.tokenizer, setup.spec, execution)
    report = evaluate_pairs(scorer, setup.valid_records, progress=lambda _: between()).model_dump()
    return {f"pair_{name}": value for name, value in report.items() if isinstance(value, float)}
