"""The books of a run: metrics of single steps in, lines of means out."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from gram_jax.console import Progress
from gram_jax.errors import NonFiniteError
from gram_jax.formatting import format_value
from gram_jax.run.metrics import HELD_OUT, MetricsWriter

# What the progress bar shows.
SHOWN = ("loss", "accuracy")


class Journal:
    """Writes one line of metrics every `every` steps: means over the steps since the last line."""

    def __init__(self, writer: MetricsWriter, progress: Progress, every: int, max_skipped: int):
        self.writer, self.progress = writer, progress
        self.every, self.max_skipped = every, max_skipped
        self.skipped = self.in_a_row = 0
        self.num_tokens = int(writer.last("num_tokens") or 0)
        self.latest: dict[str, float] = {}
        self._sums: dict[str, tuple[float, float]] = {}
        self._tokens, self._since = 0.0, time.perf_counter()

    def book(self, step: int, metrics: Mapping[str, Any], *, line: bool = False) -> None:
        """Take in the metrics of step number `step`; `line` asks for a line in any case.

        Raises NonFiniteError for a bad batch beyond those that may be skipped in a row.
        """
        found = {k: (float(a), float(b)) for k, (a, b) in jax.device_get(metrics).items()}
        bad = found.pop("bad")[0] > 0
        tokens = found.pop("num_tokens")[0]
        self.num_tokens += int(tokens)
        self._tokens += tokens
        if bad:
            self.skipped += 1
            self.in_a_row += 1
            if self.in_a_row > self.max_skipped:
                raise NonFiniteError(_report(step, found))
        else:
            self.in_a_row = 0
            for name, (total, count) in found.items():
                old = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (old[0] + total, old[1] + count)
        self.progress.update(units=tokens, values=self._shown())
        if line or step % self.every == 0:
            self._write(step)

    def held_out(self, step: int, values: Mapping[str, float]) -> None:
        """A line of figures of held-out data, shown at once; none of none."""
        if not values:
            return
        self.writer.write(step, {f"{HELD_OUT}{name}": value for name, value in values.items()})
        shown = ", ".join(f"{name} {format_value(value)}" for name, value in values.items())
        self.progress.console.say(f"held-out data after step {step}: {shown}")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The time of the block is not training's: it does not count in speeds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start
            self.progress.pause()

    def _shown(self) -> dict[str, float]:
        means = {name: a / b for name, (a, b) in self._sums.items() if b}
        return {
            k: means.get(k, self.latest.get(k, 0.0)) for k in SHOWN if k in (means | self.latest)
        }

    def _write(self, step: int) -> None:
        now = time.perf_counter()
        values = {name: a / b for name, (a, b) in self._sums.items() if b}
        values["num_tokens"] = self.num_tokens
        values["tokens_per_second"] = self._tokens / max(now - self._since, 1e-9)
        if self.skipped:
            values["skipped"] = self.skipped
        self.writer.write(step, values)
        self.latest |= values
        self._sums, self._tokens, self._since = {}, 0.0, now


def _report(step: int, found: Mapping[str, tuple[float, float]]) -> str:
    total, count = found["loss"]
    loss = total / count if count else total
    return (
        f"step {step}: the loss is {loss:g} and the norm of the gradient {found['grad_norm'][0]:g}"
    )
