"""Draw the figures of concepts.md into docs/figures: python docs/make_figures.py

The curves are the formulas of the page, and the points of position-bias.svg an illustration; nothing is measured.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIGURES = Path(__file__).parent / "figures"
BLUE, ORANGE, GREY, LIGHT = "#3f51b5", "#e07b00", "#777777", "#eceff6"


def main() -> None:
    """Draw all of them."""
    mpl.rcParams |= {"svg.hashsalt": "gram_jax", "font.size": 9, "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False}
    FIGURES.mkdir(exist_ok=True)
    for name, draw in {
        "two-stages": two_stages,
        "label-smoothing": label_smoothing,
        "score": score,
        "position-bias": position_bias,
        "calibration": calibration,
    }.items():
        draw().savefig(FIGURES / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def two_stages() -> Figure:
    """The tokens of an example in both stages, and which of them have a loss."""
    figure, axes = _canvas(7, 2.6)
    axes.text(0, 2.55, "Stage 1: write both responses", weight="bold")
    _boxes(axes, 1.75, [("prompt", 2), ("response A", 2), ("response B", 2)], with_loss=(1, 2))
    axes.text(0, 1.1, "Stage 2: predict the verdict", weight="bold")
    parts = [
        ("prompt", 2),
        ("response A", 2),
        ("response B", 2),
        ("which is better?", 2),
        ("A or B", 1),
    ]
    _boxes(axes, 0.3, parts, with_loss=(4,))
    axes.text(9.1, 2.05, "orange: tokens with a loss", ha="right", color=ORANGE)
    return figure


def score() -> Figure:
    """A pair in both orders, and the mean."""
    figure, axes = _canvas(7, 2.2)
    for y, first, second, label in ((1.3, "y1", "y2", "A"), (0.3, "y2", "y1", "B")):
        _boxes(axes, y, [("prompt x", 2), (first, 1.2), (second, 1.2), ("which is better?", 2)])
        axes.annotate("", (7.0, y + 0.25), (6.5, y + 0.25), arrowprops={"arrowstyle": "->"})
        axes.text(7.1, y + 0.25, f"P({label})", va="center", color=BLUE, size=11)
    axes.text(8.0, 1.05, "mean = P(y1 better)", va="center", color=ORANGE, size=11)
    axes.set_xlim(-0.05, 10.4)
    return figure


def label_smoothing() -> Figure:
    """The loss of stage 2 by the margin, for three values of label smoothing."""
    figure = Figure((5, 2.8))
    axes = figure.add_subplot()
    margin = np.linspace(-3, 7, 400)
    for smoothing, color in ((0.0, GREY), (0.1, BLUE), (0.3, ORANGE)):
        loss = np.logaddexp(0, -margin) + smoothing / 2 * margin
        axes.plot(margin, loss, color=color, label=f"e = {smoothing:g}")
        if smoothing:
            least = np.log((2 - smoothing) / smoothing)
            axes.plot(least, np.logaddexp(0, -least) + smoothing / 2 * least, "o", color=color)
    axes.set(xlabel="t = z(better) - z(other)", ylabel="L(t)", ylim=(0, 3))
    axes.legend(frameon=False)
    return figure


def position_bias() -> Figure:
    """Five simulated pairs: P(first) in both orders and their mean."""
    figure = Figure((5, 2.4))
    axes = figure.add_subplot()
    log_odds, bias = np.array([2.0, 1.0, 0.0, -0.8, -2.2]), 1.2
    rows = np.arange(len(log_odds))[::-1]
    shown_first, shown_second = (_sigma(log_odds + b) for b in (bias, -bias))
    axes.hlines(rows, shown_second, shown_first, color=GREY, lw=1)
    axes.plot(shown_first, rows, "o", color=BLUE, label="shown first")
    axes.plot(shown_second, rows, "o", mfc="white", color=BLUE, label="shown second")
    axes.plot((shown_first + shown_second) / 2, rows, "D", color=ORANGE, label="mean: the score")
    axes.axvline(0.5, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="P(the first response is better)", xlim=(0, 1), yticks=rows)
    axes.set_yticklabels([f"pair {n}" for n in range(1, 6)])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def calibration() -> Figure:
    """Share of right verdicts by probability: calibrated, overconfident, underconfident."""
    figure = Figure((4.2, 3))
    axes = figure.add_subplot()
    said = np.linspace(0.5, 0.995, 200)
    log_odds = np.log(said / (1 - said))
    axes.plot(said, said, color=GREY, ls="--", label="calibrated (temperature 1)")
    for temperature, color, name in ((2.0, ORANGE, "overconfident"), (0.5, BLUE, "underconfident")):
        label = f"{name} (temperature {temperature:g})"
        axes.plot(said, _sigma(log_odds / temperature), color=color, label=label)
    axes.set(xlabel="P(better) of the preferred response", ylabel="share of right verdicts")
    axes.set(xlim=(0.5, 1), ylim=(0.5, 1.005))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _sigma(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure((width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.05, 9.2), ylim=(0, height + 0.3))
    axes.axis("off")
    return figure, axes


def _boxes(
    axes: Axes, y: float, parts: list[tuple[str, float]], with_loss: tuple[int, ...] = ()
) -> None:
    """Boxes in a row. parts: text and width of each; with_loss: which of them are marked."""
    x = 0.0
    for at, (text, width) in enumerate(parts):
        marked = at in with_loss
        fill, edge = ("#fdebd6", ORANGE) if marked else (LIGHT, BLUE)
        axes.add_patch(mpl.patches.Rectangle((x, y), width - 0.08, 0.5, fc=fill, ec=edge))
        axes.text(x + (width - 0.08) / 2, y + 0.25, text, ha="center", va="center")
        x += width


if __name__ == "__main__":
    main()
