"""Training checkpoints by Orbax: saved in the background, committed together with the content hashes of their files.

A checkpoint whose files do not match its hashes is never read.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint as ocp

from gram_jax import tree
from gram_jax.checkpoint.manifest import find_damage, refusal, write_manifest
from gram_jax.distributed.collectives import all_gather_lines, barrier, broadcast_object
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.files import is_full_disk, no_space
from gram_jax.tree import Tree

# Items of a checkpoint: the parameters, which can be read alone, and the other fields of the state.
PARAMS, REST = ITEMS = ("params", "rest")
# Folder next to the steps into which damaged ones are moved.
DAMAGED = "damaged"
# Time limit of a save, in which the first process also reads all files to hash them. Orbax's default of 600 s is too
# short for 100 GB on a slow disk.
SAVE_SECONDS = 3600


class _HashedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The temporary folder of a save. The first process calls `finalize` after all processes have written.

    It adds the manifest after Orbax's last file and before the folder is renamed.
    """

    async def finalize(self) -> None:
        if self._checkpoint_metadata_store is None:  # an item of a step
            return await super().finalize()
        here = cast(Any, self)  # the paths are declared as optional
        final = Path(here._final_path)
        whole = final.with_name(f"{here._tmp_path.name}-unhashed")  # a temporary name, too
        shutil.rmtree(whole, ignore_errors=True)  # left by a process that was killed here
        here._final_path = type(here._tmp_path)(whole)
        await super().finalize()
        write_manifest(whole, of=step_name(final.name))
        os.rename(whole, final)


def step_name(step: int | str) -> str:
    """The name of a step in its manifest, by which a renamed step folder is detected."""
    return f"step {step}"


