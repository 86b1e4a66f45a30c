"""The tables of one model's evaluation."""

from collections.abc import Iterator, Sequence

from gram_jax.reports.concerns import no_use_of
from gram_jax.reports.document import Bar, Cell, Example, Table
from gram_jax.reports.schema import (
    Evaluation,
    Interval,
    Mistake,
    Official,
    Pairs,
    Source,
    Temperature,
)
from gram_jax.reports.words import many, number, visible, with_interval

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
    sources = evaluation.sources
    columns = (
        "source",
        "pairs",
        "accuracy (95 %)",
        "same verdict both ways",
        "preference for the first shown",
        "length slope",
        "ECE",
    )
    rows = tuple((visible(name), *_in_short(source)) for name, source in sources.items())
    ranks = any(source.ranks or source.pairs is None for source in sources.values())
    note = "Of several graded responses the benchmark's own first figure stands here in place of the accuracy."
    return Table("In short", columns, rows, note=note if ranks else "")


def _in_short(source: Source) -> tuple[str | Cell, ...]:
    pairs = source.pairs
    headline = Cell("–") if pairs is None else share(pairs.accuracy, pairs.interval)
    if (pairs is None or source.ranks) and source.official:
        first = source.official[0]
        headline = share(first.value, first.interval)
    if pairs is None:
        return ("–", headline, "–", "–", "–", "–")
    return (
        f"{pairs.n:,}",
        headline,
        number(pairs.consistency, 2),
        number(pairs.position_bias, sign=True),
        number(pairs.length_slope, 2, sign=True),
        number(pairs.ece),
    )


Figures = Iterator[tuple[str, str, str]]  # what it is, the value, what it says


def key_figures(source: Source) -> Table | None:
    """Every figure of the pairs, with what it says."""
    pairs = source.pairs
    if pairs is None:
        return None
    rows = (
        *_of_accuracy(pairs),
        *_of_order(pairs),
        *_of_length(pairs, source),
        *_of_probability(pairs, source),
        *_of_texts(pairs),
    )
    return Table("Key figures", ("figure", "value", "what it says"), rows, prose=frozenset({2}))


def _of_accuracy(pairs: Pairs) -> Figures:
    value = with_interval(pairs.accuracy, pairs.interval)
    says = "pairs whose chosen response gets more than half, both orders averaged"
    yield "accuracy (95 %)", value, says
    value = f"{pairs.n:,}, {pairs.prompts:,}"
    yield "pairs, prompts", value, "the interval allows for pairs of one prompt"


def _of_order(pairs: Pairs) -> Figures:
    says = "pairs for which both orders of showing name the same response"
    yield "same verdict both ways", number(pairs.consistency, 2), says
    value = number(pairs.position_bias, sign=True)
    yield "preference for the first shown", value, "mean P(first shown) less 0.5; 0 is none"
    value = _both(pairs.accuracy_chosen_first, pairs.accuracy_chosen_second)
    yield "accuracy, chosen shown first / second", value, "from one order of showing alone"


def _of_length(pairs: Pairs, source: Source) -> Figures:
    value = _both(pairs.accuracy_longer, pairs.accuracy_shorter)
    yield (
        "accuracy, chosen longer / shorter",
        value,
        "the same, for a judge that does not go by length",
    )
    says = "log-odds that a response gains when it is twice as long"
    yield "length slope", number(pairs.length_slope, 2, sign=True), says
    if source.length is not None and source.length.controlled_accuracy is not None:
        value = number(source.length.controlled_accuracy, 2)
        yield "length-controlled accuracy", value, "the accuracy where length is no help"


def _of_probability(pairs: Pairs, source: Source) -> Figures:
    yield "ties", number(pairs.ties), "exactly half; counted as wrong"
    value = number(pairs.margin, 2, sign=True)
    yield "mean margin", value, "log-odds of the chosen response"
    says = "mean distance between confidence and accuracy; 0 is calibrated"
    yield "ECE", number(pairs.ece), says
    says = "mean squared error of the probability; guessing has 0.25"
    yield "Brier score", number(pairs.brier), says
    if source.calibration is not None:
        value = number(source.calibration.nll)
        yield "log loss", value, "of the probability; guessing has 0.693"
    if (grades := source.grades) is not None:
        # Of several responses to a prompt the order is compared, of two how far they are apart (evals/graded.py).
        of = (
            f"strengths and grades of a prompt's responses, mean of {many(grades.pairs, 'prompt')}"
            if source.ranks
            else f"margins and grades of preference, {many(grades.pairs, 'pair')}"
        )
        value = _both(grades.kendall, grades.pearson)
        yield "agreement with grades", value, f"Kendall's tau / Pearson's r of {of}"


def _of_texts(pairs: Pairs) -> Figures:
    says = "pairs that did not fit the token budget and were cut"
    yield "shortened", number(pairs.shortened), says
    if pairs.skipped_ties:
        yield "ties in the source", f"{pairs.skipped_ties:,}", "left out"


def _both(one: float | None, other: float | None) -> str:
    return f"{number(one, 2)} / {number(other, 2)}"


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


def subsets(source: Source) -> Table | None:
    """The accuracy of every part."""
    if len(source.subsets) < 2:
        return None
    rows = tuple(
        (visible(part.name), f"{part.n:,}", share(part.accuracy, part.interval))
        for part in source.subsets
    )
    return Table("Subsets", ("subset", counted(source), "accuracy (95 %)"), rows)


def counted(*sources: Source) -> str:
    """What a number of `Subset.n` is a number of.

    Several graded responses to a prompt make one item, which is right where a best one is picked.
    """
    kinds = {source.ranks for source in sources}
    return "items" if len(kinds) > 1 else "prompts" if kinds == {True} else "pairs"


def extra_tables(source: Source) -> list[Table]:
    """The tables of a benchmark's own."""
    return [
        Table(
            visible(table.title),
            tuple(map(visible, table.columns)),
            tuple(zip(*map(_column, zip(*table.rows, strict=True)), strict=True)),
        )
        for table in source.tables
    ]


def _column(values: Sequence[str | int | float | None]) -> list[str]:
    """Whole numbers as such where a column has nothing else: beside fractions 1 is 1.000."""
    if all(isinstance(value, int) for value in values):
        return [f"{value:,}" for value in values]
    return list(map(_extra, values))


def _extra(value: str | int | float | None) -> str:
    return visible(value) if isinstance(value, str) else number(value)


def temperature(found: Temperature) -> Table:
    """What one number makes of the calibration."""
    useless = no_use_of(found)
    return Table(
        f"Temperature {number(found.value, 2)}" + (", of no use" if useless else ""),
        ("", "as it is", "with the temperature"),
        (
            ("ECE", number(found.ece_before), number(found.ece_after)),
            ("log loss", number(found.nll_before), number(found.nll_after)),
        ),
        note=f"The log-odds are divided by it. Fitted on {many(found.fitted_on, 'pair')}; both columns are of "
        f"{many(found.tested_on, 'other pair')}."
        + (f" Do not use it: {useless}." if useless else ""),
    )


def mistakes(worst: Sequence[Mistake]) -> tuple[Example, ...]:
    """The pairs on which the judge was surest of the wrong response, of each prompt the surest one."""
    first = {one.prompt: one for one in reversed(worst)}
    return tuple(
        Example(
            f"P(chosen) = {number(one.probability)}"
            + (
                f", order gap {number(one.position_bias, 2, sign=True)}"
                if one.position_bias is not None
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
        for one in worst
        if one is first[one.prompt]
    )
