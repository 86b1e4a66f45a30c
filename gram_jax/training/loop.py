"""Training from recipe to result, one loop for all stages."""

import dataclasses
import logging
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.checkpoint.run_info import RECIPE
from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.data.feed import prefetch
from gram_jax.distributed.preemption import StopSync
from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import MissingExtraError, NonFiniteError
from gram_jax.interop.models import stop_tokens
from gram_jax.model.specs import param_count
from gram_jax.plots import plot_curves
from gram_jax.progress import ProgressFactory, log_time, no_progress
from gram_jax.recipes.tables import Recipe
from gram_jax.run.directory import RunDirectory, write_model
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
from gram_jax.run.metrics import FILE_NAME, read_metrics
from gram_jax.sharding import Placement
from gram_jax.training.averages import Averages, Stopwatch, add_step, write_line
from gram_jax.training.compiling import Memory, compile_step, explain_step_memory
from gram_jax.training.evaluation import evaluate_held_out, make_held_out_step
from gram_jax.training.program import lower_step, memory_saving_changes, placement_of
from gram_jax.training.setup import TrainSetup, set_up
from gram_jax.training.stages import abstract_batch, frozen_weights, start_weights, verdict_ids
from gram_jax.training.state import TrainState, init_state
from gram_jax.tree import Tree

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    placement: Placement | None = None,
    process: ProcessContext | None = None,
    stop_at_step: int | None = None,
    progress: ProgressFactory = no_progress,
) -> RunResult:
    """Train as a recipe states, or resume the run in its directory.

    placement: mesh; default the recipe's, over all devices. process: this process, in a job of several processes that
    all call `train` with the same recipe. Process 0 writes the files, and every process its part of a checkpoint.
    stop_at_step: last step of this call, which is saved; a later call resumes there.

    Raises RecipeError, DataError, JudgeError, LayoutError or CheckpointError for unusable input, DoesNotFitError if
    memory is too small, NonFiniteError if the loss is not finite (the last finite state is saved), and StoppedError
    after Ctrl-C or SIGTERM (the state is saved).

    >>> import json, tempfile
    >>> from gram_jax import read_recipe, train
    >>> folder = Path(tempfile.mkdtemp())
    >>> rows = [{"prompt": f"{n} + 1?", "chosen": str(n + 1), "rejected": str(n)} for n in range(8)]
    >>> _ = (folder / "pairs.jsonl").write_text("\\n".join(map(json.dumps, rows)))
    >>> changes = {"run.output_dir": folder / "run", "run.max_steps": 2, "model.name_or_path": "tiny-random",
    ...     "data.train": f'["{folder / "pairs.jsonl"}"]', "batch.batch_size": 8, "batch.max_length": 256,
    ...     "judge.max_length": 256, "batch.gradient_accumulation_steps": 1, "optimizer.warmup_steps": 0}
    >>> recipe = read_recipe("smollm2-135m-finetune", [f"{key}={value}" for key, value in changes.items()])
    >>> train(recipe).steps
    2
    """
    with open_run(recipe, command="train", process=process) as run:
        if not is_complete(run):
            keep_compiled_programs()
            run.beat("reading the data")
            chosen, watched = placement or placement_of(recipe), run.watched(progress)
            setup = set_up(recipe, run.directory, chosen, progress=watched)
            last = setup.steps if stop_at_step is None else min(stop_at_step, setup.steps)
            train_to(last, setup, run, progress)
            if last == setup.steps:
                run.beat("drawing the curves")
                _draw_curves(run.directory, recipe.stage)
                run.directory.note(finished=True)
        return result_of(run)


