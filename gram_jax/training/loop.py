"""A run from recipe to result. A stage is another objective and recipe, not another loop."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gram_jax import tree
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.console import Console
from gram_jax.data.feed import prefetch
from gram_jax.distributed.collectives import assert_equal, broadcast_object
from gram_jax.distributed.preemption import StopRequest, StopSync
from gram_jax.distributed.process import ProcessContext
from gram_jax.distributed.watchdog import Watchdog
from gram_jax.evals.pairwise import evaluate_pairs
from gram_jax.files import explain_full_disk
from gram_jax.model.specs import param_count
from gram_jax.plots import plot_curves, read_metrics
from gram_jax.recipes.reading import recipe_to_toml, recipe_values
from gram_jax.recipes.tables import Recipe
from gram_jax.run.directory import (
    STUCK,
    RunFolder,
    examples_fingerprint,
    lacking,
    open_run,
)
from gram_jax.run.metrics import FILE_NAME as METRICS
from gram_jax.run.metrics import MetricsWriter, truncate
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import Placement
from gram_jax.training.compiling import (
    Memory,
    compile_step,
    explain_step_memory,
)
from gram_jax.training.course import Course
from gram_jax.training.evaluation import held_out_metrics
from gram_jax.training.job import Job, prepare
from gram_jax.training.journal import Journal
from gram_jax.training.program import leaner, lower_step, make_execution, placement_of
from gram_jax.training.stages import (
    abstract_batch,
    frozen_weights,
    make_objective,
    start_weights,
)
from gram_jax.training.state import TrainState, init_state
from gram_jax.training.step import make_eval_step
from gram_jax.tree import Tree

RESUME = "Free some space and start the same command again: it resumes from the last checkpoint"


@dataclass(frozen=True)
class RunResult:
    """folder: of the run, also the name of its model; steps: done; metrics: the newest of each."""

    folder: Path
    steps: int
    metrics: Mapping[str, float]


def train(
    recipe: Recipe,
    *,
    console: Console | None = None,
    placement: Placement | None = None,
    member: ProcessContext | None = None,
    until: int | None = None,
) -> RunResult:
    """Carry out a recipe, or go on with the run in its folder where it stopped.

    placement: by default the recipe's mesh over all devices. member: this process's place in a job of several, which
    all call this with the same recipe; process 0 alone prints and writes (but every process its part of a checkpoint).
    until: the last step of this call, which is saved; a later call goes on behind it as if there had been one alone.
    Raises RecipeError, DataError, JudgeError, LayoutError or CheckpointError for what cannot be
    used, DoesNotFitError for too little memory, NonFiniteError for a loss that is not a number
    (the last good state is kept) and StoppedError after Ctrl-C or SIGTERM (the state is kept).
    """
    member = member or ProcessContext()
    report = Path(recipe.run.output_dir).expanduser() / STUCK.format(member.index)
    with Watchdog(member, report) as watchdog, StopRequest(member) as stop:
        watchdog.beat("looking for devices")
        main = jax.process_index() == 0
        console = console if console and main else Console(mute=not main)
        watchdog.beat("opening the run's folder")
        assert_equal("recipe", recipe_to_toml(recipe))
        with open_run(recipe, member, console) as folder, explain_full_disk(folder.path, RESUME):
            if not is_complete(folder, console, watchdog):
                keep_compiled_programs()
                watchdog.beat("reading the data")
                job = prepare(recipe, folder, placement or placement_of(recipe), console)
                last = job.steps if until is None else min(until, job.steps)
                carry_out(job, console, stop, watchdog, last)
                if last == job.steps:
                    watchdog.beat("drawing the curves")
                    if main:
                        _conclude(job, console)
                    folder.note(finished=True)
            return _result(folder)


def is_complete(folder: RunFolder, console: Console, watchdog: Watchdog) -> bool:
    """Whether a run came to its end and all of it is still there, undamaged; what is not is computed again."""
    if not folder.before.get("finished"):
        return False
    watchdog.beat("verifying the finished run")
    if lost := lacking(folder):
        lines = "\n  ".join(lost)
        console.warn(f"{folder.path} was complete, and is not any more:\n  {lines}")
        folder.note(finished=False)
        return False
    console.say(f"{folder.path} is complete: nothing to do")
    return True


def carry_out(job: Job, console: Console, stop: StopRequest, watchdog: Watchdog, last: int) -> None:
    """All steps of a job up to `last` that are not done yet, with their checkpoints, figures and evaluations."""
    recipe = job.recipe
    watchdog.beat("compiling")
    step, memory = compiled_step(job, console)
    job.folder.begin(recipe)  # before anything else: by this file the folder is known as a run's
    with (
        explain_step_memory(memory),
        Checkpoints(
            job.folder.checkpoints,
            keep=recipe.checkpoint.max_to_keep,
            keep_every=recipe.checkpoint.keep_period,
        ) as checkpoints,
    ):
        watchdog.beat("verifying the checkpoints")
        newest = checkpoints.newest_good(console.warn)
        watchdog.beat("loading the weights" if newest is None else f"restoring step {newest}")
        state, frozen = first_state(job, checkpoints, newest, console)
        start = int(state.step)
        stop.begin()
        with (
            closing(_metrics_writer(job, start)) as writer,
            console.progress(job.steps, done=start, label=recipe.stage) as progress,
            closing(prefetch(job.plan, job.placement, start, last)) as batches,
        ):
            journal = Journal(writer, progress, recipe.log.logging_steps, recipe.run.max_skipped)
            journal.skipped, journal.in_a_row = int(state.skipped), int(state.in_a_row)
            course = Course(
                recipe=recipe,
                folder=job.folder,
                steps=job.steps,
                last=max(last, start),
                checkpoints=checkpoints,
                journal=journal,
                sync=StopSync(stop, job.placement),
                watchdog=watchdog,
                evaluate=make_evaluate(job, frozen),
                state=state,
                done=start,
            )
            course.run(step, frozen, batches)


def first_state(
    job: Job, checkpoints: Checkpoints, newest: int | None, console: Console
) -> tuple[TrainState, Tree]:
    """The state to go on from, and the weights that are not trained.

    In this order: the `newest` undamaged checkpoint of this run; the weights that the recipe starts
    from (those of "tiny-random" are random); at random what these do not have, LoRA or a scalar
    head.
    """
    recipe = job.recipe
    with console.timed("load the weights"):
        if newest is None:
            _, params, frozen = start_weights(recipe, job.specs, job.placement)
            state = init_state(params, job.optimizer, job.abstract)
        else:
            frozen = {} if recipe.lora is None else frozen_weights(recipe, job.placement)[1]
            state = checkpoints.restore(newest, job.abstract)
    job.folder.write_model(job.cfg, job.tokenizer, job.spec, recipe)
    job.folder.note(
        stage=recipe.stage,
        steps=job.steps,
        examples=examples_fingerprint(job.plan.examples),
        judge=job.spec.hash,
        data=dataclasses.asdict(job.plan.report()),
    )
    trained, kept = param_count(job.specs), sum(x.size for x in jax.tree.leaves(frozen))
    console.say(
        f"{trained:,} weights to train"
        + (f", {kept:,} left as they are" if kept else "")
        + (f", going on from step {newest} of {job.steps}" if newest else f", {job.steps} steps")
    )
    return state, frozen


def compiled_step(job: Job, console: Console) -> tuple[Any, Memory | None]:
    """The training step, compiled before any weight is loaded, and the memory that it needs."""
    batch = abstract_batch(job.plan.batch(0), job.placement)

    def lowered(change: Mapping[str, Any]) -> Any:
        return lower_step(
            job.recipe,
            job.cfg,
            job.spec.label_ids,
            job.optimizer,
            job.steps,
            job.placement,
            job.abstract,
            batch,
            change,
        )

    with console.timed("compile"):
        step, memory = compile_step(lowered, job.placement, leaner(job.recipe, job.placement))
    if memory is not None:
        console.say(f"memory of a step: {memory.to_text()}")
    return step, memory


def make_evaluate(job: Job, frozen: Tree) -> Callable[..., dict[str, float]]:
    """The figures of held-out data, as a function of (step, trained weights, between).

    The objective's, and after the last step those of judge_pairs. between: called before every
    batch; it ends the evaluation by raising.
    """
    execution = make_execution(job.recipe, job.placement, "none")
    objective = make_objective(job.recipe, job.cfg, execution, job.spec.label_ids)
    step = make_eval_step(objective, job.placement)

    def evaluate(done: int, params: Tree, between: Callable[[], None]) -> dict[str, float]:
        if job.valid_plan is None:
            return {}
        plan = job.valid_plan
        found = held_out_metrics(step, params, frozen, plan, job.placement, between)
        return found | (judge_pairs(job, params, frozen, between) if done == job.steps else {})

    return evaluate


def judge_pairs(
    job: Job, params: Tree, frozen: Tree, between: Callable[[], None]
) -> dict[str, float]:
    """Stage judge: the figures of the whole way from text to score, both orders of every pair."""
    if job.recipe.stage != "finetune":
        return {}
    scorer = Scorer(
        tree.merge(params, frozen),
        job.cfg,
        job.tokenizer,
        job.spec,
        # Pairs have other lengths than the batches of training, and one document a row.
        dataclasses.replace(
            make_execution(job.recipe, job.placement, "none"), attention="auto", packed=False
        ),
    )
    report = evaluate_pairs(scorer, job.valid_records, progress=lambda _: between()).model_dump()
    return {f"pair_{name}": value for name, value in report.items() if isinstance(value, float)}


def _metrics_writer(job: Job, start: int) -> MetricsWriter:
    run_id = None
    if job.recipe.log.wandb:
        run_id = job.folder.before.get("wandb") or secrets.token_hex(8)
        job.folder.note(wandb=run_id)
    main = jax.process_index() == 0
    kept = broadcast_object(truncate(job.folder.path, start) if main else None)
    if not main:
        return MetricsWriter(None, kept)
    return MetricsWriter(
        job.folder.path,
        kept,
        start_step=start,
        tensorboard=job.recipe.log.tensorboard,
        wandb=run_id,
        settings=recipe_values(job.recipe),
    )


def _conclude(job: Job, console: Console) -> None:
    """The curves, a table of the figures, and what can be done next."""
    rows = read_metrics(job.folder.path / METRICS)
    title = f"{job.folder.path.name} ({job.recipe.stage})"
    plot_curves(rows, job.folder.path / "curves.png", title=title)
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    table = []
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            table.append((name, values[0] if len(values) > 1 else None, values[-1]))
    console.table(title, ("", "first", "last"), table)
    console.say(f"curves: {job.folder.path / 'curves.png'}")


def _result(folder: RunFolder) -> RunResult:
    metrics: dict[str, float] = {}
    for row in read_metrics(folder.path / METRICS):
        metrics |= row
    steps = int(metrics.pop("step", 0))
    return RunResult(folder.path, steps, metrics)
