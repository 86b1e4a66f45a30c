"""Output of a command: lines, tables, progress. The only module that imports `rich`.

On a terminal progress is a bar; elsewhere (a log file, a pipe) it is a line every 20 seconds, without colours or
control characters.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Column, Table
from rich.text import Text

from gram_jax.formatting import format_count, format_seconds, format_value

PLAIN_SECONDS = 20.0  # between two progress lines without a terminal
BURST_SECONDS = (
    0.5  # the items of one batch are reported one by one; a shorter time says nothing about speed
)
WINDOW = 256  # batches, or times of BURST_SECONDS, over which the speed is a mean


class Console:
    """Output of one command; nothing if `mute`."""

    def __init__(self, *, mute: bool = False, stderr: bool = False, file: Any = None):
        self.rich = RichConsole(
            stderr=stderr, file=file, quiet=mute, highlight=False, soft_wrap=True
        )

    def say(self, text: str = "") -> None:
        """Print a line as it is: brackets in it are not mark-up."""
        self.rich.print(text, markup=False)

    def heading(self, text: str) -> None:
        """Print a line that begins a part of the output."""
        self.rich.print(Text(text, style="bold"))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.rich.print(Text(f"warning: {text}", style="yellow"))

    def error(self, text: str) -> None:
        """Print why the command failed."""
        self.rich.print(Text(f"error: {text}", style="red"))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; the first column is text, the others are numbers."""
        table = Table(title=title or None, title_justify="left", header_style="bold")
        for at, name in enumerate(columns):
            table.add_column(name, justify="left" if at == 0 else "right")
        for row in rows:
            table.add_row(*(format_value(value) for value in row))
        self.rich.print(table)

    @contextmanager
    def progress(
        self, total: int | None, *, done: int = 0, label: str = "", unit: str = "tokens"
    ) -> Iterator["Progress"]:
        """A ProgressFactory (gram_jax/progress.py)."""
        progress = Progress(self, total, done, label, unit)
        if not self.rich.is_terminal or self.rich.quiet:
            yield progress
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            _Speed(progress),
        )
        with RichProgress(*columns, console=self.rich, refresh_per_second=4) as bar:
            task = bar.add_task(label, total=total, completed=done)
            progress.show = lambda: bar.update(task, completed=progress.done)
            yield progress


class _Work(NamedTuple):
    """Seconds of work, without pauses, and the items and units done in them."""

    seconds: float
    items: int
    units: float

    def plus(self, seconds: float, items: int, units: float) -> "_Work":
        return _Work(self.seconds + seconds, self.items + items, self.units + units)


class Progress:
    """A running count with speed and time left."""

    def __init__(self, console: Console, total: int | None, done: int, label: str, unit: str):
        self.console, self.total, self.done = console, total, done
        self.label, self.unit = label, unit
        self.show = self._print
        self.values: Mapping[str, float] = {}
        self._now = _Work(0.0, 0, 0.0)
        self._recent: deque[_Work] = deque(maxlen=WINDOW)
        self._lines = 0
        self._last = self._printed = time.perf_counter()

    def update(
        self, count: int = 1, *, units: float = 0.0, values: Mapping[str, float] | None = None
    ) -> None:
        """Add `count` finished items of `units` units; values: the newest figures to show next to it."""
        now = time.perf_counter()
        elapsed = max(now - self._last, 1e-9)
        self._now = self._now.plus(elapsed, count, units)
        if not self._recent or self._since(self._recent[-1]):
            self._recent.append(self._now)
        self._last = now
        self.done += count
        self.values = self.values if values is None else values
        self.show()

    def pause(self) -> None:
        """Leave the time since the last update out of the speed: it was an evaluation or a save."""
        self._last = time.perf_counter()

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present speed; None if it is not known, as after the first update, which also compiled."""
        work = self._since(self._recent[0]) if self._recent else None
        if self.total is None or work is None or not work.items:
            return None
        return work.seconds / work.items * max(self.total - self.done, 0)

    @property
    def units_per_second(self) -> float:
        """Mean over the recent updates, or over all while only the first one, which also compiled, is known."""
        work = self._since(self._recent[0]) if self._recent else None
        work = work or self._now
        return work.units / work.seconds if work.seconds else 0.0

    def _since(self, then: "_Work") -> "_Work | None":
        """The work since then; None within a burst."""
        work = self._now.plus(-then.seconds, -then.items, -then.units)
        return work if work.seconds >= BURST_SECONDS else None

    def status(self) -> str:
        """Time left, speed and figures in one line."""
        parts = []
        if (left := self.seconds_left) is not None and self.done != self.total:
            parts.append(f"{format_seconds(left)} left")
        if speed := self.units_per_second:
            parts.append(f"{format_count(speed)} {self.unit}/s")
        parts += [f"{name} {format_value(value)}" for name, value in self.values.items()]
        return " | ".join(parts)

    def _print(self) -> None:
        """Print the first update, the first with a time left, the last one, and one every PLAIN_SECONDS."""
        waited = self._last - self._printed >= PLAIN_SECONDS
        first = self._lines == (self.seconds_left is not None)
        if waited or first or self.done == self.total:
            self._printed, self._lines = self._last, self._lines + 1
            count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
            self.console.say(f"{self.label} {count} {self.status()}".strip())


class _Speed(ProgressColumn):
    """The figures next to the bar."""

    def __init__(self, progress: Progress):
        # A bar is one line: what does not fit the terminal is cut off.
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
        show = self.console.warn if record.levelno >= logging.WARNING else self.console.say
        show(record.getMessage())


def log_to(console: Console | None) -> None:
    """Print the library's log on `console` only; None: print nothing."""
    logger = logging.getLogger("gram_jax")
    for handler in [h for h in logger.handlers if isinstance(h, _LogHandler)]:
        logger.removeHandler(handler)
    if console is not None:
        logger.addHandler(_LogHandler(console))
    logger.setLevel(logging.NOTSET if console is None else logging.INFO)
