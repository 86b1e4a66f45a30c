"""Plots of runs as PNG files, and SVG charts for reports; matplotlib is imported here only."""

import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gram_jax.errors import DataError
from gram_jax.extras import needs_extra
from gram_jax.files import write_atomic

PANELS = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("margin", "margin"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
)
SMOOTH_OVER = 0.05  # window of the running mean, as a share of the points


def check_plots() -> None:
    """Raises MissingExtraError if plots cannot be drawn."""
    with needs_extra("plots"):
        import matplotlib  # noqa: F401


def _figure(size: tuple[float, float], **options: Any) -> Any:
    with needs_extra("plots"):
        from matplotlib.figure import Figure

    return Figure(figsize=size, **options)


def _save(figure: Any, path: str | Path, title: str) -> Path:
    figure.suptitle(title)
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return write_atomic(Path(path), drawn.getvalue(), error=DataError)


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _plot_training(
    axes: Any, rows: Sequence[dict[str, Any]], key: str, color: str, label: str
) -> None:
    """Values of training steps as dots, with their running mean."""
    steps, values = _series(rows, key)
    size = max(1, round(SMOOTH_OVER * len(values)))
    windows = [values[max(0, at - size + 1) : at + 1] for at in range(len(values))]
    means = [sum(window) / len(window) for window in windows]
    axes.plot(steps, values, ".", color=color, alpha=0.35, markersize=3)
    axes.plot(steps, means, color=color, label=label)
    axes.grid(alpha=0.2)


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> Path | None:
    """Draw the metrics of `rows` into a PNG; None if there is nothing to draw.

    Training values are dots with their running mean, held-out values (prefix "valid_") a line with markers.
    """
    panels = [(key, label) for key, label in PANELS if any(key in row for row in rows)]
    if not panels:
        return None
    columns, lines = min(len(panels), 3), (len(panels) + 2) // 3
    figure = _figure((5.2 * columns, 3.6 * lines))
    for at, (key, label) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, at + 1)
        if key == "learning_rate":  # exact: a running mean would only delay it
            axes.plot(*_series(rows, key), color="C0")
            axes.grid(alpha=0.2)
        else:
            _plot_training(axes, rows, key, "C0", "training")
        held_out = _series(rows, f"valid_{key}")
        if held_out[0]:
            axes.plot(*held_out, "o-", color="C1", label="held-out")
            axes.legend(frameon=False)
        if key == "accuracy":
            axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set(xlabel="step", ylabel=label)
    return _save(figure, path, title)


def plot_before_after(
    writing: Sequence[dict[str, Any]],
    judging: Sequence[dict[str, Any]],
    shares: dict[str, tuple[float, float]],
    path: str | Path,
    *,
    title: str,
) -> Path:
    """Draw the curves of both stages and the accuracy of each kind before and after training into a PNG.

    writing, judging: metrics of stages 1 and 2; shares: {kind: (accuracy before, after)}.
    """
    figure = _figure((13, 5.2))
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.1))
    first = figure.add_subplot(grid[0, 0], title="stage 1: loss per token")
    _plot_training(first, writing, "loss", "C0", "loss")
    second = figure.add_subplot(grid[1, 0], title="stage 2", xlabel="step")
    for color, name in (("C0", "loss"), ("C1", "accuracy")):
        _plot_training(second, judging, name, color, name)
    second.legend(frameon=False)
    axes = figure.add_subplot(grid[:, 1], xlim=(0, 1), xlabel="accuracy on held-out pairs")
    kinds = sorted(shares, key=lambda kind: shares[kind][1])
    for at, (label, offset, color) in enumerate((("before", -0.2, "0.7"), ("after", 0.2, "C0"))):
        places = [place + offset for place in range(len(kinds))]
        axes.barh(places, [shares[kind][at] for kind in kinds], 0.38, color=color, label=label)
    axes.axvline(0.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # above the bars
    return _save(figure, path, title)


def plot_best_of(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> Path:
    """Draw mean reward against n and against KL into a PNG, for the proxy judge and, if present, the oracle.

    rows: {"k", "kl", "proxy": {"mean", "interval"}, "oracle": the same or absent}. If the lines diverge, the
    judge is over-optimised. A star marks the maximum of the oracle.
    """
    figure = _figure((9.6, 4.2), layout="constrained")
    lines = (("proxy", "the judge that picks"), ("oracle", "the oracle, of the same picks"))
    scales = (("k", "responses to pick from (n)"), ("kl", "KL(best of n, policy) in nats"))
    for at, (key, label) in enumerate(scales):
        axes = figure.add_subplot(1, 2, at + 1, xlabel=label)
        for color, marker, (name, said) in zip(("C0", "C1"), "os", lines, strict=True):
            there = [row for row in rows if row.get(name)]
            if not there:
                continue
            x, y = [row[key] for row in there], [row[name]["mean"] for row in there]
            low, high = zip(*(row[name]["interval"] for row in there), strict=True)
            axes.plot(x, y, f"{marker}-", color=color, label=said, markersize=4)
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            if name == "oracle":
                best = y.index(max(y))
                axes.plot(x[best], y[best], "*", color=color, markersize=13)
        axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.2)
    first = figure.axes[0]
    first.set_ylabel("P(better than the greedy response)")
    first.set_xscale("log", base=2)
    first.set_xticks([row["k"] for row in rows], [str(row["k"]) for row in rows])
    first.legend(frameon=False, loc="best", title="bands: 95 % over prompts")
    return _save(figure, path, title if len(title) <= 90 else f"{title[:40]} ... {title[-45:]}")


# Placeholder colours. In a page they become CSS variables, which differ by light and dark mode: --s0 .. --s7.
INK, FAINT = "#010203", "#040506"
SERIES = tuple(f"#0{i}0c0d" for i in range(8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def inline_svg(
    size: tuple[float, float], draw: Callable[[Any], None], *, name: str, title: str
) -> str:
    """A drawing as an SVG element for a page, with the font and the colours of the page's style sheet.

    size: in inches, which set the aspect ratio; draw: called with the axes; name: prefix that makes ids unique in the
    page; title: for screen readers. INK, FAINT and SERIES become the variables --ink, --faint, --s0 .. --s7.
    """
    with needs_extra("plots"):
        import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text, not outlines
        "svg.hashsalt": "gram_jax",  # equal drawings have equal text
        "text.parse_math": False,
        "font.size": 9,
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    out = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = _figure(size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    return _for_page(out.getvalue(), name, title)


def _for_page(svg: str, name: str, title: str) -> str:
    view = re.findall(r'viewBox="([^"]*)"', svg)[0]
    inside = svg[svg.index(">", svg.index("<svg")) + 1 :]
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r'<g id="[^"]*">', "<g>", inside)
    inside = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", inside)
    inside = inside.replace("xlink:href", "href")
    inside = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "var(--sans)", inside)
    colours = {INK: "--ink", FAINT: "--faint"} | {c: f"--s{i}" for i, c in enumerate(SERIES)}
    for colour, variable in colours.items():
        inside = inside.replace(colour, f"var({variable})")
    heading = f'<title id="{name}-title">{html.escape(title)}</title>'
    return f'<svg class="plot" viewBox="{view}" role="img" aria-labelledby="{name}-title">{heading}{inside}'
