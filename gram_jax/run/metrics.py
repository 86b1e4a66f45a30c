"""The metrics of a run: metrics.jsonl, TensorBoard, Weights & Biases."""

import hashlib
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from gram_jax.errors import CheckpointError, GramWarning
from gram_jax.extras import needs_extra
from gram_jax.files import write_atomic

FILE_NAME = "metrics.jsonl"
CHECKSUM = "checksum"  # key of a line: of this line and all those before it
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
        self._checksum = _chained(kept)[-1] if kept else ""
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
            self._checksum = _next(self._checksum, row)
            with _errors(self.path):
                self._file.write(_line(row, self._checksum))
                self._file.flush()
        if self._tensorboard is not None:
            with self._tensorboard_errors():
                self._tensorboard.write(step, tagged)
        if self._wandb is not None:
            self._wandb.log(tagged, step=step)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        if self._file is not None:
            with _errors(self.path):
                os.fsync(self._file.fileno())

    def last(self, name: str) -> float | None:
        """The newest value of a metric, None if there is none."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    def has(self, step: int) -> bool:
        """Whether there is a line of this step."""
        return any(row["step"] == step for row in self.rows)

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
    """The lines of a metrics.jsonl, without the last one if it is incomplete.

    Raises CheckpointError, which names the line, if one was damaged, edited or removed.
    """
    rows, checksum = [], ""
    for number, line in enumerate(_complete_lines(Path(path)), start=1):
        row = None
        try:
            row = json.loads(line)
            found, checksum = row.pop(CHECKSUM), _next(checksum, row)
            intact = found == checksum and type(row["step"]) is int
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise CheckpointError(
                f"{path}, line {number}: damaged or edited, or a line before it was removed. Restore the file from a "
                f"copy; if it was changed on purpose: gram-jax verify {Path(path).parent} --accept"
            )
        rows.append(row)
    return rows


def accept_metrics(folder: Path, step: int | None) -> int:
    """Write the readable lines up to `step` (None: all) with new checksums; returns their number."""
    rows = []
    for line in _complete_lines(folder / FILE_NAME):
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            row = json.loads(line)
            row.pop(CHECKSUM, None)
            if type(row.get("step")) is int and (step is None or row["step"] <= step):
                rows.append(row)
    if step and not any(row["step"] == step for row in rows):
        rows.append({"step": step})  # marks lines that are lost
    _write(folder, rows)
    return len(rows)


def _complete_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with _errors(path, "read"):
        return path.read_bytes().split(b"\n")[:-1]


def _next(checksum: str, row: Mapping[str, Any]) -> str:
    """The checksum of a line after the one with `checksum`."""
    return hashlib.sha256((checksum + json.dumps(row)).encode()).hexdigest()[:16]


def _chained(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The checksums of consecutive lines."""
    return list(itertools.accumulate(rows, _next, initial=""))[1:]


def _line(row: Mapping[str, Any], checksum: str) -> str:
    return json.dumps({**row, CHECKSUM: checksum}) + "\n"


def _write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path = folder / FILE_NAME
    with _errors(path):
        write_atomic(path, map(_line, rows, _chained(rows)))


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

    Removes later lines, which a resumed run writes again, from the file. Raises CheckpointError if lines up to `step`
    are damaged or missing.
    """
    rows = [row for row in read_metrics(folder / FILE_NAME) if row["step"] <= step] if step else []
    if step and not any(row["step"] == step for row in rows):
        raise CheckpointError(
            f"{folder / FILE_NAME} has no line of step {step}, which is saved: the file was truncated or removed. "
            f"Restore it from a copy; to resume without the lost lines: gram-jax verify {folder} --accept"
        )
    _write(folder, rows)
    return rows


@contextmanager
def _errors(path: Path, done: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be {done} ({error.strerror or error}): free some space and start the same command again; "
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
