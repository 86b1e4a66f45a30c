"""Metrics of attacks as text tables, for a terminal, a report and a model card."""

from gram_jax.attacks.results import AttackMetrics, AttackResults
from gram_jax.evals.tables import Cell, Label, Table, share
from gram_jax.formatting import decimals, format_figure, plural

CLEAN_LABELS = {
    "accuracy": Label("accuracy", "without attacks"),
    "flip_rate": Label("flip rate", "without attacks, the rejected response wins"),
    "order_flip_rate": Label("order flips", "without attacks, the two orders disagree"),
    "any_hostile": Label("right pairs turned", "some hostile attack wins"),
}
TITLES = {
    "hostile": "Hostile: the attacked response wins",
    "harmless": "Harmless: the verdict changes",
}
COLUMNS = {
    "hostile": ("success (95 %)", "flips", "turned", "shown first / second"),
    "harmless": ("changed (95 %)", "order flips"),
}
NOTES = {
    "hostile": "Flips: share in which that response wins without the attack; an attack with less success makes a "
    "response worse. Turned: success on the pairs that the judge has right. Shown first, second: success from that "
    "order only.",
    "harmless": "Changed: share in which the preferred response changes. Order flips: share whose two orders disagree "
    "without any change; it measures the stability of the verdict.",
}


def clean_table(found: AttackResults) -> Table:
    """Metrics of the judge on the same pairs without an attack, and against the whole suite."""
    clean, suite = found.clean, found.any_hostile
    figures = {
        "accuracy": (clean.accuracy, clean.interval),
        "flip_rate": (clean.flip_rate, clean.flip_interval),
        "order_flip_rate": (clean.order_flip_rate, clean.order_flip_interval),
    }
    rows = [
        (CLEAN_LABELS[name].title, share(*figure), CLEAN_LABELS[name].meaning)
        for name, figure in figures.items()
    ]
    if suite is not None:
        label = CLEAN_LABELS["any_hostile"]
        of = f"of the {plural(suite.n, 'pair')} that it has right, {label.meaning}"
        rows.append((label.title, share(suite.share, suite.interval), of))
    columns = ("figure", "share (95 %)", "what it says")
    return Table("The judge on these pairs", columns, tuple(rows), prose=frozenset({2}))


def attack_tables(found: AttackResults) -> list[Table]:
    """One table of the hostile attacks and one of the harmless ones, if there are any."""
    tables = []
    for kind, names in COLUMNS.items():
        rows = tuple(_row(one) for one in found.attacks if one.kind == kind)
        columns = ("attack" if kind == "hostile" else "change", *names, "pairs", "what it does")
        last = len(columns) - 1
        if rows:
            tables.append(
                Table(TITLES[kind], columns, rows, NOTES[kind], frozenset({last}), explanation=last)
            )
    return tables


def _row(one: AttackMetrics) -> tuple[str | Cell, ...]:
    first, second = (
        format_figure(x.success if x else None, 2) for x in (one.shown_first, one.shown_second)
    )
    hostile = (format_figure(one.turned, 2), f"{first} / {second}")
    return (
        one.name,
        share(one.success, one.interval),
        format_figure(one.baseline, decimals(one.interval)),
        *(hostile if one.kind == "hostile" else ()),
        f"{one.n:,}",
        one.description,
    )
