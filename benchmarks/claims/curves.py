"""Judges as a function of a setting: comparable estimates, and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import RAW, Cell
from figures import Results, accuracy, brier, contrast
from intervals import Estimate
from pools import Pools

Series = Mapping[str, Mapping[str, Sequence[Cell]]]  # judge -> value -> the cell with every seed

MEASURES = (accuracy, brier)
LABELS = {"accuracy": "accuracy", "brier": "Brier score"}
OF_A_COIN = {"accuracy": 0.5, "brier": 0.25}
SHIFT = 0.05  # between the points of two lines at one value


@dataclass(frozen=True)
class Curve:
    """found: by judge, value, part (sets in or out of distribution) and measure; None for cells without results.

    seeds: those that all points have, used for every point; if there are none, every point uses its own seeds.
    """

    name: str
    series: Series
    parts: Sequence[str]
    seeds: tuple[int, ...]
    found: Mapping[tuple[str, str, str, str], Estimate | None]

    @property
    def comparable(self) -> bool:
        """Whether there are two values or more, all with the same seeds."""
        values = {value for (_, value, _, _), one in self.found.items() if one is not None}
        return len(values) > 1 and bool(self.seeds)


def make_curve(
    name: str, series: Series, parts: Mapping[str, Sequence[str]], results: Results, pools: Pools
) -> Curve:
    """The curve of a series. parts: the sets of each. All points use the same seeds, so that they differ by value only."""
    seeds = common_seeds(
        [cells for values in series.values() for cells in values.values()], results
    )
    found = {}
    for which, values in series.items():
        for value, cells in values.items():
            of_all = [cell for cell in cells if not seeds or cell == RAW or cell.seed in seeds]
            for part, sets in parts.items():
                for measure in MEASURES:
                    one = contrast(results, pools, [(1.0, of_all)], sets, measure)
                    found[which, value, part, measure.__name__] = one
    return Curve(name, series, list(parts), seeds, found)


def common_seeds(points: Sequence[Sequence[Cell]], results: Results) -> tuple[int, ...]:
    """The seeds that all computed points have; the base model counts as having all."""
    trained = [{cell.seed for cell in cells if cell != RAW and cell in results} for cells in points]
    return tuple(sorted(set.intersection(*filter(None, trained)))) if any(trained) else ()


def draw(curve: Curve, path: Path) -> None:
    """Accuracy and Brier score side by side, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "claims"  # makes the file reproducible
    import matplotlib.pyplot as plt

    figure, fields = plt.subplots(1, 2, figsize=(9.2, 3.6))
    for axes, measure in zip(fields, MEASURES, strict=True):
        _draw_lines(axes, curve, measure.__name__)
        _name_axes(axes, curve, measure.__name__)
    named = fields[0].get_legend_handles_labels()
    figure.legend(*named, loc="upper center", ncols=3, frameon=False, fontsize=7)
    figure.tight_layout(rect=(0, 0, 1, 0.91))  # the legend is above the curves
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_lines(axes: Any, curve: Curve, measure: str) -> None:
    shift = 0.0
    for which, values in curve.series.items():
        for part in curve.parts:
            every = [curve.found[which, value, part, measure] for value in values]
            points = [(at, one) for at, one in enumerate(every) if one is not None]
            if not points:
                continue
            y = [one.value for _, one in points]
            # Rounding may put a bound on the wrong side; error bars must not be negative.
            spread = [
                [max(0.0, one.value - one.low) for _, one in points],
                [max(0.0, one.high - one.value) for _, one in points],
            ]
            names = ((which, curve.series), (part, curve.parts))
            label = ", ".join(name for name, many in names if len(many) > 1)
            x = [at + shift for at, _ in points]
            axes.errorbar(x, y, spread, marker="o", capsize=2, linewidth=1, label=label)
            shift += SHIFT


def _name_axes(axes: Any, curve: Curve, measure: str) -> None:
    axes.axhline(OF_A_COIN[measure], color="0.6", linewidth=0.8, linestyle="--")
    values = next(iter(curve.series.values()))
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlabel(f"{curve.name} (seeds {', '.join(map(str, curve.seeds))})")
    axes.set_ylabel(LABELS[measure])
    axes.spines[["top", "right"]].set_visible(False)
