"""What is drawn in a report: reliability, accuracy by length, and what the order of showing does.

Each takes {label: what was measured of it}, draws one series for each label, and has a table that says the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.evals.intervals import wilson_interval
from gram_jax.plots import FAINT, INK, MARKERS, SERIES, inline_svg
from gram_jax.reports.document import Figure, Table
from gram_jax.reports.schema import Bin, ConfidenceBin, Histogram, LengthBin
from gram_jax.reports.words import number, with_interval

SIZE = (4.2, 3.1)
LINES = ("-", "--", ":", "-.")
# Largest and smallest mark: its area says how many pairs a point stands for.
MARK_AREAS = (14.0, 90.0)
GAP_TICKS = (-1, -0.5, 0, 0.5, 1)  # matplotlib's own, nine of them, touch each other


def reliability(measured: Mapping[str, Sequence[ConfidenceBin]]) -> Figure:
    """Accuracy against confidence; on the diagonal a probability means what it says."""
    series = {label: [bin for bin in bins if bin.n] for label, bins in measured.items()}

    def draw(axes: Any) -> None:
        shown = [bin.confidence for bins in series.values() for bin in bins]
        least = min(confidence for confidence in shown if confidence is not None)
        start = 0.5 if least >= 0.5 else 0.0
        axes.plot([start, 1], [start, 1], "--", color=FAINT, linewidth=1)
        for at, bins in enumerate(series.values()):
            x = [bin.confidence for bin in bins]
            y = np.array([bin.accuracy for bin in bins])
            if len(series) == 1:
                intervals = [wilson_interval(p * b.n, b.n) for p, b in zip(y, bins, strict=True)]
                bounds = np.array(intervals).T
                axes.errorbar(
                    x, y, [y - bounds[0], bounds[1] - y], fmt="none", ecolor=FAINT, linewidth=1
                )
            _line(axes, at, x, y, [bin.n for bin in bins])
        axes.set(xlabel="confidence in the preferred response", ylabel="how often it is right")
        axes.set(xlim=(start - 0.01, 1.01), ylim=(-0.03, 1.03))

    return _figure(
        "Reliability: how often a verdict of some confidence is right. On the dashed line a probability means what it "
        "says; below it the judge is too sure. Larger marks stand for more pairs.",
        draw,
        series,
        ("confidence", "pairs", "mean confidence", "accuracy"),
        lambda bin: (_range(bin), f"{bin.n:,}", number(bin.confidence), number(bin.accuracy)),
    )


def accuracy_by_length(measured: Mapping[str, Sequence[LengthBin]]) -> Figure:
    """Accuracy where the chosen response is shorter (left) and where it is longer (right)."""
    series = {label: [bin for bin in bins if bin.n] for label, bins in measured.items()}

    def draw(axes: Any) -> None:
        axes.axhline(0.5, color=FAINT, linewidth=1, linestyle="--")
        axes.axvline(0, color=FAINT, linewidth=0.8)
        for at, bins in enumerate(series.values()):
            x = np.array([_middle(bin) for bin in bins]) + 0.06 * (at - (len(series) - 1) / 2)
            y = np.array([bin.accuracy for bin in bins])
            bounds = np.array([bin.interval or (bin.accuracy,) * 2 for bin in bins]).T
            gaps = [np.maximum(y - bounds[0], 0), np.maximum(bounds[1] - y, 0)]
            axes.errorbar(x, y, gaps, fmt="none", ecolor=SERIES[at % len(SERIES)], linewidth=1)
            _line(axes, at, x, y, [bin.n for bin in bins])
        low, high = axes.get_xlim()
        ticks = range(int(np.ceil(low)), int(np.floor(high)) + 1)
        axes.set_xticks(list(ticks), [_times(tick) for tick in ticks])
        axes.set(xlabel="length of the chosen response, in lengths of the other", ylabel="accuracy")
        axes.set(ylim=(-0.03, 1.03))

    return _figure(
        "Accuracy by length: left, the better response is the shorter one. A judge that goes by length rises from left "
        "to right. Lines: 95 % intervals; larger marks stand for more pairs.",
        draw,
        series,
        ("length of the chosen to the rejected", "pairs", "accuracy (95 %)"),
        lambda bin: (_times_range(bin), f"{bin.n:,}", with_interval(bin.accuracy, bin.interval)),
    )


def order_gaps(measured: Mapping[str, Histogram]) -> Figure:
    """How far the order of showing moves P(a response)."""

    def draw(axes: Any) -> None:
        axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        for at, found in enumerate(measured.values()):
            color = SERIES[at % len(SERIES)]
            shares = np.array(found.counts) / max(1, sum(found.counts))
            if len(measured) == 1:
                axes.stairs(shares, found.edges, fill=True, color=color, alpha=0.35)
            style = LINES[at % len(LINES)]
            axes.stairs(shares, found.edges, color=color, linewidth=1.5, linestyle=style)
        axes.set_xticks(GAP_TICKS)
        axes.set(xlabel="P(shown first) less P(shown second)", ylabel="share of the pairs")
        axes.set_ylim(bottom=0)

    rows = []
    for label, found in measured.items():
        borders = zip(found.edges, found.edges[1:], found.counts, strict=False)
        rows += [(f"{number(a, 2)} to {number(b, 2)}", f"{n:,}", label) for a, b, n in borders if n]
    return Figure(
        "Order gap: what a response gains by being shown first. All at 0: the order does not matter; right of it: the "
        "judge favours what it reads first.",
        lambda name: inline_svg(SIZE, draw, name=name, title="Histogram of order gaps"),
        _data("order gap", ("gap", "pairs"), rows, len(measured)),
        tuple(measured) if len(measured) > 1 else (),
    )


def _figure(caption: str, draw: Any, series: Mapping[str, Sequence[Any]], columns, row) -> Figure:
    title = caption.split(":")[0]
    rows = [(*row(bin), label) for label, bins in series.items() for bin in bins]
    return Figure(
        caption,
        lambda name: inline_svg(SIZE, draw, name=name, title=title),
        _data(title, columns, rows, len(series)),
        tuple(series) if len(series) > 1 else (),
    )


def _data(title: str, columns: Sequence[str], rows: Sequence[Any], series: int) -> Table:
    """The drawn figures; the last cell of a row, its series, is left out where there is one only."""
    if series == 1:
        return Table(f"{title}, in figures", tuple(columns), tuple(row[:-1] for row in rows))
    columns = (*columns, "model")
    return Table(f"{title}, in figures", columns, tuple(rows), prose=frozenset({len(columns) - 1}))


def _line(axes: Any, at: int, x: Any, y: Any, counts: Sequence[int]) -> None:
    color, marker = SERIES[at % len(SERIES)], MARKERS[at % len(MARKERS)]
    small, large = MARK_AREAS
    areas = small + (large - small) * np.array(counts) / max([*counts, 1])
    axes.plot(x, y, color=color, linewidth=1.2, alpha=0.8)
    axes.scatter(x, y, areas, color=color, marker=marker, linewidths=0, zorder=3)


def _middle(bin: Bin) -> float:
    """Where a bin is drawn; one without a bound, half a doubling behind the other."""
    if bin.high is None:
        return _low(bin) + 0.5
    return bin.high - 0.5 if bin.low is None else (bin.low + bin.high) / 2


def _low(bin: Bin) -> float:
    assert bin.low is not None  # a bin with pairs has a bound (schema.py)
    return bin.low


def _range(bin: Bin) -> str:
    return f"{number(bin.low, 2)} to {number(bin.high, 2)}"


def _times(doublings: float) -> str:
    """2 ** doublings as a reader says it.

    >>> _times(-2), _times(0), _times(1), _times(0.5)
    ('1/4', '1', '2', '1.41')
    """
    if doublings == int(doublings):
        return f"1/{2 ** -int(doublings)}" if doublings < 0 else f"{2 ** int(doublings)}"
    return f"{2**doublings:.2f}"


def _times_range(bin: Bin) -> str:
    if bin.high is None:
        return f"from {_times(_low(bin))} on"
    below = _times(bin.high)
    return f"below {below}" if bin.low is None else f"{_times(bin.low)} to {below}"
