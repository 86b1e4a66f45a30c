"""The tables of a report: of one source, of several models on one, and of attacks."""

from collections.abc import Mapping, Sequence

from gram_jax.reports.document import Bar, Cell, Example, Table
from gram_jax.reports.evidence import (
    Evaluation,
    Interval,
    Mistake,
    Official,
    Source,
    Subset,
    Temperature,
)
from gram_jax.reports.words import many, number, visible, with_interval

BEST = "Bold: the best, and all whose interval overlaps with its interval."
WHOSE = {
    "benchmark": "the benchmark",
    "GRAM release": "the GRAM release",
    "GRAM paper": "the GRAM paper",
    "gram_jax": "gram_jax",
}


def share(value: float | None, interval: Interval | None, *, strong: bool = False) -> Cell:
    """A share with its interval, in figures and drawn."""
    bar = None if value is None or not 0 <= value <= 1 else Bar(value, interval)
    return Cell(with_interval(value, interval), bar, strong)


def overview(evaluation: Evaluation) -> Table:
    """A row for each source."""
    rows = []
    for name, source in evaluation.sources.items():
        pairs = source.pairs
        if pairs is None:
            first = source.official[0] if source.official else None
            headline = share(first and first.value, first and first.interval)
            rows.append((visible(name), "–", headline, "–", "–", "–", "–"))
            continue
        rows.append(
            (
                visible(name),
                f"{pairs.n:,}",
                share(pairs.accuracy, pairs.interval),
                number(pairs.consistency, 2),
                number(pairs.position_bias, sign=True),
                number(pairs.length_slope, 2, sign=True),
                number(pairs.ece),
            )
        )
    return Table(
        "In short",
        (
            "source",
            "pairs",
            "accuracy (95 %)",
            "same verdict both ways",
            "preference for the first shown",
            "length slope",
            "ECE",
        ),
        tuple(rows),
        note="Where a source has no pairs, its first official average stands in place of the accuracy."
        if any(source.pairs is None for source in evaluation.sources.values())
        else "",
    )


def key_figures(source: Source) -> Table | None:
    """Every figure of the pairs, with what it says."""
    pairs, length, calibration = source.pairs, source.length, source.calibration
    if pairs is None:
        return None
    rows = [
        (
            "accuracy (95 %)",
            with_interval(pairs.accuracy, pairs.interval),
            "pairs whose chosen response gets more than half, both orders averaged",
        ),
        (
            "pairs, prompts",
            f"{pairs.n:,}, {pairs.prompts:,}",
            "the interval allows for pairs of one prompt",
        ),
        (
            "same verdict both ways",
            number(pairs.consistency, 2),
            "pairs for which both orders of showing name the same response",
        ),
        (
            "preference for the first shown",
            number(pairs.position_bias, sign=True),
            "mean P(first shown) less 0.5; 0 is none",
        ),
        (
            "accuracy, chosen shown first / second",
            f"{number(pairs.accuracy_chosen_first, 2)} / {number(pairs.accuracy_chosen_second, 2)}",
            "from one order of showing alone",
        ),
        (
            "accuracy, chosen longer / shorter",
            f"{number(pairs.accuracy_longer, 2)} / {number(pairs.accuracy_shorter, 2)}",
            "far apart: the judge goes by length",
        ),
        (
            "length slope",
            number(pairs.length_slope, 2, sign=True),
            "log-odds that a response gains when it is twice as long",
        ),
    ]
    if length is not None and length.controlled_accuracy is not None:
        rows.append(
            (
                "length-controlled accuracy",
                number(length.controlled_accuracy, 2),
                "the accuracy where length is no help",
            )
        )
    rows += [
        ("ties", number(pairs.ties), "exactly half; counted as wrong"),
        ("mean margin", number(pairs.margin, 2, sign=True), "log-odds of the chosen response"),
        (
            "ECE",
            number(pairs.ece),
            "mean distance between confidence and accuracy; 0 is calibrated",
        ),
        (
            "Brier score",
            number(pairs.brier),
            "mean squared error of the probability; guessing has 0.25",
        ),
    ]
    if calibration is not None:
        rows.append(("log loss", number(calibration.nll), "of the probability; guessing has 0.693"))
    if (grades := source.grades) is not None:
        both = f"{number(grades.kendall, 2)} / {number(grades.pearson, 2)}"
        rows.append(
            (
                "agreement with grades",
                both,
                f"Kendall's tau / Pearson's r of the margins, {many(grades.pairs, 'pair')}",
            )
        )
    rows.append(
        (
            "shortened",
            number(pairs.shortened),
            "pairs that did not fit the token budget and were cut",
        )
    )
    if pairs.skipped_ties:
        rows.append(("ties in the source", f"{pairs.skipped_ties:,}", "left out"))
    return Table(
        "Key figures", ("figure", "value", "what it says"), tuple(rows), prose=frozenset({2})
    )