def complete_steps(folder: Path) -> list[int]:
    """Numbers of the steps whose save was completed, damaged or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def damage_of_newest(folder: Path, final: int | None) -> list[str]:
    """A line for every missing or damaged file of step `final`, which must be the newest one."""
    if not broadcast_object(folder.is_dir()):
        return [f"{folder.name}/: missing"]
    with Checkpoints(folder, keep=None) as checkpoints:
        newest = checkpoints.latest()
        if final is None or newest != final:
            return [f"{folder.name}/{final}: missing, the newest step is {newest}"]
        return [f"{folder.name}/{final}/{line}" for line in checkpoints.damage(final, ITEMS)]


class Checkpoints:
    """The checkpoints of one run: a folder with one numbered folder per step.

    The state is a NamedTuple or dict with a field "params", its leaves JAX arrays. keep: number of newest steps to
    keep; None opens the folder for reading only, also while a run writes into it. keep_every: multiples
    of this number are kept, too; 0 for none. An older step is removed after the newer one has a name and manifest.

    With several processes the folder is on a shared disk, and all of them call every method. They get the same results,
    those of the first process if disks could differ.
    """

    def __init__(self, folder: str | Path, *, keep: int | None, keep_every: int = 0):
        self.folder = Path(folder).absolute()
        self._keep, self._keep_every, self._writes = keep, keep_every, keep is not None
        self._verified: set[tuple[int, str]] = set()  # every (step, item) that matched its manifest
        self._needed = 0  # bytes of the last saved state
        if not self._writes and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} does not exist: expected a folder of checkpoints")
        if self._writes:
            with self._errors("saved"):
                self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Opened at the first use, because Orbax then reads a file of every step, which may be damaged."""
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in ITEMS:
            handler = ocp.StandardCheckpointHandler()
            registry.add(item, ocp.args.StandardSave, handler)
            registry.add(item, ocp.args.StandardRestore, handler)
        kept: list[Any] = [ocp.checkpoint_managers.LatestN(self._keep)]
        if self._keep_every:
            kept.append(ocp.checkpoint_managers.EveryNSteps(self._keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(kept),
            temporary_path_class=_HashedFolder,
            async_options=ocp.options.AsyncOptions(timeout_secs=SAVE_SECONDS),
            create=self._writes,
            # A reader must not remove temporary folders: another process may be writing them.
            cleanup_tmp_directories=self._writes,
        )
        with self._errors("opened"):
            return ocp.CheckpointManager(self.folder, options=options, handler_registry=registry)

    def save(self, step: int, state: Any, *, blocking: bool = False) -> None:
        """Save `state` under `step`, in the background unless `blocking`. An existing step is not changed.

        A failed background save raises its error in the next save, wait or close.
        """
        if not self._writes:
            raise CheckpointError(f"{self.folder} was opened for reading only")
        self.wait()  # Orbax writes one step at a time
        with self._writing():
            # The first process decides for all, so that all make the same collective calls.
            if not broadcast_object(step in complete_steps(self.folder)):
                sizes = (leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
                self._needed = sum(sizes)
                if self._needed > shutil.disk_usage(self.folder).free:
                    raise self._no_space()
                items = {name: ocp.args.StandardSave(x) for name, x in _items(state).items()}
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            if blocking:
                self.wait()

    def latest(self) -> int | None:
        """The newest completed step, damaged or not; None if there is none."""
        steps = self.all_steps()
        return steps[-1] if steps else None

    def all_steps(self) -> list[int]:
        """Every completed step, damaged or not, oldest first."""
        with self._errors("listed"):
            return broadcast_object(complete_steps(self.folder))

    def newest_good(self, report: Callable[[str], None]) -> int | None:
        """The newest step whose files all match its manifest; None before the first save.

        `report` receives a text for every newer step, all of which are damaged. Unless the folder was opened for
        reading only, these steps are moved into the folder `damaged`, so that the run can save them again. Raises
        CheckpointError, and moves none, if every step is damaged.
        """
        refused: dict[int, list[str]] = {}
        newest = None
        for step in reversed(steps := self.all_steps()):
            if newest is None:
                problems = self.damage(step, ITEMS)
            elif self._writes and self._stays(step, steps):
                # The files that Orbax reads when it opens the folder. A step that is not kept is ignored: its
                # removal may have been interrupted.
                problems = self.damage(step, ())
            else:
                continue
            if problems:
                refused[step] = problems
            elif newest is None:
                newest = step
        if refused and newest is None:
            lines = [f"step {step}: {line}" for step, lines in refused.items() for line in lines]
            raise refusal(
                self.folder,
                lines,
                "No good step is left. Restore one from a copy, or start again: remove this folder or use another one",
            )
        for step, problems in refused.items():
            moved = f", moved to {self._set_aside(step)}" if self._writes else ""
            lines = "\n  ".join(problems)
            report(f"step {step} is damaged{moved}; the newest good step is {newest}:\n  {lines}")
        if refused and self._writes:
            barrier("gram_jax: damaged steps are out of the way")
            with self._errors("listed"):
                self._manager.reload()
        return newest

    def restore(self, step: int | None, abstract: Any) -> Any:
        """The state of `step` (None: the newest) in the structure of `abstract`.

        abstract: jax.ShapeDtypeStructs with shardings, on any mesh. Raises CheckpointError, naming the files, if the
        checkpoint is missing or damaged, LayoutError if it holds another state.
        """
        found = self._restore(step, _items(abstract))
        fields = {**found[REST], PARAMS: found[PARAMS]}
        return type(abstract)(**fields) if hasattr(abstract, "_fields") else fields

    def restore_params(self, step: int | None, abstract: Tree) -> Tree:
        """Only the parameters of `step` (None: the newest), with the shapes, dtypes and shardings of `abstract`."""
        return self._restore(step, {PARAMS: abstract})[PARAMS]

    def _restore(self, step: int | None, abstract: dict[str, Any]) -> dict[str, Any]:
        step = self._good(step, tuple(abstract))
        # Orbax reports one difference only.
        if problems := tree.differences(self.params_shapes(step), abstract[PARAMS]):
            lines = "\n  ".join(problems)
            raise LayoutError(
                f"step {step} in {self.folder} was saved by another model or LoRA:\n  {lines}"
            )
        items = {name: ocp.args.StandardRestore(x) for name, x in abstract.items()}
        with self._errors(f"restored (step {step})"):
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())

    def params_shapes(self, step: int | None = None) -> Tree:
        """Shape and dtype of every saved parameter, as jax.ShapeDtypeStructs without sharding."""
        step = self._good(step, (PARAMS,))
        with self._errors(f"read (step {step})"):
            # Not through the manager, which would also read the other item.
            place = self._manager.directory / str(step) / PARAMS
            found = ocp.StandardCheckpointHandler().metadata(place)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(found.tree))

    def damage(self, step: int, items: Sequence[str]) -> list[str]:
        """A line for every damaged file of a step, except in items other than `items`; all processes share the work.

        Files that this object has verified are not read again.
        """
        if items and all((step, item) in self._verified for item in items):
            return []
        others = tuple(f"{item}/" for item in ITEMS if item not in items)
        found = find_damage(
            self.folder / str(step),
            of=step_name(step),
            wanted=lambda name: not name.startswith(others),
            exact=True,
            index=jax.process_index(),
            count=jax.process_count(),
        )
        if not (problems := all_gather_lines(found)):
            self._verified |= {(step, item) for item in items}
        return problems

    def wait(self) -> None:
        """Wait until every save is complete. Raises CheckpointError if one failed."""
        if "_manager" not in self.__dict__:
            return  # nothing was saved
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait, and release the threads."""
        try:
            self.wait()
        finally:
            if "_manager" in self.__dict__:
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _good(self, step: int | None, items: Sequence[str]) -> int:
        """The step (None: the newest). Raises CheckpointError if it is missing or these items are damaged."""
        steps = self.all_steps()
        if not steps or (step is not None and step not in steps):
            existing = f" of step {step}; there are steps {steps}" if steps else ""
            raise CheckpointError(f"{self.folder} has no complete checkpoint{existing}")
        step = steps[-1] if step is None else step
        if problems := self.damage(step, items):
            others = [other for other in steps if other != step]
            raise refusal(
                self.folder / str(step),
                problems,
                "Restore it from a copy, or start the run's `gram-jax train` command again, which sets damaged steps "
                "aside and computes them again from the last good one"
                + (f" (there are steps {others})" if others else ""),
            )
        return step

    def _stays(self, step: int, steps: Sequence[int]) -> bool:
        """Whether the policy keeps one of these steps."""
        if self._keep is None or step in steps[-self._keep :]:
            return True
        return self._keep_every > 0 and step % self._keep_every == 0

    def _set_aside(self, step: int) -> Path:
        """Move a step into the folder of damaged ones, under a new name."""
        number = 1
        while (place := self.folder / DAMAGED / f"{step}-{number}").exists():
            number += 1
        place = place.with_name(f"{step}-{broadcast_object(number)}")
        if jax.process_index() == 0:
            with self._errors("moved"):
                place.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(place)
        return place

    def _no_space(self) -> CheckpointError:
        return no_space(
            self.folder,
            self._needed,
            "Earlier checkpoints are complete. Free some space, keep fewer checkpoints (checkpoint.max_to_keep), or "
            "use another folder",
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Removes the files of a failed save, which may fill the disk."""
        try:
            with self._errors("written"):
                yield
        except CheckpointError:
            if jax.process_index() == 0:
                for torn in self.folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(torn, ignore_errors=True)
            raise

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        """Raises CheckpointError or LayoutError for any error of Orbax, tensorstore or the disk."""
        try:
            yield
        except (CheckpointError, LayoutError):
            raise
        except Exception as error:
            if is_full_disk(error):
                raise self._no_space() from error
            if "tree structures do not match" in str(error):
                raise LayoutError(
                    f"a checkpoint in {self.folder} was saved by another optimizer or kind of run:\n{error}"
                ) from error
            raise CheckpointError(
                f"a checkpoint in {self.folder} could not be {done}: {str(error).strip()[:1000]}\n"
                f"`gram-jax verify {self.folder.parent}` lists damaged files"
            ) from error


def _items(state: Any) -> dict[str, Any]:
    """The items of a checkpoint of this state."""
    fields = dict(state._asdict() if hasattr(state, "_asdict") else state)
    return {PARAMS: fields.pop(PARAMS), REST: fields}
