"""Where the figures of a run go: metrics.jsonl, TensorBoard, and Weights & Biases where asked for."""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError, RecipeError

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends lines of figures to the run's folder; made with the step that the run goes on from.

    Lines after that step, which an interrupted run wrote and this one will write again, are
    removed first: the file never holds a step twice.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        tensorboard: bool,
        wandb: bool,
        settings: Mapping[str, Any],
    ):
        self.path = folder / FILE_NAME
        self.rows = _truncate(self.path, start_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard: Any = None
        self._wandb: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None
            )
        if wandb:
            self._wandb = _start_wandb(folder, settings)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: `step` steps are done, these are the figures; those not finite become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        row = {"step": step, **finite}
        self.rows.append(row)
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error.strerror or error}): free some space and "
                "start the same command again, it goes on from the last checkpoint"
            ) from error
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(_tag(name), value, step)
        if self._wandb is not None:
            self._wandb.log({_tag(name): value for name, value in values.items()}, step=step)

    def last(self, name: str) -> float | None:
        """The newest value of a figure, None if there is none."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    def close(self) -> None:
        """Everything is on disk afterwards."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _tag(name: str) -> str:
    """Figures of held-out data in a group of their own.

    >>> _tag("loss"), _tag("valid_loss")
    ('train/loss', 'valid/loss')
    """
    held_out = name.startswith("valid_")
    return f"valid/{name.removeprefix('valid_')}" if held_out else f"train/{name}"


def _truncate(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the lines up to `step` (none for 0), and return them; a torn line ends the file."""
    rows = []
    if path.exists() and step:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] <= step:
                rows.append(row)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
    return rows


def check_wandb() -> None:
    """Raises RecipeError where wandb is asked for and not there: before the work, not after it."""
    if importlib.util.find_spec("wandb") is None:
        raise RecipeError(
            "log.wandb = true needs the package wandb: pip install 'gram-jax[wandb]', or set it to "
            "false (metrics.jsonl and TensorBoard are written anyway)"
        )


def _start_wandb(folder: Path, settings: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.init(
        project="gram_jax",
        name=folder.name,
        dir=str(folder),
        config=dict(settings),
        id=folder.resolve().name,
        resume="allow",
    )
