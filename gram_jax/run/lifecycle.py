"""The lifecycle of a run, the same for training and reinforcement learning.

    with open_run(recipe, command="train", process=process) as run:
        if not is_complete(run):
            ...
            with open_checkpoints(run) as checkpoints:
                newest = newest_step(run, checkpoints)
                ...
                with open_outputs(run, checkpoints, start, steps, label, progress) as outputs:
                    ...
        return result_of(run)

While a run is open, no other job runs in its directory, stop requests are recorded, the watchdog expects a beat before
every activity that may hang, and the error for a full disk states the remedy.
"""

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.checkpoint.run_info import RECIPE
from gram_jax.distributed.collectives import assert_equal, broadcast_object
from gram_jax.distributed.lock import folder_lock, hold_lock
from gram_jax.distributed.preemption import STATUS, StopRequest
from gram_jax.distributed.process import ProcessContext
from gram_jax.distributed.watchdog import Watchdog
from gram_jax.errors import RecipeError, StoppedError
from gram_jax.files import expand_user, explain_full_disk
from gram_jax.progress import ProgressBar, ProgressFactory
from gram_jax.recipes.reading import RecipeT, recipe_to_toml, recipe_values
from gram_jax.run.directory import STUCK, RunDirectory, check_recipe, damage, make_directory
from gram_jax.run.metrics import FILE_NAME, MetricsWriter, read_metrics, summary, truncate

logger = logging.getLogger(__name__)

RESUME = "Free some space and start the same command again: it resumes from the last checkpoint"


@dataclass(frozen=True)
class Run:
    """An open run. command: the command of gram-jax that starts it."""

    directory: RunDirectory
    recipe: Any
    command: str
    watchdog: Watchdog
    stop: StopRequest

    def beat(self, activity: str) -> None:
        """Report progress to the watchdog; `activity` begins now."""
        self.watchdog.beat(activity)

    def watched(self, progress: ProgressFactory) -> ProgressFactory:
        """A ProgressFactory whose bars are those of `progress`; every update is also a beat."""

        @contextmanager
        def opened(
            total: int | None, *, done: int = 0, label: str = "", unit: str = "tokens"
        ) -> Iterator[ProgressBar]:
            with progress(total, done=done, label=label, unit=unit) as bar:
                yield _WatchedBar(bar, self, label)

        return opened


@dataclass(frozen=True)
class _WatchedBar:
    bar: ProgressBar
    run: Run
    label: str

    def update(
        self, count: int = 1, *, units: float = 0.0, values: Mapping[str, float] | None = None
    ) -> None:
        self.run.beat(self.label)
        self.bar.update(count, units=units, values=values)

    def pause(self) -> None:
        self.bar.pause()


@dataclass(frozen=True)
class RunResult:
    """folder: the run's, also the name of its model; steps: number completed; metrics: newest value of each.

    summary: (name, first value if there are several, last value) of every metric.
    """

    folder: Path
    steps: int
    metrics: Mapping[str, float]
    summary: Sequence[tuple[str, float | None, float]] = ()


@dataclass(frozen=True)
class Outputs:
    """The outputs of the steps of a run."""

    run: Run
    checkpoints: Checkpoints
    metrics: MetricsWriter
    bar: ProgressBar


@contextmanager
def open_run(
    recipe: RecipeT, *, command: str, process: ProcessContext | None = None
) -> Iterator[Run]:
    """Make or open a run's directory and lock it; all processes of a job call it.

    Raises RecipeError if the directory holds something else or a run of another recipe, InUseError if another job runs
    in it.
    """
    process = process or ProcessContext()
    path = expand_user(recipe.run.output_dir, error=RecipeError)
    with ExitStack() as held:
        watchdog = held.enter_context(Watchdog(process, path / STUCK.format(process.index)))
        stop = held.enter_context(StopRequest(process))
        watchdog.beat("looking for devices")
        main = jax.process_index() == 0
        watchdog.beat("opening the run's directory")
        assert_equal("recipe", recipe_to_toml(recipe))
        info = None
        if main:
            make_directory(path)
            held.enter_context(hold_lock(folder_lock(path), process=process, error=RecipeError))
            info = check_recipe(path, recipe, command)
        info = broadcast_object(info)
        if not path.is_dir():
            raise RecipeError(
                f"run.output_dir {str(path)!r} was made by process 0 and does not exist for process "
                f"{jax.process_index()}: a job of several processes needs a directory that all of them share"
            )
        held.enter_context(explain_full_disk(path, RESUME))
        yield Run(RunDirectory(path, info), recipe, command, watchdog, stop)