def train_to(last: int, setup: TrainSetup, run: Run, progress: ProgressFactory) -> None:
    """Compile the step, load or restore the state, and take the remaining steps up to `last`."""
    run.beat("compiling")
    step, memory = compile_for(setup)
    with explain_step_memory(memory), open_checkpoints(run) as checkpoints:
        newest = newest_step(run, checkpoints)
        state, frozen = first_state(setup, checkpoints, newest)
        _write_description(setup, run.directory, frozen, newest)
        start = int(state.step)
        stage = setup.recipe.stage
        with (
            open_outputs(run, checkpoints, start, setup.steps, stage, progress) as outputs,
            closing(prefetch(setup.plan, setup.placement, start, last)) as batches,
        ):
            run_steps(setup, outputs, step, state, frozen, batches, max(last, start))


def run_steps(
    setup: TrainSetup,
    outputs: Outputs,
    step: Any,
    state: TrainState,
    frozen: Tree,
    batches: Iterable[tuple[int, Any]],
    last: int,
) -> None:
    """Take all steps up to `last`, with saves and evaluations; the last step is saved and evaluated.

    step: the compiled training step. batches: (step, batch on the devices) from the state's step on.

    Several processes have to start collectives and saves in the same order. So every decision here follows from values
    that are equal on all of them: the step, the synchronised stop request, the metrics of the devices.
    """
    run, recipe, done = outputs.run, setup.recipe, int(state.step)
    stop, watch = StopSync(run.stop, setup.placement), Stopwatch()
    averages = Averages(total_tokens=int(outputs.metrics.last("num_tokens") or 0))
    log = partial(log_step, outputs, watch, recipe)
    evaluate = partial(evaluate_held_out, setup, outputs, stop, make_held_out_step(setup), frozen)

    if is_due(done, recipe.evaluate.eval_steps) and done < last:
        with watch.pause(outputs.bar):  # the run may have been stopped in this evaluation
            evaluate(done, state)
    # Metrics and stop requests are read one step late, so that the devices do not wait for the host.
    unread, sent = None, stop.send()
    run.beat(f"waiting for the data of step {done + 1}")
    try:
        for index, batch in batches:
            run.beat(f"step {index + 1}")
            state, metrics = step(state, frozen, batch)
            metrics = {**metrics, **setup.plan.share_metrics(index)}
            if unread is not None:
                averages = log(averages, done, unread)
            request, sent = stop.receive(sent), stop.send()
            done, unread = index + 1, metrics
            evaluating = is_due(done, recipe.evaluate.eval_steps) and done < last
            saving = is_due(done, recipe.checkpoint.save_steps) or done == last
            if evaluating or saving or request:
                # Before every save, so that the metrics file covers what is saved.
                averages, unread = log(averages, done, unread, line=True), None
                with watch.pause(outputs.bar):
                    if saving:  # in the background, while the evaluation runs
                        save(outputs, done, state)
                    if done < setup.steps:
                        stop_if_requested(outputs, request, done, setup.steps, state)
                    if evaluating:
                        evaluate(done, state)
            run.beat(f"waiting for the data of step {done + 1}")
    except NonFiniteError as error:
        if averages.tokens:  # of the good steps since the last line, which are saved
            write_line(averages, int(state.step), outputs.metrics, watch.lap())
        raise NonFiniteError(f"{error}. {_save_good_state(outputs, recipe, state)}") from None
    run.beat(f"saving step {done}")
    outputs.checkpoints.wait()
    logger.info("saved step %d in %s", done, run.directory.checkpoints)
    evaluate(done, state)


def log_step(
    outputs: Outputs,
    watch: Stopwatch,
    recipe: Recipe,
    averages: Averages,
    step: int,
    metrics: Any,
    *,
    line: bool = False,
) -> Averages:
    """Add the metrics of a step; write a line if one is due or `line`. Raises NonFiniteError as add_step does."""
    tokens = averages.total_tokens
    averages = add_step(averages, step, metrics, recipe.run.max_skipped)
    outputs.bar.update(units=averages.total_tokens - tokens, values=averages.shown)
    if line or is_due(step, recipe.log.logging_steps):
        averages = write_line(averages, step, outputs.metrics, watch.lap())
    return averages


