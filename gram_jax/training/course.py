"""The steps of a run, with its saves and evaluations between them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.distributed.preemption import STATUS, StopSync
from gram_jax.distributed.watchdog import Watchdog
from gram_jax.errors import NonFiniteError, StoppedError
from gram_jax.recipes.tables import Recipe
from gram_jax.run.directory import RECIPE, RunFolder
from gram_jax.training.journal import Journal
from gram_jax.training.state import TrainState
from gram_jax.tree import Tree


@dataclass
class Course:
    """Where a run is: its state after step `done` of `steps`, and all that belongs to going on up to step `last`.

    Whatever several processes compute or write together they have to begin together. So everything that decides what
    comes next is the same on all of them: the step, the vote, the figures of the device, and nothing else.

    evaluate: the figures of held-out data, of (step, trained weights, between); between is called before every batch.
    """

    recipe: Recipe
    folder: RunFolder
    steps: int
    last: int
    checkpoints: Checkpoints
    journal: Journal
    sync: StopSync
    watchdog: Watchdog
    evaluate: Callable[[int, Tree, Callable[[], None]], Mapping[str, float]]
    state: TrainState
    done: int

    def run(self, step: Any, frozen: Tree, batches: Iterable[tuple[int, Any]]) -> None:
        """All steps up to `last` that are not done yet, that one saved and evaluated.

        step: the compiled training step. batches: (step, batch on the devices) from `done` on.
        """
        if _due(self.done, self.recipe.evaluate.eval_steps) and self.done < self.last:
            self._look_at_held_out()
        try:
            self._take(step, frozen, batches)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}. {self._keep()}") from None
        self.watchdog.beat(f"saving step {self.done}")
        self.checkpoints.wait()
        self.journal.progress.console.say(f"saved step {self.done} in {self.folder.checkpoints}")
        self._look_at_held_out()

    def _take(self, step: Any, frozen: Tree, batches: Iterable[tuple[int, Any]]) -> None:
        # Metrics and votes are read one step late, so that the device never waits for us.
        unread: tuple[int, Any] | None = None
        voices, asked = self.sync.send(), None
        self.watchdog.beat(f"waiting for the data of step {self.done + 1}")
        for index, batch in batches:
            self.watchdog.beat(f"step {index + 1}")
            self.state, metrics = step(self.state, frozen, batch)
            if unread is not None:
                self.journal.book(*unread)
            asked, voices = self.sync.receive(voices), self.sync.send()
            self.done, unread = index + 1, (index + 1, metrics)
            evaluating = _due(self.done, self.recipe.evaluate.eval_steps) and self.done < self.last
            saving = _due(self.done, self.recipe.checkpoint.save_steps) or self.done == self.last
            if evaluating or saving or asked:
                # A line before every save: what is saved has its figures in the file.
                self.journal.book(*unread, line=True)
                unread = None
                if saving:  # in the background, while the evaluation runs
                    with self.journal.pause():
                        self._save()
                if self.done < self.steps:
                    self._leave_if(asked)
                if evaluating:
                    self._look_at_held_out()
            self.watchdog.beat(f"waiting for the data of step {self.done + 1}")

    def _save(self, *, blocking: bool = False) -> None:
        self.watchdog.beat(f"saving step {self.done}")
        self.checkpoints.save(self.done, self.state, blocking=blocking)

    def _leave_if(self, asked: str | None) -> None:
        if asked is not None:
            self._save(blocking=True)
            again = f"Go on with: gram-jax train {self.folder.path / RECIPE}"
            if jax.process_count() > 1:
                again = "Go on with the same command for every process"
            raise StoppedError(
                f"stopped by {asked}: step {self.done} of {self.steps} is saved. {again}",
                STATUS[asked],
            )

    def _between(self) -> None:
        self.watchdog.beat(f"evaluating after step {self.done}")
        self._leave_if(self.sync.check())

    def _look_at_held_out(self) -> None:
        # A run that was stopped in an evaluation begins with it.
        if not self.journal.writer.has_held_out(self.done):
            self.watchdog.beat(f"evaluating after step {self.done}")
            with self.journal.pause():
                figures = self.evaluate(self.done, self.state.params, self._between)
                self.journal.held_out(self.done, figures)

    def _keep(self) -> str:
        """Save the state that the bad batch left alone, and say where it is."""
        state, step = self.state, int(self.state.step)
        if step == 0:
            return "It was the first batch: no step was lost. Check the data and model.param_dtype"
        if self.checkpoints.latest() != step:
            # The bad batch is counted only once it may be skipped.
            one_less = jax.jit(lambda x: x - 1, out_shardings=state.skipped.sharding)
            state = state._replace(
                skipped=one_less(state.skipped), in_a_row=one_less(state.in_a_row)
            )
            self.watchdog.beat(f"saving step {step}")
            self.checkpoints.save(step, state, blocking=True)
        return (
            f"The last good state, after step {step}, is kept in {self.folder.checkpoints}. To go on "
            f"without this batch: gram-jax train {self.folder.path / RECIPE} --set "
            f"run.max_skipped={self.recipe.run.max_skipped + 1}; or begin anew with a lower "
            "optimizer.learning_rate"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