def is_complete(run: Run) -> bool:
    """Whether the run is finished and undamaged. If False, missing and damaged parts are to be computed again."""
    directory = run.directory
    if not directory.info.get("finished"):
        return False
    run.beat("verifying the finished run")
    if lost := damage(directory):
        lines = "\n  ".join(lost)
        logger.warning("%s was complete and is damaged:\n  %s", directory.path, lines)
        directory.note(finished=False)
        return False
    logger.info("%s is complete: nothing to do", directory.path)
    return True


def result_of(run: Run) -> RunResult:
    """The result of a run, from its metrics."""
    rows = read_metrics(run.directory.path / FILE_NAME)
    newest = {name: value for row in rows for name, value in row.items()}
    steps = int(newest.pop("step", 0))
    return RunResult(run.directory.path, steps, newest, summary(rows))


def open_checkpoints(run: Run) -> Checkpoints:
    """The run's checkpoints. Writes the recipe first, which marks the directory as a run's."""
    run.directory.write_recipe(recipe_to_toml(run.recipe))
    config = run.recipe.checkpoint
    return Checkpoints(
        run.directory.checkpoints, keep=config.max_to_keep, keep_every=config.keep_period
    )


def newest_step(run: Run, checkpoints: Checkpoints) -> int | None:
    """The newest undamaged step of the run, None before the first save."""
    run.beat("verifying the checkpoints")
    newest = checkpoints.newest_good(logger.warning)
    run.beat("loading the weights" if newest is None else f"restoring step {newest}")
    return newest


@contextmanager
def open_outputs(
    run: Run,
    checkpoints: Checkpoints,
    start: int,
    steps: int,
    label: str,
    progress: ProgressFactory,
) -> Iterator[Outputs]:
    """The outputs of the steps from `start` to `steps`. From here on a stop request saves the state."""
    run.stop.begin()
    directory, log, run_id = run.directory, run.recipe.log, None
    if log.wandb:
        run_id = directory.info.get("wandb") or secrets.token_hex(8)
        directory.note(wandb=run_id)
    main = jax.process_index() == 0
    kept = broadcast_object(truncate(directory.path, start) if main else None)
    writer = MetricsWriter(
        directory.path if main else None,
        kept,
        start_step=start,
        tensorboard=log.tensorboard,
        wandb=run_id,
        settings=recipe_values(run.recipe),
    )
    with closing(writer), progress(steps, done=start, label=label) as bar:
        yield Outputs(run, checkpoints, writer, bar)


def save(outputs: Outputs, step: int, state: Any, *, blocking: bool = False) -> None:
    """Save the state after `step` steps, in the background unless `blocking`, with a line of metrics on disk."""
    outputs.run.beat(f"saving step {step}")
    if not outputs.metrics.has(step):
        outputs.metrics.write(step, {})
    outputs.metrics.sync()
    outputs.checkpoints.save(step, state, blocking=blocking)


def stop_if_requested(
    outputs: Outputs, request: str | None, step: int, steps: int, state: Any
) -> None:
    """Save and raise StoppedError if there is a request, "SIGTERM" or "Ctrl-C"."""
    if request is None:
        return
    save(outputs, step, state, blocking=True)
    run = outputs.run
    again = f"Resume with: gram-jax {run.command} {run.directory.path / RECIPE}"
    if jax.process_count() > 1:
        again = "Resume with the same command for every process"
    raise StoppedError(
        f"stopped by {request}: step {step} of {steps} is saved. {again}", STATUS[request]
    )


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after `step`."""
    return every > 0 and step % every == 0
