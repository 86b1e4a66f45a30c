"""Progress of library functions, reported through a callback.

A function takes `progress: ProgressFactory = no_progress` and opens it around its loop:

    with progress(len(records), label="pairs", unit="pairs") as bar:
        for window in windows:
            ...
            bar.update(len(window), units=len(window))

The command line passes one that draws a bar on a terminal and prints lines otherwise.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from gram_jax.formatting import format_seconds


class ProgressBar(Protocol):
    """A running count towards a total."""

    def update(
        self, count: int = 1, *, units: float = 0.0, values: Mapping[str, float] | None = None
    ) -> None:
        """Add `count` finished items of `units` units; values: figures to show next to the bar."""

    def pause(self) -> None:
        """Exclude the time since the last update, of an evaluation or a save, from the speed."""


class ProgressFactory(Protocol):
    """Opens a ProgressBar. total: None if unknown; done: items finished before; unit: of the speed."""

    def __call__(
        self, total: int | None, *, done: int = 0, label: str = "", unit: str = "tokens"
    ) -> AbstractContextManager[ProgressBar]: ...


class _Silent:
    def update(
        self, count: int = 1, *, units: float = 0.0, values: Mapping[str, float] | None = None
    ) -> None:
        pass

    def pause(self) -> None:
        pass


def no_progress(
    total: int | None, *, done: int = 0, label: str = "", unit: str = "tokens"
) -> AbstractContextManager[ProgressBar]:
    """A ProgressFactory that shows nothing."""
    return nullcontext(_Silent())


@contextmanager
def log_time(logger: logging.Logger, what: str) -> Iterator[None]:
    """Log the duration of the block at INFO, such as "compile: 3.2 s"."""
    start = time.perf_counter()
    yield
    logger.info("%s: %s", what, format_seconds(time.perf_counter() - start))
