"""Training checkpoints: the door to Orbax. Saves run in the background and appear whole or not at
all, together with the content hashes of their files; what does not match them is never read.
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

from gram_jax.checkpoint.manifest import find_damage, refusal, write_manifest
from gram_jax.distributed.collectives import all_gather_lines, barrier, broadcast_object
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.files import is_full_disk
from gram_jax.tree import Tree

# Items of one checkpoint: "params" by itself, so that it can be read without the optimizer's state;
# and the other fields of the state.
PARAMS, REST = "params", "rest"
# Inside the folder of checkpoints: where damaged steps are put, so that their numbers are free.
DAMAGED = "damaged"
# For a whole save, in which the first process reads everything once more to hash it: 600 s, which
# Orbax grants, are too few for 100 GB on a slow disk. A dead peer is noticed by the runtime.
SAVE_SECONDS = 3600


class _HashedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The temporary folder of a save. The first process calls `finalize` when all have written:
    what Orbax adds last is added, then the manifest, and then the folder gets its name.
    """

    async def finalize(self) -> None:
        if self._checkpoint_metadata_store is None:  # an item inside of a step
            return await super().finalize()
        here = cast(Any, self)  # its paths are declared as if they could be missing
        final = Path(here._final_path)
        whole = final.with_name(f"{here._tmp_path.name}-unhashed")  # temporary by its name, too
        shutil.rmtree(whole, ignore_errors=True)  # of a process that was killed here
        here._final_path = type(here._tmp_path)(whole)
        await super().finalize()
        write_manifest(whole, of=step_name(final.name))
        os.rename(whole, final)


def step_name(step: int | str) -> str:
    """What the manifest of a step says that it is of: a step under another's number is noticed."""
    return f"step {step}"


