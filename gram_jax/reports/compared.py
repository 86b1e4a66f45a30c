"""Tables of several models side by side: a row or a column for each, the best ones marked."""

from collections.abc import Mapping

from gram_jax.evals.paired import gain_between
from gram_jax.reports.document import Cell, Table
from gram_jax.reports.schema import Evaluation, Interval, Official, Source, Subset
from gram_jax.reports.tables import WHOSE, counted, share
from gram_jax.reports.words import number, visible, with_interval

BEST = "Bold: the best, and all whose interval overlaps with its interval."
PAIRED = (
    "Less the best's: the difference on the same pairs, with an interval of its own. One that leaves out 0 tells two "
    "models apart whose own intervals overlap."
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
    gaps = _less_the_best(sources)
    rows = tuple(
        (
            visible(label),
            share(pairs.accuracy, pairs.interval, strong=label in top),
            *([gaps.get(label, "–")] if gaps else []),
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
        *(["less the best's (95 %)"] if gaps else []),
        "pairs",
        "same verdict both ways",
        "preference for the first shown",
        "length slope",
        "ECE",
        "Brier",
        "shortened",
    )
    return Table("Pairs", columns, rows, note=f"{BEST} {PAIRED}" if gaps else BEST)


def _less_the_best(sources: Mapping[str, Source]) -> dict[str, str]:
    """Accuracy less that of the most accurate one, of models that were asked the same pairs."""
    known = {
        label: (one.contents, one.outcomes)
        for label, one in sources.items()
        if one.contents and one.outcomes
    }
    if len(known) < 2:
        return {}
    shares = {label: x.right.count("1") / len(x.right) for label, (_, x) in known.items()}
    top = max(shares, key=lambda label: shares[label])
    contents, best_outcomes = known[top]
    return {
        label: with_interval(*gain_between(best_outcomes.model_dump(), x.model_dump()), sign=True)
        for label, (same, x) in known.items()
        if label != top and same == contents
    }


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
    columns = ("subset", counted(*sources.values()), *map(visible, sources))
    return Table("Subsets", columns, tuple(rows), BEST)