def official(averages: Sequence[Official]) -> Table | None:
    """A benchmark's own averages with their definitions."""
    if not averages:
        return None
    rows = tuple(
        (
            visible(one.name),
            share(one.value, one.interval),
            visible(one.definition),
            visible(WHOSE.get(one.by, one.by)),
        )
        for one in averages
    )
    columns = ("average", "value (95 %)", "definition", "as defined by")
    return Table("Averages", columns, rows, prose=frozenset({2, 3}))


def subsets(parts: Sequence[Subset]) -> Table | None:
    """The accuracy of every part."""
    if len(parts) < 2:
        return None
    rows = tuple(
        (visible(part.name), f"{part.n:,}", share(part.accuracy, part.interval)) for part in parts
    )
    return Table("Subsets", ("subset", "pairs", "accuracy (95 %)"), rows)


def extra_tables(source: Source) -> list[Table]:
    """The tables of a benchmark's own."""
    return [
        Table(
            visible(table.title),
            tuple(map(visible, table.columns)),
            tuple(tuple(map(_extra, row)) for row in table.rows),
        )
        for table in source.tables
    ]


def _extra(value: str | int | float | None) -> str:
    if isinstance(value, str):
        return visible(value)
    return f"{value:,}" if isinstance(value, int) and value > 1 else number(value)


def temperature(found: Temperature) -> Table:
    """What one number makes of the calibration."""
    return Table(
        f"Temperature {number(found.value, 2)}",
        ("", "as it is", "with the temperature"),
        (
            ("ECE", number(found.ece_before), number(found.ece_after)),
            ("log loss", number(found.nll_before), number(found.nll_after)),
        ),
        note=f"The log-odds are divided by it. Fitted on {many(found.fitted_on, 'pair')}; both columns are of "
        f"{many(found.tested_on, 'other pair')}.",
    )


def mistakes(worst: Sequence[Mistake], most: int | None = None) -> tuple[Example, ...]:
    """The pairs on which the judge was surest of the wrong response."""
    return tuple(
        Example(
            f"P(chosen) = {number(one.probability)}"
            + (
                f", order gap {number(one.order_gap, 2, sign=True)}"
                if one.order_gap is not None
                else ""
            )
            + (f", {visible(one.subset)}" if one.subset else "")
            + (f", {visible(str(one.id))}" if one.id is not None else ""),
            (
                ("prompt", one.prompt),
                ("chosen", one.chosen),
                ("rejected, preferred by the judge", one.rejected),
            ),
        )
        for one in worst[:most]
    )


def best(values: Mapping[str, tuple[float, Interval | None]], *, least: bool = False) -> set[str]:
    """The labels of the best value and of those whose interval overlaps with its.

    >>> found = {"a": (0.8, (0.7, 0.9)), "b": (0.72, (0.6, 0.8)), "c": (0.5, (0.4, 0.55))}
    >>> sorted(best(found)), sorted(best(found, least=True)), best({"a": (0.8, None)})
    (['a', 'b'], ['c'], set())
    """
    if len(values) < 2:
        return set()
    sign = -1 if least else 1
    top = max(values, key=lambda label: sign * values[label][0])
    value, interval = values[top]
    low, high = interval or (value, value)

    def reaches(label: str) -> bool:
        other, bounds = values[label]
        below, above = bounds or (other, other)
        return below <= high if least else above >= low

    return {label for label in values if label == top or reaches(label)}


