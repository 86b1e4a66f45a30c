"""Where the figures of a run go: metrics.jsonl, TensorBoard, and Weights & Biases where asked for."""

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from gram_jax.errors import CheckpointError, GramWarning
from gram_jax.extras import needs_extra
from gram_jax.files import write_atomic

FILE_NAME = "metrics.jsonl"
HELD_OUT = "valid_"  # before the names of figures of held-out data
FLUSH_SECONDS = 20  # TensorBoard sees figures so late


class MetricsWriter:
    """Appends lines of figures to the run's folder; made with the step that the run goes on from.

    folder: None keeps the figures in memory alone, as the processes beside the main one do.
    kept: the lines so far, as `truncate` returns them. wandb: the run's id there, None for no
    Weights & Biases.
    """

    def __init__(
        self,
        folder: Path | None,
        kept: Sequence[Mapping[str, Any]],
        *,
        start_step: int = 0,
        tensorboard: bool = False,
        wandb: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self.rows = list(kept)
        self._file: TextIO | None = None
        self._tensorboard: TensorBoard | None = None
        self._wandb: Any = None
        if folder is None:
            return
        self.path = folder / FILE_NAME
        with _errors(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        if tensorboard:
            with self._tensorboard_errors():
                self._tensorboard = TensorBoard(folder / "tensorboard", start_step)
        if wandb is not None:
            self._wandb = _start_wandb(folder, wandb, settings or {})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: `step` steps are done, these are the figures; those not finite become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        row = {"step": step, **finite}
        self.rows.append(row)
        if self._file is not None:
            with _errors(self.path):
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        if self._tensorboard is not None:
            with self._tensorboard_errors():
                self._tensorboard.write(step, {_tag(k): value for k, value in values.items()})
        if self._wandb is not None:
            self._wandb.log({_tag(name): value for name, value in values.items()}, step=step)

    def last(self, name: str) -> float | None:
        """The newest value of a figure, None if there is none."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    def has_held_out(self, step: int) -> bool:
        """Whether the figures of held-out data after `step` are there."""
        return any(row["step"] == step and any(map(_is_held_out, row)) for row in self.rows)

    def close(self) -> None:
        """Everything is on disk afterwards."""
        if self._tensorboard is not None:
            with self._tensorboard_errors():
                self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._file is not None:
            with _errors(self.path):
                self._file.close()

    @contextmanager
    def _tensorboard_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._tensorboard = None
            warnings.warn(
                f"no further figures for TensorBoard: {error}", category=GramWarning, stacklevel=2
            )


class TensorBoard:
    """Figures in an event file, written by whoever calls.

    tensorboardX's SummaryWriter writes in a thread, which ends silently when the disk is full; the
    run then waits for ever for room in its queue.
    """

    def __init__(self, folder: Path, start_step: int):
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._flushed = 0.0
        if start_step:  # hides what an interrupted run wrote after this step
            log = {"status": 1}  # SessionLog.START
            self._add(step=start_step + 1, file_version="brain.Event:2")
            self._add(step=start_step + 1, session_log=log)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event with every figure; raises OSError."""
        figures = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        self._add(step=step, summary={"value": figures})
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Everything is on disk afterwards."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        # generated when it is imported
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self._file.write_event(Event(wall_time=time.time(), **fields))


def _tag(name: str) -> str:
    """Figures of held-out data in a group of their own.

    >>> _tag("loss"), _tag("valid_loss")
    ('train/loss', 'valid/loss')
    """
    return f"valid/{name.removeprefix(HELD_OUT)}" if _is_held_out(name) else f"train/{name}"


def _is_held_out(name: str) -> bool:
    return name.startswith(HELD_OUT)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a torn last line."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float | None, float]]:
    """(name, first value if there are several, last value) of every metric.

    >>> summary([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "kl": 0.5}])
    [('loss', 2.0, 1.0), ('kl', None, 0.5)]
    """
    found = []
    for name in dict.fromkeys(name for row in rows for name in row if name != "step"):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            found.append((name, values[0] if len(values) > 1 else None, values[-1]))
    return found


def truncate(folder: Path, step: int) -> list[dict[str, Any]]:
    """The metrics of a run up to `step` (none for 0).

    Later lines, which an interrupted run wrote and this one writes again, are removed from the
    file, so that it never holds a step twice.
    """
    path = folder / FILE_NAME
    with _errors(path):
        found = read_metrics(path) if path.exists() and step else []
        rows = [row for row in found if row["step"] <= step]
        write_atomic(path, (json.dumps(row) + "\n" for row in rows))
    return rows


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}): free some space and start the "
            "same command again, it goes on from the last checkpoint"
        ) from error


def check_writers(*, tensorboard: bool, wandb: bool) -> None:
    """Raises MissingExtraError before the work if a requested writer's package is not installed."""
    if tensorboard:
        with needs_extra("tensorboard"):
            import tensorboardX  # noqa: F401
    if wandb:
        with needs_extra("wandb"):
            import wandb as _  # noqa: F401  # pyright: ignore[reportMissingImports]


def _start_wandb(folder: Path, run_id: str, settings: Mapping[str, Any]) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]  (an extra)

    return wandb.init(
        project="gram_jax",
        name=folder.name,
        dir=str(folder),
        config=dict(settings),
        id=run_id,
        resume="allow",
    )