def compile_for(setup: TrainSetup) -> tuple[Any, Memory | None]:
    """The training step, compiled before any weight is loaded, and the memory it needs."""
    batch = abstract_batch(setup.plan.batch(0), setup.placement)
    lower = partial(
        lower_step,
        setup.recipe,
        setup.cfg,
        verdict_ids(setup.recipe, setup.spec),
        setup.optimizer,
        setup.steps,
        setup.placement,
        setup.abstract,
        batch,
    )
    alternatives = memory_saving_changes(setup.recipe, setup.placement)
    with log_time(logger, "compile"):
        step, memory = compile_step(lower, setup.placement, alternatives)
    if memory is not None:
        logger.info("memory of a step: %s", memory.to_text())
    return step, memory


def first_state(
    setup: TrainSetup, checkpoints: Checkpoints, newest: int | None
) -> tuple[TrainState, Tree]:
    """The state to start from, and the frozen weights.

    The state is that of the `newest` checkpoint, or else has the weights that the recipe starts from, with random ones
    for what they lack (LoRA, a scalar head).
    """
    recipe, placement = setup.recipe, setup.placement
    with log_time(logger, "load the weights"):
        if newest is None:
            _, params, frozen = start_weights(recipe, setup.start, setup.specs, placement)
            return init_state(params, setup.optimizer, setup.abstract), frozen
        frozen = {}
        if recipe.lora is not None:
            frozen = frozen_weights(recipe, setup.start, placement)[1]
        return checkpoints.restore(newest, setup.abstract), frozen


def _write_description(
    setup: TrainSetup, directory: RunDirectory, frozen: Tree, newest: int | None
) -> None:
    """Write model/ and run.json, and log the number of weights."""
    recipe = setup.recipe
    write_model(
        directory,
        setup.cfg,
        setup.tokenizer,
        dtype=recipe.model.param_dtype,
        stop_token_ids=stop_tokens(setup.start),
        spec=setup.spec,
        base=None if recipe.lora is None else (setup.start, recipe.lora.config),
    )
    directory.note(
        stage=recipe.stage,
        steps=setup.steps,
        examples=setup.examples,
        start=setup.start,
        judge=setup.spec.hash,
        data=dataclasses.asdict(setup.plan.report()),
    )
    trained, kept = param_count(setup.specs), sum(x.size for x in jax.tree.leaves(frozen))
    logger.info(
        "%s weights to train%s, %s",
        f"{trained:,}",
        f", {kept:,} frozen" if kept else "",
        f"resuming from step {newest} of {setup.steps}" if newest else f"{setup.steps} steps",
    )


def _save_good_state(outputs: Outputs, recipe: Recipe, state: TrainState) -> str:
    """Save the state, which the bad batch did not change; returns where it is and how to resume."""
    step, directory = int(state.step), outputs.run.directory
    if step == 0:
        return "It was the first batch: no step was lost. Check the data and model.param_dtype"
    if outputs.checkpoints.latest() != step:
        # Without the bad batch, which is counted when the resumed run skips it.
        one_less = jax.jit(lambda x: x - 1, out_shardings=state.skipped.sharding)
        state = state._replace(skipped=one_less(state.skipped), in_a_row=one_less(state.in_a_row))
        save(outputs, step, state, blocking=True)
    return (
        f"The last good state, after step {step}, is saved in {directory.checkpoints}. To resume "
        f"without this batch: gram-jax train {directory.path / RECIPE} --set "
        f"run.max_skipped={recipe.run.max_skipped + 1}; or start a new run with a lower optimizer.learning_rate"
    )


def _draw_curves(directory: RunDirectory, stage: str) -> None:
    if jax.process_index() > 0:
        return
    path: Path = directory.path / "curves.png"
    rows = read_metrics(directory.path / FILE_NAME)
    try:
        plot_curves(rows, path, title=f"{directory.path.name} ({stage})")
        logger.info("curves: %s", path)
    except MissingExtraError as error:
        logger.warning("no curves are drawn: %s", error)