def complete_steps(folder: Path) -> list[int]:
    """Numbers of the steps whose save came to its end, damaged since or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def damage_of_newest(folder: Path, final: int | None) -> list[str]:
    """Why the newest step is not the `final` one as it was written, a line each; nothing where it is."""
    if not broadcast_object(folder.is_dir()):
        return [f"{folder.name}/: missing"]
    with Checkpoints(folder, keep=None) as checkpoints:
        newest = checkpoints.latest()
        if final is None or newest != final:
            return [f"{folder.name}/{final}: missing, the newest step is {newest}"]
        lines = checkpoints.damage(final, (PARAMS, REST))
        return [f"{folder.name}/{final}/{line}" for line in lines]


class Checkpoints:
    """The checkpoints of one run: a folder with one numbered folder per step.

    The state is a NamedTuple or dict with a field "params", its leaves JAX arrays. keep: how many
    of the newest to keep; None opens the folder for reading only, which never disturbs a run that
    writes into it. keep_every: multiples of this number are kept for good; 0 for none. An older
    step is removed when the newer one has its name and manifest, not before.

    With several processes the folder is on a disk that all of them see, and every method is called
    by all of them: they get the same answers, those of the first process where disks could differ.
    """

    def __init__(self, folder: str | Path, *, keep: int | None, keep_every: int = 0):
        self.folder = Path(folder).absolute()
        self._keep, self._keep_every, self._writes = keep, keep_every, keep is not None
        self._verified: set[tuple[int, str]] = set()  # (step, item) that matched its manifest
        self._needed = 0  # bytes of the last state that was saved
        if not self._writes and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} does not exist: expected a folder of checkpoints")
        if self._writes:
            with self._errors("saved"):
                self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Opened at the first use: Orbax reads a file of every step then, and a damaged one must
        not keep `newest_good` from finding it.
        """
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in (PARAMS, REST):
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
            # what an interrupted save left behind; a reader must not touch it, it may still be
            # being written
            cleanup_tmp_directories=self._writes,
        )
        with self._errors("opened"):
            return ocp.CheckpointManager(self.folder, options=options, handler_registry=registry)

    def save(self, step: int, state: Any, *, blocking: bool = False) -> None:
        """Save `state` under `step`, in the background unless `blocking`; a step that is there
        stays as it is.

        A failed background save is raised by the next save, wait or close.
        """
        if not self._writes:
            raise CheckpointError(f"{self.folder} was opened for reading only")
        self.wait()  # Orbax writes one at a time anyway
        with self._writing():
            # The first process decides: were two of different minds, one would wait for the other.
            if not broadcast_object(step in complete_steps(self.folder)):
                self._check_space(state)
                fields = _fields(state)
                params = fields.pop(PARAMS)
                items = {
                    PARAMS: ocp.args.StandardSave(params),
                    REST: ocp.args.StandardSave(fields),
                }
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            if blocking:
                self.wait()

    def latest(self) -> int | None:
        """The newest step that was saved completely, damaged since or not; None where there is
        none.
        """
        steps = self.all_steps()
        return steps[-1] if steps else None

    def all_steps(self) -> list[int]:
        """Every step that was saved completely, damaged since or not, oldest first."""
        with self._errors("listed"):
            return broadcast_object(complete_steps(self.folder))

    def newest_good(self, report: Callable[[str], None]) -> int | None:
        """The newest step whose files are all as they were written; None before the first save.

        Newer steps that are damaged are named to `report` with their files and, unless the folder
        was opened for reading only, moved into the folder `damaged`, so that the run can save
        them anew. Raises CheckpointError if every step is damaged; none is moved then.
        """
        refused: dict[int, list[str]] = {}
        newest = None
        for step in reversed(steps := self.all_steps()):
            if newest is None:
                problems = self.damage(step, (PARAMS, REST))
            elif self._writes and self._stays(step, steps):
                # What Orbax reads when it opens the folder. Those that do not stay are left alone:
                # a kill may have come in the middle of their removal.
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
                "No good step is left. Restore one from a copy; or begin anew on purpose, by "
                "removing this folder or giving the run another",
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

        abstract: jax.ShapeDtypeStructs with shardings, on any mesh. Raises CheckpointError if
        the checkpoint is missing or damaged, with the names of the files, LayoutError where it
        holds another state.
        """
        step = self._good(step, (PARAMS, REST))
        fields = _fields(abstract)
        params = fields.pop(PARAMS)
        self._check_shapes(step, params)
        with self._errors(f"restored (step {step})"):
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{
                        PARAMS: ocp.args.StandardRestore(params),
                        REST: ocp.args.StandardRestore(fields),
                    }
                ),
            )
        fields = {**found[REST], PARAMS: found[PARAMS]}
        return type(abstract)(**fields) if hasattr(abstract, "_fields") else fields

    def restore_params(self, step: int | None, abstract: Tree) -> Tree:
        """Only the parameters of `step` (None: the newest), as `abstract` says.

        A damaged step is refused: an older one in its place would be another model.
        """
        step = self._good(step, (PARAMS,))
        self._check_shapes(step, abstract)
        with self._errors(f"restored (step {step})"):
            args = ocp.args.Composite(**{PARAMS: ocp.args.StandardRestore(abstract)})
            return self._manager.restore(step, args=args)[PARAMS]

    def params_shapes(self, step: int | None = None) -> Tree:
        """Shape and dtype of every saved parameter, as jax.ShapeDtypeStructs without sharding."""
        step = self._good(step, (PARAMS,))
        with self._errors(f"read (step {step})"):
            # Not through the manager, which would read the other item as well.
            place = self._manager.directory / str(step) / PARAMS
            found = ocp.StandardCheckpointHandler().metadata(place)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(found.tree))

    def damage(self, step: int, items: Sequence[str]) -> list[str]:
        """What is wrong with these items of a step and what belongs to both, found by all
        processes together; a step is read for this once in the life of this object.
        """
        if items and all((step, item) in self._verified for item in items):
            return []
        others = tuple(f"{item}/" for item in (PARAMS, REST) if item not in items)
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
        """Return when every save is complete; raises CheckpointError where one failed."""
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

    def _existing(self, step: int | None) -> int:
        steps = self.all_steps()
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(
                f"{self.folder} has no complete checkpoint"
                + (f" of step {step}; there are steps {steps}" if steps else "")
            )
        return steps[-1] if step is None else step

    def _good(self, step: int | None, items: Sequence[str]) -> int:
        """The step (None: the newest) once its files were found as they were written."""
        step = self._existing(step)
        if problems := self.damage(step, items):
            others = [other for other in self.all_steps() if other != step]
            raise refusal(
                self.folder / str(step),
                problems,
                "Restore it from a copy; or start the run's `gram-jax train` command again, which "
                "puts damaged steps aside and computes them anew from the last good one"
                + (f" (there are steps {others})" if others else ""),
            )
        return step

    def _stays(self, step: int, steps: Sequence[int]) -> bool:
        """Whether the policy keeps one of these steps."""
        kept_for_good = self._keep_every and step % self._keep_every == 0
        return self._keep is None or step in steps[-self._keep :] or bool(kept_for_good)

    def _set_aside(self, step: int) -> Path:
        """Move a step into the folder of damaged ones, under a name that is free."""
        number = 1
        while (place := self.folder / DAMAGED / f"{step}-{number}").exists():
            number += 1
        place = place.with_name(f"{step}-{broadcast_object(number)}")
        if jax.process_index() == 0:
            with self._errors("moved"):
                place.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(place)
        return place

    def _check_shapes(self, step: int, abstract: Tree) -> None:
        """Orbax names one difference at a time; this lists them all."""
        found, wanted = (
            {
                jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
                for path, leaf in leaves
            }
            for leaves in map(
                jax.tree_util.tree_leaves_with_path, (self.params_shapes(step), abstract)
            )
        )
        problems = [f"{p}: saved, but not expected" for p in sorted(found.keys() - wanted.keys())]
        problems += [f"{p}: expected, but not saved" for p in sorted(wanted.keys() - found.keys())]
        problems += [
            f"{p}: saved as {list(found[p])}, expected {list(wanted[p])}"
            for p in sorted(found.keys() & wanted.keys())
            if tuple(found[p]) != tuple(wanted[p])
        ]
        if problems:
            raise LayoutError(
                f"step {step} in {self.folder} was saved by another model or LoRA:\n  "
                + "\n  ".join(problems)
            )

    def _check_space(self, state: Any) -> None:
        self._needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        if self._needed > shutil.disk_usage(self.folder).free:
            raise self._full()

    def _full(self) -> CheckpointError:
        free = shutil.disk_usage(self.folder).free
        return CheckpointError(
            f"the disk of {self.folder} is full: a checkpoint needs up to {self._needed / 1e6:,.1f} "
            f"MB, {free / 1e6:,.1f} MB are free. Earlier checkpoints are whole. Free some space, "
            "keep fewer checkpoints (checkpoint.max_to_keep), or give the run another folder"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What a failed save has written is removed: on a full disk it would fill it further."""
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
        """Whatever Orbax, tensorstore or the disk raise becomes a CheckpointError that says what to
        try.
        """
        try:
            yield
        except (CheckpointError, LayoutError):
            raise
        except Exception as error:
            if is_full_disk(error):
                raise self._full() from error
            if "tree structures do not match" in str(error):
                raise LayoutError(
                    f"a checkpoint in {self.folder} was saved by another optimizer or kind of "
                    f"run:\n{error}"
                ) from error
            raise CheckpointError(
                f"a checkpoint in {self.folder} could not be {done}: "
                f"{str(error).strip()[:1000]}\n`gram-jax verify {self.folder.parent}` tells whether "
                "files were damaged"
            ) from error


def _fields(state: Any) -> dict[str, Any]:
    return dict(state._asdict() if hasattr(state, "_asdict") else state)
