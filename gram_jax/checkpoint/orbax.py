"""Training checkpoints: the door to Orbax. Saves run in the background and appear whole or not at
all.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.tree import Tree

# Items of one checkpoint: "params" by itself, so that it can be read without the optimizer's state;
# and the other fields of the state.
PARAMS, REST = "params", "rest"


class Checkpoints:
    """The checkpoints of one run: a folder with one numbered folder per step.

    The state is a NamedTuple or dict with a field "params", its leaves JAX arrays. keep: how many
    of the newest to keep; None opens the folder for reading only, which never disturbs a run that
    writes into it.
    """

    def __init__(self, folder: str | Path, *, keep: int | None):
        self.folder = Path(folder).absolute()
        self._writes = keep is not None
        self._needed = 0  # bytes of the last state that was saved
        if not self._writes and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} does not exist: expected a folder of checkpoints")
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in (PARAMS, REST):
            handler = ocp.StandardCheckpointHandler()
            registry.add(item, ocp.args.StandardSave, handler)
            registry.add(item, ocp.args.StandardRestore, handler)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            create=self._writes,
            # what an interrupted save left behind; a reader must not touch it, it may still be
            # being written
            cleanup_tmp_directories=self._writes,
        )
        with self._errors("opened"):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, handler_registry=registry
            )

    def save(self, step: int, state: Any, *, blocking: bool = False) -> None:
        """Save `state` under `step`, in the background unless `blocking`; a step that is there
        stays as it is.

        A failed background save is raised by the next save, wait or close.
        """
        if not self._writes:
            raise CheckpointError(f"{self.folder} was opened for reading only")
        self.wait()  # Orbax writes one at a time anyway
        with self._writing():
            if step not in self._manager.all_steps():
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
        """The newest step that was saved completely; None where there is none."""
        steps = self.all_steps()
        return steps[-1] if steps else None

    def all_steps(self) -> list[int]:
        """Every step that was saved completely, oldest first."""
        with self._errors("listed"):
            self._manager.reload()
            return sorted(self._manager.all_steps())

    def restore(self, step: int | None, abstract: Any) -> Any:
        """The state of `step` (None: the newest) in the structure of `abstract`.

        abstract: jax.ShapeDtypeStructs with shardings, on any mesh. Raises CheckpointError where
        the checkpoint is missing or damaged, LayoutError where it holds another state.
        """
        step = self._existing(step)
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
        """Only the parameters of `step` (None: the newest), as `abstract` says."""
        step = self._existing(step)
        self._check_shapes(step, abstract)
        with self._errors(f"restored (step {step})"):
            args = ocp.args.Composite(**{PARAMS: ocp.args.StandardRestore(abstract)})
            return self._manager.restore(step, args=args)[PARAMS]

    def params_shapes(self, step: int | None = None) -> Tree:
        """Shape and dtype of every saved parameter, as jax.ShapeDtypeStructs without sharding."""
        step = self._existing(step)
        with self._errors(f"read (step {step})"):
            found = self._manager.item_metadata(step)[PARAMS]
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(found.tree))

    def wait(self) -> None:
        """Return when every save is complete; raises CheckpointError where one failed."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait, and release the threads."""
        try:
            self.wait()
        finally:
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
            "keep fewer checkpoints (checkpoint.keep), or give the run another folder"
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
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                raise self._full() from error
            if "tree structures do not match" in str(error):
                raise LayoutError(
                    f"a checkpoint in {self.folder} was saved by another optimizer or kind of "
                    f"run:\n{error}"
                ) from error
            raise CheckpointError(
                f"a checkpoint in {self.folder} could not be {done}: "
                f"{str(error).strip()[:1000]}\nIf the newest step is damaged, remove its folder: "
                "the run then goes on from the one before"
            ) from error


def _fields(state: Any) -> dict[str, Any]:
    return dict(state._asdict() if hasattr(state, "_asdict") else state)
