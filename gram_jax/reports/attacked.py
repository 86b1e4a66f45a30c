"""The tables of attacks on a judge: what wins against it, and which harmless changes move it."""

from collections.abc import Iterator, Mapping, Sequence

from gram_jax.reports.compared import BEST, best
from gram_jax.reports.document import Block, Cell, Example, Examples, Paragraph, Section, Table
from gram_jax.reports.schema import Attack, Attacks, OneOrder
from gram_jax.reports.tables import share
from gram_jax.reports.words import decimals, many, number, visible, with_interval

HOSTILE, HARMLESS = "hostile", "harmless"
TITLES = {
    HOSTILE: "Hostile: the attacked response wins",
    HARMLESS: "Harmless: the verdict changes",
}


def of_model(found: Attacks) -> Iterator[Block]:
    """Everything of one judge."""
    left_out = ", ".join(map(visible, found.without_pairs))
    yield Paragraph(
        f"{many(found.pairs, 'pair')} of {visible(found.source)}."
        + (f" Nothing to change in any of them for {left_out}." if left_out else "")
    )
    yield left_alone(found)
    yield from tables(found)
    if examples := tuple(map(_example, filter(lambda one: one.example, found.attacks))):
        yield Section("The surest success of each", (Examples(examples),))


def left_alone(found: Attacks) -> Table:
    """What the judge does on the same pairs without an attack, and against the whole suite."""
    clean, fooled = found.clean, found.any_hostile
    rows = [
        ("accuracy", share(clean.accuracy, clean.interval), "without attacks"),
        (
            "flip rate",
            share(clean.flip_rate, clean.flip_interval),
            "without attacks, the rejected response wins",
        ),
        (
            "order flips",
            share(clean.order_flip_rate, clean.order_flip_interval),
            "without attacks, the two orders of showing contradict each other",
        ),
    ]
    if fooled is not None:
        what = f"of the {many(fooled.n, 'pair')} that it has right, some hostile attack wins"
        rows.append(("right pairs turned", share(fooled.share, fooled.interval), what))
    columns = ("figure", "share (95 %)", "what it says")
    return Table("The judge on these pairs", columns, tuple(rows), prose=frozenset({2}))


def tables(found: Attacks) -> list[Table]:
    """A table for the hostile and one for the harmless ones, where there are any."""
    makers = {HOSTILE: _hostile, HARMLESS: _harmless}
    groups = {kind: [one for one in found.attacks if one.kind == kind] for kind in makers}
    return [makers[kind](group) for kind, group in groups.items() if group]


def _hostile(group: Sequence[Attack]) -> Table:
    rows = tuple(
        (
            visible(one.name),
            share(one.success, one.interval),
            number(one.baseline, decimals(one.interval)),
            number(one.turned, 2),
            f"{_in_order(one.shown_first)} / {_in_order(one.shown_second)}",
            f"{one.n:,}",
            visible(one.description),
        )
        for one in group
    )
    columns = (
        "attack",
        "success (95 %)",
        "flips",
        "turned",
        "shown first / second",
        "pairs",
        "what it does",
    )
    note = (
        "Flips: how often that response won as it was; an attack with less success makes a response worse. Turned: "
        "success on the pairs that the judge has right. Shown first, second: success where only that order is asked."
    )
    return Table(TITLES[HOSTILE], columns, rows, note, frozenset({6}))


def _harmless(group: Sequence[Attack]) -> Table:
    rows = tuple(
        (
            visible(one.name),
            share(one.success, one.interval),
            number(one.baseline, decimals(one.interval)),
            f"{one.n:,}",
            visible(one.description),
        )
        for one in group
    )
    columns = ("change", "changed (95 %)", "order flips", "pairs", "what it does")
    note = (
        "Changed: another response is preferred than before. Order flips: how often the two orders of these pairs "
        "contradict each other without any change, which says how loosely the verdict sits."
    )
    return Table(TITLES[HARMLESS], columns, rows, note, frozenset({4}))


def _in_order(found: OneOrder | None) -> str:
    return number(found.success if found else None, 2)


def _example(one: Attack) -> Example:
    found = one.example
    assert found is not None
    harmless = one.kind == HARMLESS
    names = ("before", "changed") if harmless else ("honest", "attack")
    before = "" if found.before is None else f", {number(found.before)} before"
    what = "changed" if harmless else "attack"
    return Example(
        f"{visible(one.name)}: P({what}) = {number(found.probability)}{before}",
        (("prompt", found.prompt), (names[0], found.honest), (names[1], found.attack)),
    )


def side_by_side(found: Mapping[str, Attacks]) -> Iterator[Table]:
    """A row for each attack, a column for each model: the lowest success is the best."""
    columns = (*map(visible, found),)
    rows = []
    for what, rate in (
        ("accuracy", "accuracy"),
        ("the rejected response wins", "flip_rate"),
        ("the two orders contradict each other", "order_flip_rate"),
    ):
        rows.append((what, *(number(getattr(one.clean, rate), 2) for one in found.values())))
    turned = [one.any_hostile for one in found.values()]
    if any(turned):
        cells = (with_interval(x.share, x.interval) if x else "–" for x in turned)
        rows.append(("right pairs that some hostile attack turns", *cells))
    yield Table("Without attacks, and against the suite", ("figure", *columns), tuple(rows))
    for kind, title in TITLES.items():
        names = dict.fromkeys(
            a.name for one in found.values() for a in one.attacks if a.kind == kind
        )
        if names:
            rows = tuple(_of_models(name, found) for name in names)
            yield Table(title, ("attack", *columns), rows, BEST)


def _of_models(name: str, found: Mapping[str, Attacks]) -> tuple[str | Cell, ...]:
    each = {label: one for label, a in found.items() for one in a.attacks if one.name == name}
    top = best({label: (one.success, one.interval) for label, one in each.items()}, least=True)
    cells = (
        Cell(with_interval(each[label].success, each[label].interval), strong=label in top)
        if label in each
        else Cell("–")
        for label in found
    )
    return (visible(name), *cells)
