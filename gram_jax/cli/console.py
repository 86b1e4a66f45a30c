"""What a person sees while a command runs: lines, tables, progress. The only door to `rich`.

On a terminal a progress bar is drawn; elsewhere (a log file, a pipe) progress is a plain line every
so often, without colours or control characters.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Column, Table
from rich.text import Text

from gram_jax.formatting import format_count, format_seconds, format_value

PLAIN_SECONDS = 20.0  # between two progress lines where there is no terminal
SMOOTHING = 0.1  # weight of the newest step in the running mean of the speed


class Console:
    """Output of one command. `quiet` drops everything but warnings, `mute` these as well."""

    def __init__(
        self, *, quiet: bool = False, mute: bool = False, stderr: bool = False, file: Any = None
    ):
        self.rich = RichConsole(stderr=stderr, file=file, highlight=False, soft_wrap=True)
        self.quiet, self.mute = quiet or mute, mute
        self.plain_seconds = PLAIN_SECONDS

    @property
    def interactive(self) -> bool:
        """Whether a person looks at a terminal."""
        return self.rich.is_terminal and not self.quiet

    def say(self, text: str = "") -> None:
        """A line as it is: brackets in it are no mark-up."""
        if not self.quiet:
            self.rich.print(text, markup=False)

    def heading(self, text: str) -> None:
        """A line that begins a part of the output."""
        if not self.quiet:
            self.rich.print(Text(text, style="bold"))

    def warn(self, text: str) -> None:
        """A line that must not be missed."""
        if self.mute:
            return
        self.rich.print(Text(f"warning: {text}", style="yellow"))

    def error(self, text: str) -> None:
        """Why a command ended without doing what it was asked."""
        self.rich.print(Text(f"error: {text}", style="red"))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; the first column is text, the others numbers."""
        if self.quiet:
            return
        table = Table(title=title or None, title_justify="left", header_style="bold")
        for at, name in enumerate(columns):
            table.add_column(name, justify="left" if at == 0 else "right")
        for row in rows:
            table.add_row(*(format_value(value) for value in row))
        self.rich.print(table)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Says how long the block took: where the time goes before the first step."""
        start = time.perf_counter()
        yield
        self.say(f"{what}: {format_seconds(time.perf_counter() - start)}")

    def progress(
        self, total: int | None, *, done: int = 0, label: str = "", unit: str = "tokens"
    ) -> "Progress":
        """Progress towards `total` (None: not known), `done` of it reached before, for a `with`."""
        return Progress(self, total, done=done, label=label, unit=unit)


class Progress:
    """A running count with speed and time left: a bar on a terminal, else lines."""

    def __init__(self, console: Console, total: int | None, *, done: int, label: str, unit: str):
        self.console, self.total, self.done = console, total, done
        self.label, self.unit = label, unit
        self.values: Mapping[str, float] = {}
        self.units_per_second = 0.0
        self._seconds_per_step: float | None = None
        self._updates = 0
        self._last = self._shown = time.perf_counter()
        self._started = False
        self._bar: RichProgress | None = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._last = self._shown = time.perf_counter()
        if self.console.interactive:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                _Speed(self),
            )
            self._bar = RichProgress(*columns, console=self.console.rich, refresh_per_second=4)
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(
        self, count: int = 1, *, units: float = 0.0, values: Mapping[str, float] | None = None
    ) -> None:
        """`count` more are done, which were `units` tokens; `values` are figures to show beside."""
        now = time.perf_counter()
        elapsed = max(now - self._last, 1e-9)
        self._last = now
        self.done += count
        per_step = elapsed / max(count, 1)
        self._updates += 1
        if self._seconds_per_step is None or self._updates == 2:  # the first one compiled as well
            self._seconds_per_step, self.units_per_second = per_step, units / elapsed
        else:
            self._seconds_per_step += SMOOTHING * (per_step - self._seconds_per_step)
            self.units_per_second += SMOOTHING * (units / elapsed - self.units_per_second)
        if values is not None:
            self.values = values
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif not self.console.quiet:
            waited = now - self._shown >= self.console.plain_seconds
            if waited or not self._started or self.done == self.total:
                self._shown, self._started = now, True
                self.console.say(f"{self.label} {self._count()} {self.status()}".strip())

    def pause(self) -> None:
        """The time since the last `update` was an evaluation's or a save's, not a step's."""
        self._last = time.perf_counter()

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present speed; None where it is not known."""
        if self.total is None or self._seconds_per_step is None:
            return None
        return self._seconds_per_step * max(self.total - self.done, 0)

    def status(self) -> str:
        """Time left, speed and figures in one line."""
        parts = []
        if (left := self.seconds_left) is not None and self.done != self.total:
            parts.append(f"{format_seconds(left)} left")
        if self.units_per_second:
            parts.append(f"{format_count(self.units_per_second)} {self.unit}/s")
        parts += [f"{name} {format_value(value)}" for name, value in self.values.items()]
        return " | ".join(parts)

    def _count(self) -> str:
        return f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"


class _Speed(ProgressColumn):
    """The figures beside the bar."""

    def __init__(self, progress: Progress):
        # What does not fit the terminal is cut off, and never wrapped: a bar is one line.
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self.progress = progress

    def render(self, task: RichTask) -> Text:
        return Text(self.progress.status())


class _LogHandler(logging.Handler):
    """Prints the library's log records: warnings marked as such, the rest as plain lines."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.console.warn(text)
        else:
            self.console.say(text)


def log_to(console: Console | None) -> None:
    """Print what the library logs on `console`, in place of an earlier one; None: print nothing."""
    logger = logging.getLogger("gram_jax")
    for handler in [h for h in logger.handlers if isinstance(h, _LogHandler)]:
        logger.removeHandler(handler)
    if console is not None:
        logger.addHandler(_LogHandler(console))
    logger.setLevel(logging.NOTSET if console is None else logging.INFO)
