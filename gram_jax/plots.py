"""The curves of a run as a picture, and drawings for pages; matplotlib is imported here only."""

import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gram_jax.extras import needs_extra

PANELS = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("margin", "margin"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
)
SMOOTH_OVER = 0.05  # share of the points that the drawn mean runs over


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> Path | None:
    """Draw what `rows` of metrics hold into a PNG; None if they hold nothing to draw.

    Training values are dots with their running mean, held-out values (names with "valid_" before
    them) a line with marks.
    """
    with needs_extra("plots"):
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
        if key == "learning_rate":  # stated, not measured: its mean would lag behind it
            axes.plot(steps, values, color="C0")
        else:
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


def plot_before_after(
    writing: Sequence[dict[str, Any]],
    judging: Sequence[dict[str, Any]],
    shares: dict[str, tuple[float, float]],
    path: str | Path,
    *,
    title: str,
) -> Path:
    """Draw both stages' curves and each kind's accuracy before and after training into a PNG.

    writing, judging: metrics of stages 1 and 2; shares: {kind: (accuracy before, after)}.
    """
    with needs_extra("plots"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.1))
    stages = (("stage 1: loss of writing", writing, "loss"), ("stage 2", judging, "accuracy"))
    for at, (label, rows, key) in enumerate(stages):
        axes = figure.add_subplot(grid[at, 0])
        keys = (key,) if key == "loss" else ("loss", key)
        for color, name in enumerate(keys):
            steps, values = _series(rows, name)
            axes.plot(steps, values, ".", color=f"C{color}", alpha=0.35, markersize=3)
            axes.plot(steps, _running_mean(values), color=f"C{color}", label=name)
        axes.set(title=label, xlabel="step" if at else "")
        axes.grid(alpha=0.2)
        if len(keys) > 1:
            axes.legend(frameon=False)
    axes = figure.add_subplot(grid[:, 1])
    kinds = sorted(shares, key=lambda kind: shares[kind][1])
    for offset, which, color in ((-0.2, 0, "0.7"), (0.2, 1, "C0")):
        places = [at + offset for at in range(len(kinds))]
        label = ("before", "after")[which]
        axes.barh(places, [shares[k][which] for k in kinds], 0.38, color=color, label=label)
    axes.axvline(0.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.set(xlim=(0, 1), xlabel="accuracy on held-out pairs")
    axes.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return Path(path)


def plot_best_of(rows: Sequence[dict[str, Any]], path: str | Path, *, title: str) -> Path:
    """Draw mean reward against n and against KL into a PNG: the judge that picks, and the oracle where there is one.

    rows: {"k", "kl", "proxy": {"mean", "interval"}, "oracle": the same or absent}. Lines that part show that picking
    harder no longer means picking better; a star marks where the oracle is highest.
    """
    with needs_extra("plots"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    lines = (("proxy", "the judge that picks"), ("oracle", "the oracle, of the same picks"))
    scales = (("k", "responses to pick from (n)"), ("kl", "KL(best of n, policy) in nats"))
    for at, (key, label) in enumerate(scales):
        axes = figure.add_subplot(1, 2, at + 1)
        for color, (name, said) in enumerate(lines):
            there = [row for row in rows if row.get(name)]
            if not there:
                continue
            x, y = [row[key] for row in there], [row[name]["mean"] for row in there]
            low, high = zip(*(row[name]["interval"] for row in there), strict=True)
            axes.plot(x, y, "os"[color] + "-", color=f"C{color}", label=said, markersize=4)
            axes.fill_between(x, low, high, color=f"C{color}", alpha=0.15, linewidth=0)
            if name == "oracle":
                best = y.index(max(y))
                axes.plot(x[best], y[best], "*", color=f"C{color}", markersize=13)
        axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set(xlabel=label, ylabel="P(better than the greedy response)" if not at else "")
        if key == "k":
            axes.set_xscale("log", base=2)
            axes.set_xticks([row["k"] for row in rows], [str(row["k"]) for row in rows])
        axes.grid(alpha=0.2)
    figure.axes[0].legend(frameon=False, loc="best", title="bands: 95 % over prompts")
    figure.suptitle(title if len(title) <= 90 else f"{title[:40]} ... {title[-45:]}")
    figure.savefig(path, dpi=120)
    return Path(path)


# Stand-ins for colours that a page chooses for light and dark: C0 .. C7 become --s0 .. --s7.
INK, FAINT = "#010203", "#040506"
SERIES = tuple(f"#0{i}0c0d" for i in range(8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def inline_svg(
    size: tuple[float, float], draw: Callable[[Any], None], *, name: str, title: str
) -> str:
    """A drawing as an SVG element for a page: its text in the page's font, its colours from the page's style sheet.

    size: inches, which give the proportions; draw: is handed the axes; name: makes its ids unique in the page; title:
    read to those who do not see it. INK, FAINT and SERIES become the variables --ink, --faint, --s0 .. --s7.
    """
    with needs_extra("plots"):
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # letters, not outlines of letters
        "svg.hashsalt": "gram_jax",  # the same drawing is the same text
        "text.parse_math": False,
        "font.size": 9,
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    out = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
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
