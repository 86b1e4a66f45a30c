"""The metrics of a run: metrics.jsonl, TensorBoard, Weights & Biases."""

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
HELD_OUT = "valid_"  # prefix of the metrics of held-out data
FLUSH_SECONDS = 20  # between flushes of the TensorBoard file


class MetricsWriter:
    """Appends lines of metrics to a run's directory from `start_step` on.

    folder: None keeps the metrics in memory only, as the processes other than 0 do. kept: the lines so far, as
    `truncate` returns them. wandb: the run's id there, None for no Weights & Biases.
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
            import wandb as weights_and_biases  # pyright: ignore[reportMissingImports]  (an extra)

            self._wandb = weights_and_biases.init(
                project="gram_jax",
                name=folder.name,
                dir=str(folder),
                config=dict(settings or {}),
                id=wandb,
                resume="allow",
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of the values after `step` steps; non-finite ones become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        row, tagged = {"step": step, **finite}, {_tag(k): v for k, v in values.items()}
        self.rows.append(row)
        if self._file is not None:
            with _errors(self.path):
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        if self._tensorboard is not None:
            with self._tensorboard_errors():
                self._tensorboard.write(step, tagged)
        if self._wandb is not None:
            self._wandb.log(tagged, step=step)

    def last(self, name: str) -> float | None:
        """The newest value of a metric, None if there is none."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    def has_held_out(self, step: int) -> bool:
        """Whether the metrics of held-out data after `step` are written."""
        return any(
            row["step"] == step and any(name.startswith(HELD_OUT) for name in row)
            for row in self.rows
        )

    def close(self) -> None:
        """Write everything to disk."""
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
                f"no more metrics are written to TensorBoard: {error}", GramWarning, stacklevel=2
            )


class TensorBoard:
    """An event file of TensorBoard, written in the calling thread.

    The thread of tensorboardX's SummaryWriter ends silently when the disk is full; the run would then wait for space in
    its queue without a limit.
    """

    def __init__(self, folder: Path, start_step: int):
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._flushed = 0.0
        if start_step:  # hides later events of an interrupted run
            self._add(step=start_step + 1, file_version="brain.Event:2")
            self._add(step=start_step + 1, session_log={"status": 1})  # SessionLog.START

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with all values. Raises OSError."""
        summaries = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        self._add(step=step, summary={"value": summaries})
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write everything to disk."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated)

        self._file.write_event(Event(wall_time=time.time(), **fields))


def _tag(name: str) -> str:
    held_out = name.startswith(HELD_OUT)
    return f"valid/{name.removeprefix(HELD_OUT)}" if held_out else f"train/{name}"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without the last one if it is incomplete."""
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

    Removes later lines, which a resumed run writes again, from the file.
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
            f"{path} cannot be written ({error.strerror or error}): free some space and start the same command again; "
            "it resumes from the last checkpoint"
        ) from error


def check_writers(*, tensorboard: bool, wandb: bool) -> None:
    """Raises MissingExtraError if the package of a writer is not installed."""
    if tensorboard:
        with needs_extra("tensorboard"):
            import tensorboardX  # noqa: F401
    if wandb:
        with needs_extra("wandb"):
            import wandb as _  # noqa: F401  # pyright: ignore[reportMissingImports]