def accuracies(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row for each model, a column for each source."""
    names = dict.fromkeys(name for one in evaluations.values() for name in one.sources)
    found = {
        name: {
            label: (source.pairs.accuracy, source.pairs.interval)
            for label, one in evaluations.items()
            if (source := one.sources.get(name)) is not None and source.pairs is not None
        }
        for name in names
    }
    found = {name: values for name, values in found.items() if values}
    tops = {name: best(values) for name, values in found.items()}
    rows = tuple(
        (
            visible(label),
            *(
                Cell(with_interval(*found[name][label]), strong=label in tops[name])
                if label in found[name]
                else Cell("–")
                for name in found
            ),
        )
        for label in evaluations
    )
    return Table("Accuracy on pairs (95 %)", ("model", *map(visible, found)), rows, BEST)


def models_on(sources: Mapping[str, Source]) -> Table | None:
    """A row for each model, {label: the same source}."""
    found = {label: source.pairs for label, source in sources.items() if source.pairs is not None}
    if not found:
        return None
    top = best({label: (pairs.accuracy, pairs.interval) for label, pairs in found.items()})
    rows = tuple(
        (
            visible(label),
            share(pairs.accuracy, pairs.interval, strong=label in top),
            f"{pairs.n:,}",
            number(pairs.consistency, 2),
            number(pairs.position_bias, sign=True),
            number(pairs.length_slope, 2, sign=True),
            number(pairs.ece),
            number(pairs.brier),
            number(pairs.shortened),
        )
        for label, pairs in found.items()
    )
    columns = (
        "model",
        "accuracy (95 %)",
        "pairs",
        "same verdict both ways",
        "preference for the first shown",
        "length slope",
        "ECE",
        "Brier",
        "shortened",
    )
    return Table("Pairs", columns, rows, note=BEST)


def officials_on(sources: Mapping[str, Source]) -> Table | None:
    """A row for each average, a column for each model."""
    found: dict[str, dict[str, Official]] = {}
    for label, source in sources.items():
        for one in source.official:
            found.setdefault(one.name, {})[label] = one
    if not found:
        return None
    rows = []
    for name, per_model in found.items():
        top = best({label: (one.value, one.interval) for label, one in per_model.items()})
        one = next(iter(per_model.values()))
        whose = f"{visible(one.definition)} ({visible(WHOSE.get(one.by, one.by))})"
        cells = (_of_model(per_model.get(label), label in top) for label in sources)
        rows.append((visible(name), *cells, whose))
    columns = ("average", *map(visible, sources), "definition")
    return Table("Averages", columns, tuple(rows), BEST, frozenset({len(columns) - 1}))


def _of_model(one: Official | None, strong: bool) -> Cell:
    return Cell("–") if one is None else Cell(with_interval(one.value, one.interval), strong=strong)


def subsets_on(sources: Mapping[str, Source]) -> Table | None:
    """A row for each subset, a column for each model."""
    found: dict[str, dict[str, Subset]] = {}
    for label, source in sources.items():
        for part in source.subsets:
            found.setdefault(part.name, {})[label] = part
    if len(found) < 2:
        return None
    rows = []
    for name, per_model in found.items():
        top = best({label: (part.accuracy, part.interval) for label, part in per_model.items()})
        cells = (
            Cell(with_interval(part.accuracy, part.interval), strong=label in top)
            if (part := per_model.get(label))
            else Cell("–")
            for label in sources
        )
        rows.append((visible(name), f"{next(iter(per_model.values())).n:,}", *cells))
    return Table("Subsets", ("subset", "pairs", *map(visible, sources)), tuple(rows), BEST)
