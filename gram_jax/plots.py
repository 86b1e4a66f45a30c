"""The loss and accuracy curves of a run as a picture. The only door to `matplotlib`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("margin", "margin"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
)
SMOOTH_OVER = 0.05  # share of the points that the drawn mean runs over


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a torn last line is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> Path | None:
    """Draw what `rows` of metrics hold into a PNG; None if they hold nothing to draw.

    Training values are dots with their running mean, held-out values (names with "valid_" before
    them) a line with marks.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(key, label) for key, label in PANELS if any(key in row for row in rows)]
    if not panels:
        return None
    figure = Figure(figsize=(5.2 * min(len(panels), 3), 3.6 * ((len(panels) + 2) // 3)))
    FigureCanvasAgg(figure)
    for at, (key, label) in enumerate(panels):
        axes = figure.add_subplot((len(panels) + 2) // 3, min(len(panels), 3), at + 1)
        steps, values = _series(rows, key)
        axes.plot(steps, values, ".", color="C0", alpha=0.35, markersize=3)
        axes.plot(steps, _running_mean(values), color="C0", label="training")
        held_out = _series(rows, f"valid_{key}")
        if held_out[0]:
            axes.plot(*held_out, "o-", color="C1", label="held-out")
            axes.legend(frameon=False)
        if key == "accuracy":
            axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.2)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return Path(path)


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _running_mean(values: Sequence[float]) -> list[float]:
    size = max(1, round(SMOOTH_OVER * len(values)))
    means = []
    for at in range(len(values)):
        window = values[max(0, at - size + 1) : at + 1]
        means.append(sum(window) / len(window))
    return means
