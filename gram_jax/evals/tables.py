"""Metrics of an evaluation as text tables, for a terminal, a report and a model card."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gram_jax.evals.calibration import why_unusable
from gram_jax.evals.results import (
    BenchmarkFigure,
    BenchmarkTable,
    EvaluationResults,
    Interval,
    PairMetrics,
    SourceResult,
    TemperatureFit,
)
from gram_jax.formatting import format_figure, format_with_interval, plural

AUTHORS = {
    "benchmark": "the benchmark",
    "GRAM release": "the GRAM release",
    "GRAM paper": "the GRAM paper",
}


class Label(NamedTuple):
    """The title of a metric, its meaning, and its number format."""

    title: str
    meaning: str = ""
    digits: int = 3
    sign: bool = False


# The metrics of pairs, with the same titles in all outputs.
LABELS = {
    "accuracy": Label(
        "accuracy (95 %)",
        "share of pairs with P(chosen) > 0.5, averaged over both orders",
    ),
    "n": Label("pairs, prompts", "the interval is clustered by prompt"),
    "consistency": Label(
        "order consistency", "share of pairs whose two orders prefer the same response", 2
    ),
    "position_bias": Label(
        "position bias",
        "mean P(a response) if shown first minus P if shown second; 0: no bias",
        sign=True,
    ),
    "accuracy_by_order": Label("accuracy, chosen shown first / second", "from one order only"),
    "accuracy_by_length": Label(
        "accuracy, chosen longer / shorter", "equal for a judge without length bias"
    ),
    "length_slope": Label(
        "length slope", "log-odds that a response gains if it is twice as long", 2, sign=True
    ),
    "controlled_accuracy": Label(
        "length-controlled accuracy",
        "accuracy if the chosen response were longer in half of the pairs",
    ),
    "ties": Label("ties", "share of pairs with P = 0.5; counted as wrong"),
    "margin": Label("mean margin", "log-odds of the chosen response", 2, sign=True),
    "ece": Label("ECE", "mean distance between confidence and accuracy; 0: calibrated"),
    "selective_accuracy": Label(
        "accuracy, confident half", "of the half of the pairs with the highest confidence"
    ),
    "cycles": Label(
        "cycle rate", "share of preferences a > b > c > a among three responses to a prompt"
    ),
    "brier": Label("Brier score", "mean squared error of the probability; 0.25 for guessing"),
    "nll": Label("NLL", "log loss of the probability; 0.693 for guessing"),
    "grades": Label(
        "agreement with grades",
        "Kendall's tau / Pearson's r of log-odds and grades; of several responses, mean over prompts",
    ),
    "shortened": Label("shortened", "share of pairs truncated to the token budget"),
    "skipped_ties": Label("ties in the source", "left out"),
}


class Cell(NamedTuple):
    """A cell of a table. share: drawn on a scale from 0 to 1, with its interval. strong: among the best."""

    text: str
    share: float | None = None
    interval: Interval | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """rows: the first cell is the name of the row. prose: indices of the columns that hold words.

    explanation: index of a column of prose that a terminal omits.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    prose: frozenset[int] = frozenset()
    explanation: int | None = None


def share(value: float | None, interval: Interval | None, *, strong: bool = False) -> Cell:
    """A share with its interval, as text and drawn."""
    drawn = value if value is not None and 0 <= value <= 1 else None
    return Cell(format_with_interval(value, interval), drawn, interval, strong)


def rows_read(source: SourceResult) -> str:
    """Number of rows read from a source, and of rows left out with their reasons."""
    dropped = [f"{n:,} left out: {why}" for why, n in source.dropped.items() if n]
    return "; ".join([f"{plural(source.rows, 'row')} of {source.source}", *dropped])


def titles(*names: str) -> tuple[str, ...]:
    """The titles of metrics of pairs."""
    return tuple(LABELS[name].title for name in names)


def values(pairs: PairMetrics, *names: str) -> tuple[str, ...]:
    """Metrics of pairs as text."""
    labels = [LABELS[name] for name in names]
    return tuple(
        format_figure(getattr(pairs, name), label.digits, sign=label.sign)
        for name, label in zip(names, labels, strict=True)
    )


def overview(evaluation: EvaluationResults) -> Table:
    """A row for each source."""
    names = ("consistency", "position_bias", "length_slope", "ece", "selective_accuracy")
    columns = ("source", "pairs", *titles("accuracy", *names))
    rows, note = [], ""
    for name, source in evaluation.sources.items():
        pairs = source.pairs
        value, interval = pairs.accuracy, pairs.interval
        if source.ranks and source.official:
            note = (
                "For several graded responses, the benchmark's first metric replaces the accuracy."
            )
            value, interval = source.official[0].value, source.official[0].interval
        rows.append((name, f"{pairs.n:,}", share(value, interval), *values(pairs, *names)))
    return Table("In short", columns, tuple(rows), note)


