"""Tables that compare several models: one row or column per model, with the best ones in bold."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gram_jax.attacks.results import AttackResults
from gram_jax.attacks.tables import CLEAN_LABELS, TITLES
from gram_jax.evals.paired import gain_between
from gram_jax.evals.results import Interval, SourceResult
from gram_jax.evals.tables import AUTHORS, Cell, Table, counted, share, titles, values
from gram_jax.formatting import NONE, format_figure, format_with_interval
from gram_jax.reports.loading import ModelResults

BEST = "Bold: the best, and all whose interval overlaps with its interval."
PAIRED = (
    "Minus the best: the paired difference on the same pairs, with its interval. An interval that excludes 0 separates "
    "two models even if their own intervals overlap."
)

Figure = tuple[float, Interval | None]


def best(figures: Mapping[Any, Figure], *, least: bool = False) -> set[Any]:
    """The labels of the best value and of those whose interval overlaps with its interval.

    >>> found = {"a": (0.8, (0.7, 0.9)), "b": (0.72, (0.6, 0.8)), "c": (0.5, (0.4, 0.55))}
    >>> sorted(best(found)), sorted(best(found, least=True)), best({"a": (0.8, None)})
    (['a', 'b'], ['c'], set())
    """
    if len(figures) < 2:
        return set()
    sign = -1 if least else 1
    top = max(figures, key=lambda label: sign * figures[label][0])
    value, interval = figures[top]
    low, high = interval or (value, value)

    def reaches(label: Any) -> bool:
        other, bounds = figures[label]
        below, above = bounds or (other, other)
        return below <= high if least else above >= low

    return {label for label in figures if label == top or reaches(label)}


def _cells(
    each: Mapping[Any, Mapping[str, Figure]], *, least: bool = False
) -> dict[str, list[Cell]]:
    """{name: a cell per label, the best ones in bold} from {label: {name: figure}}."""
    found = {}
    for name in dict.fromkeys(name for there in each.values() for name in there):
        figures = {label: there[name] for label, there in each.items() if name in there}
        top = best(figures, least=least)
        found[name] = [
            Cell(format_with_interval(*figures[label]), strong=label in top)
            if label in figures
            else Cell(NONE)
            for label in each
        ]
    return found


def shared_sources(found: Sequence[ModelResults]) -> dict[str, dict[str, SourceResult]]:
    """{name: {label: source}} of the sources that several models were evaluated on."""
    names = dict.fromkeys(name for one in found for name in one.sources)
    each = {
        name: {one.label: one.sources[name] for one in found if name in one.sources}
        for name in names
    }
    return {name: sources for name, sources in each.items() if len(sources) > 1}


def shared_attacks(found: Sequence[ModelResults]) -> dict[str, AttackResults]:
    """{label: attacks} if several models were attacked, else {}."""
    attacks = {one.label: one.attack for one in found if one.attack is not None}
    return attacks if len(attacks) > 1 else {}


def accuracies(found: Sequence[ModelResults]) -> Table:
    """A row for each model, a column for each source."""
    columns = _cells({at: _accuracies(one.sources) for at, one in enumerate(found)})
    rows = tuple(zip([one.label for one in found], *columns.values(), strict=True))
    return Table("Accuracy on pairs (95 %)", ("model", *columns), rows, BEST)


def _accuracies(sources: Mapping[str, SourceResult]) -> dict[str, Figure]:
    return {name: (one.pairs.accuracy, one.pairs.interval) for name, one in sources.items()}


def models_on(sources: Mapping[str, SourceResult]) -> Table:
    """A row for each model, {label: the same source}."""
    top = best(_accuracies(sources))
    gains = _less_the_best(sources)
    names = (
        "consistency",
        "position_bias",
        "length_slope",
        "ece",
        "selective_accuracy",
        "brier",
        "shortened",
    )
    rows = tuple(
        (
            label,
            share(one.pairs.accuracy, one.pairs.interval, strong=label in top),
            *([gains.get(label, NONE)] if gains else []),
            f"{one.pairs.n:,}",
            *values(one.pairs, *names),
        )
        for label, one in sources.items()
    )
    gain = ["minus the best (95 %)"] if gains else []
    columns = ("model", *titles("accuracy"), *gain, "pairs", *titles(*names))
    return Table("Pairs", columns, rows, f"{BEST} {PAIRED}" if gains else BEST)


def _less_the_best(sources: Mapping[str, SourceResult]) -> dict[str, str]:
    """Accuracy minus that of the most accurate model, for models evaluated on the same pairs."""
    known = {
        label: (one.contents, outcomes)
        for label, one in sources.items()
        if (outcomes := one.outcomes) is not None
    }
    if len(known) < 2:
        return {}
    shares = {label: x.right.count("1") / len(x.right) for label, (_, x) in known.items()}
    top = max(shares, key=lambda label: shares[label])
    contents, best_outcomes = known[top]
    return {
        label: format_with_interval(*gain_between(best_outcomes, x), sign=True)
        for label, (same, x) in known.items()
        if label != top and same == contents
    }


def officials_on(sources: Mapping[str, SourceResult]) -> Table:
    """A row for each average, a column for each model."""
    cells = _cells(
        {label: {x.name: (x.value, x.interval) for x in s.official} for label, s in sources.items()}
    )
    first = {x.name: x for one in reversed(list(sources.values())) for x in one.official}
    rows = tuple(
        (name, *row, f"{first[name].definition} ({AUTHORS.get(first[name].by, first[name].by)})")
        for name, row in cells.items()
    )
    columns = ("average", *sources, "definition")
    return Table("Averages", columns, rows, BEST, frozenset({len(columns) - 1}))


def subsets_on(sources: Mapping[str, SourceResult]) -> Table | None:
    """A row for each subset, a column for each model; None if there is one subset only."""
    cells = _cells(
        {
            label: {x.name: (x.accuracy, x.interval) for x in one.subsets}
            for label, one in sources.items()
        }
    )
    first = {x.name: x for one in reversed(list(sources.values())) for x in one.subsets}
    rows = tuple((name, f"{first[name].n:,}", *row) for name, row in cells.items())
    columns = ("subset", counted(*sources.values()), *sources)
    return Table("Subsets", columns, rows, BEST) if len(rows) > 1 else None


def attacks_on(found: Mapping[str, AttackResults]) -> Iterator[Table]:
    """A row for each attack, a column for each model: the lowest success is the best."""
    rows = []
    for name in ("accuracy", "flip_rate", "order_flip_rate"):
        cells = (format_figure(getattr(one.clean, name), 2) for one in found.values())
        rows.append((CLEAN_LABELS[name].title, *cells))
    suites = [one.any_hostile for one in found.values()]
    if any(suites):
        cells = (format_with_interval(x.share, x.interval) if x else NONE for x in suites)
        rows.append((CLEAN_LABELS["any_hostile"].title, *cells))
    title = "Without attacks, and against the whole suite"
    yield Table(title, ("figure", *found), tuple(rows))
    for kind, title in TITLES.items():
        each = {
            label: {x.name: (x.success, x.interval) for x in one.attacks if x.kind == kind}
            for label, one in found.items()
        }
        if rows := tuple((name, *cells) for name, cells in _cells(each, least=True).items()):
            yield Table(title, ("attack", *found), rows, BEST)
