"""The charts of a report: reliability, accuracy over coverage, accuracy by length, and position bias.

Each chart has one series per model, and a table of the same values.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gram_jax.evals.intervals import wilson_interval
from gram_jax.evals.results import (
    AccuracyBin,
    ConfidenceBin,
    CoveragePoint,
    Histogram,
    LengthBin,
    SourceResult,
)
from gram_jax.evals.tables import Table
from gram_jax.formatting import format_figure, format_with_interval
from gram_jax.plots import FAINT, INK, MARKERS, SERIES, inline_svg

SIZE = (4.2, 3.1)
LINES = ("-", "--", ":", "-.")
# Minimum and maximum area of a marker, which shows the number of pairs.
MARK_AREAS = (14.0, 90.0)
BIAS_TICKS = (-1, -0.5, 0, 0.5, 1)  # the nine default ticks of matplotlib overlap

_Bin = TypeVar("_Bin", bound=AccuracyBin)


class Chart(NamedTuple):
    """A drawing and the table of its values.

    draw: returns SVG for a page, given a prefix for unique ids. legend: names of the series, if there are several.
    """

    caption: str
    draw: Callable[[str], str]
    table: Table
    legend: tuple[str, ...]


def charts(sources: Mapping[str, SourceResult]) -> list[Chart]:
    """The charts of a source, {label: results of one model}; charts without data are left out."""
    found = []
    if bins := _filled({label: one.calibration.bins for label, one in sources.items()}):
        found.append(reliability(bins))
    if points := {label: p for label, one in sources.items() if (p := one.calibration.selective)}:
        found.append(accuracy_over_coverage(points))
    if bins := _filled({label: one.length.bins for label, one in sources.items()}):
        found.append(accuracy_by_length(bins))
    positions = {label: one.positions for label, one in sources.items()}
    if drawn := {label: one for label, one in positions.items() if any(one.counts)}:
        found.append(position_bias(drawn))
    return found


def _filled(measured: Mapping[str, Sequence[_Bin]]) -> dict[str, list[_Bin]]:
    """The bins with pairs, for models with at least one such bin."""
    each = {label: [bin for bin in bins if bin.n] for label, bins in measured.items()}
    return {label: bins for label, bins in each.items() if bins}


def reliability(series: Mapping[str, Sequence[ConfidenceBin]]) -> Chart:
    """Accuracy against confidence; a calibrated judge is on the diagonal."""

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

    return _chart(
        "Reliability: accuracy of the verdicts by confidence. A calibrated judge is on the dashed line, an "
        "overconfident judge below it. Larger markers are more pairs.",
        draw,
        series,
        ("confidence", "pairs", "mean confidence", "accuracy"),
        lambda bin: (
            _range(bin),
            f"{bin.n:,}",
            format_figure(bin.confidence),
            format_figure(bin.accuracy),
        ),
    )


def accuracy_over_coverage(series: Mapping[str, Sequence[CoveragePoint]]) -> Chart:
    """Accuracy of the most confident share of the pairs, against that share."""

    def draw(axes: Any) -> None:
        for at, points in enumerate(series.values()):
            x, y = [p.coverage for p in points], [p.accuracy for p in points]
            _line(axes, at, x, y, [1] * len(points))
        axes.set(xlabel="share of the pairs, the most confident first", ylabel="accuracy")
        axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.03))

    return _chart(
        "Accuracy over coverage: accuracy if only the most confident verdicts are used. It falls from left to right if "
        "confidence says which verdicts are right.",
        draw,
        series,
        ("coverage", "accuracy"),
        lambda point: (format_figure(point.coverage, 1), format_figure(point.accuracy)),
    )


def accuracy_by_length(series: Mapping[str, Sequence[LengthBin]]) -> Chart:
    """Accuracy if the chosen response is shorter (left) and if it is longer (right)."""

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

    return _chart(
        "Accuracy by length: on the left, the better response is the shorter one. If the judge prefers long responses, "
        "accuracy rises from left to right. Lines: 95 % intervals; larger markers are more pairs.",
        draw,
        series,
        ("length of the chosen to the rejected", "pairs", "accuracy (95 %)"),
        lambda bin: (
            _times_range(bin),
            f"{bin.n:,}",
            format_with_interval(bin.accuracy, bin.interval),
        ),
    )


def position_bias(measured: Mapping[str, Histogram]) -> Chart:
    """Histogram of the effect of the order of showing on P(a response)."""

    def draw(axes: Any) -> None:
        axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        for at, found in enumerate(measured.values()):
            color = SERIES[at % len(SERIES)]
            shares = np.array(found.counts) / max(1, sum(found.counts))
            if len(measured) == 1:
                axes.stairs(shares, found.edges, fill=True, color=color, alpha=0.35)
            style = LINES[at % len(LINES)]
            axes.stairs(shares, found.edges, color=color, linewidth=1.5, linestyle=style)
        axes.set_xticks(BIAS_TICKS)
        axes.set(xlabel="P(shown first) - P(shown second)", ylabel="share of the pairs")
        axes.set_ylim(bottom=0)

    bins = {
        label: [b for b in zip(one.edges, one.edges[1:], one.counts, strict=False) if b[2]]
        for label, one in measured.items()
    }
    return _chart(
        "Position bias: gain in probability of a response that is shown first. 0: the order has no effect; above 0: "
        "the judge favours the first response.",
        draw,
        bins,
        ("position bias", "pairs"),
        lambda b: (f"{format_figure(b[0], 2)} to {format_figure(b[1], 2)}", f"{b[2]:,}"),
        described="Histogram of position bias",
    )


def _chart(
    caption: str,
    draw: Callable[[Any], None],
    series: Mapping[str, Sequence[Any]],
    columns: tuple[str, ...],
    row: Callable[[Any], tuple[str, ...]],
    described: str = "",
) -> Chart:
    """row: makes a table row from a bin. described: title for screen readers, default: the start of the caption."""
    title = caption.split(":")[0]
    several = len(series) > 1
    rows = tuple(
        (*row(bin), label) if several else row(bin)
        for label, bins in series.items()
        for bin in bins
    )
    columns = (*columns, "model") if several else columns
    prose = frozenset({len(columns) - 1} if several else ())
    return Chart(
        caption,
        lambda name: inline_svg(SIZE, draw, name=name, title=described or title),
        Table(f"{title}, in figures", columns, rows, prose=prose),
        tuple(series) if several else (),
    )


def _line(axes: Any, at: int, x: Any, y: Any, counts: Sequence[int]) -> None:
    color, marker = SERIES[at % len(SERIES)], MARKERS[at % len(MARKERS)]
    small, large = MARK_AREAS
    areas = small + (large - small) * np.array(counts) / max([*counts, 1])
    axes.plot(x, y, color=color, linewidth=1.2, alpha=0.8)
    axes.scatter(x, y, areas, color=color, marker=marker, linewidths=0, zorder=3)


def _middle(bin: AccuracyBin) -> float:
    """The centre of a bin; for an open bin, half a doubling beyond its bound."""
    if bin.high is None:
        return (bin.low or 0.0) + 0.5
    return bin.high - 0.5 if bin.low is None else (bin.low + bin.high) / 2


def _range(bin: AccuracyBin) -> str:
    return f"{format_figure(bin.low, 2)} to {format_figure(bin.high, 2)}"


def _times(doublings: float) -> str:
    """2 ** doublings as text.

    >>> _times(-2), _times(0), _times(1), _times(0.5)
    ('1/4', '1', '2', '1.41')
    """
    if doublings == int(doublings):
        return f"1/{2 ** -int(doublings)}" if doublings < 0 else f"{2 ** int(doublings)}"
    return f"{2**doublings:.2f}"


def _times_range(bin: AccuracyBin) -> str:
    low, high = ("" if bound is None else _times(bound) for bound in (bin.low, bin.high))
    return f"{low} to {high}" if low and high else f"below {high}" if high else f"from {low} on"