def key_figures(source: SourceResult) -> Table:
    """All metrics of the pairs, with their meanings."""
    pairs, controlled, grades = source.pairs, source.length.controlled_accuracy, source.grades
    composed: dict[str, str | None] = {  # None: does not apply
        "accuracy": format_with_interval(pairs.accuracy, pairs.interval),
        "n": f"{pairs.n:,}, {pairs.prompts:,}",
        "accuracy_by_order": _both(pairs.accuracy_chosen_first, pairs.accuracy_chosen_second),
        "accuracy_by_length": _both(pairs.accuracy_longer, pairs.accuracy_shorter),
        "controlled_accuracy": None if controlled is None else format_figure(controlled, 2),
        "nll": format_figure(source.calibration.nll),
        "cycles": None if source.cycles is None else format_figure(source.cycles),
        "grades": None,
        "skipped_ties": f"{pairs.skipped_ties:,}" if pairs.skipped_ties else None,
    }
    if grades is not None:
        unit = plural(grades.n, "prompt" if source.ranks else "pair")
        composed["grades"] = f"{_both(grades.kendall, grades.pearson)} ({unit})"
    shown = {
        name: composed[name] if name in composed else values(pairs, name)[0] for name in LABELS
    }
    rows = [
        (LABELS[name].title, value, LABELS[name].meaning)
        for name, value in shown.items()
        if value is not None
    ]
    columns = ("figure", "value", "what it says")
    return Table("Key figures", columns, tuple(rows), prose=frozenset({2}), explanation=2)


def _both(one: float | None, other: float | None) -> str:
    return f"{format_figure(one, 2)} / {format_figure(other, 2)}"


def official(figures: Sequence[BenchmarkFigure]) -> Table:
    """The official metrics of a benchmark with their definitions."""
    rows = tuple(
        (one.name, share(one.value, one.interval), one.definition, AUTHORS.get(one.by, one.by))
        for one in figures
    )
    columns = ("average", "value (95 %)", "definition", "as defined by")
    return Table("Averages", columns, rows, prose=frozenset({2, 3}), explanation=2)


def subsets(source: SourceResult) -> Table | None:
    """The accuracy of every subset; None if there is only one."""
    if len(source.subsets) < 2:
        return None
    rows = tuple(
        (part.name, f"{part.n:,}", share(part.accuracy, part.interval)) for part in source.subsets
    )
    return Table("Subsets", ("subset", counted(source), "accuracy (95 %)"), rows)


def counted(*sources: SourceResult) -> str:
    """The unit of `SubsetAccuracy.n`; "items" if it is not the same for all sources."""
    units = {"prompts" if source.ranks else "pairs" for source in sources}
    return units.pop() if len(units) == 1 else "items"


def benchmark_table(table: BenchmarkTable) -> Table:
    """An additional table of a benchmark."""
    columns = zip(*table.rows, strict=True)
    rows = zip(*map(_column, columns), strict=True)
    return Table(table.title, tuple(table.columns), tuple(rows))


def _column(values: Sequence[str | int | float | None]) -> list[str]:
    """A column as text: integers if all values are integers, else decimals."""
    if all(isinstance(value, int) for value in values):
        return [f"{value:,}" for value in values]
    return [value if isinstance(value, str) else format_figure(value) for value in values]


def temperature(fit: TemperatureFit) -> Table:
    """Calibration without and with a temperature."""
    why = why_unusable(fit)
    return Table(
        "Temperature: none helps" if why else f"Temperature {format_figure(fit.value, 2)}",
        ("", "without temperature", "with temperature"),
        (
            ("ECE", format_figure(fit.ece_before), format_figure(fit.ece_after)),
            ("NLL", format_figure(fit.nll_before), format_figure(fit.nll_after)),
        ),
        f"Log-odds are divided by it. Fitted on {plural(fit.fitted_on, 'pair')}; both columns are measured on "
        f"{plural(fit.tested_on, 'other pair')}." + (f" Do not use it: {why}." if why else ""),
    )


def source_tables(source: SourceResult) -> list[Table]:
    """All tables of a source."""
    tables = [official(source.official), key_figures(source), subsets(source)]
    tables += map(benchmark_table, source.tables)
    if (fit := source.calibration.temperature) is not None:
        tables.append(temperature(fit))
    return [table for table in tables if table is not None]
