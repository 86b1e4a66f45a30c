"""Averages of the metrics of single steps, written as lines."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from gram_jax.errors import NonFiniteError
from gram_jax.progress import ProgressBar
from gram_jax.run.metrics import MetricsWriter

SHOWN = ("loss", "accuracy")  # next to the progress bar


class Stopwatch:
    """Measures seconds of training without those of evaluations and saves."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    @contextmanager
    def pause(self, bar: ProgressBar) -> Iterator[None]:
        """Do not count the time of the block, here and in the bar's speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start
            bar.pause()


@dataclass(frozen=True)
class Averages:
    """Metrics of the steps since the last line.

    total_tokens, skipped: tokens and skipped batches of the whole run. tokens: of these steps. sums: (sum, count) of
    every metric. line: values of the last line.
    """

    total_tokens: int
    tokens: float = 0.0
    skipped: int = 0
    sums: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    line: Mapping[str, float] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """The mean of every metric."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}

    @property
    def shown(self) -> dict[str, float]:
        """The newest values of the metrics next to the progress bar."""
        newest = {**self.line, **self.means}
        return {name: newest[name] for name in SHOWN if name in newest}


def add_step(
    averages: Averages, step: int, metrics: Mapping[str, Any], max_skipped: int
) -> Averages:
    """The averages with the metrics of one more step, each (sum, count) on the devices.

    A bad batch only counts as skipped. Raises NonFiniteError if more than max_skipped are bad in a row.
    """
    found = {k: (float(a), float(b)) for k, (a, b) in jax.device_get(metrics).items()}
    special = ("bad", "skipped", "skipped_in_a_row", "num_tokens")
    bad, skipped, in_a_row, tokens = (found.pop(name)[0] for name in special)
    if in_a_row > max_skipped:
        total, count = found["loss"]
        loss, norm = total / count if count else total, found["grad_norm"][0]
        raise NonFiniteError(f"step {step}: the loss is {loss:g} and the gradient norm {norm:g}")
    sums = dict(averages.sums)
    if not bad:
        for name, (total, count) in found.items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + total, old[1] + count)
    return replace(
        averages,
        total_tokens=averages.total_tokens + int(tokens),
        tokens=averages.tokens + tokens,
        skipped=int(skipped),
        sums=sums,
    )


def write_line(averages: Averages, step: int, writer: MetricsWriter, seconds: float) -> Averages:
    """Write the means after `step` steps; returns empty averages. seconds: duration of the steps."""
    values = averages.means
    values["num_tokens"] = averages.total_tokens
    values["tokens_per_second"] = averages.tokens / max(seconds, 1e-9)
    if averages.skipped:
        values["skipped"] = averages.skipped
    writer.write(step, values)
    return Averages(
        averages.total_tokens, skipped=averages.skipped, line={**averages.line, **values}
    )
