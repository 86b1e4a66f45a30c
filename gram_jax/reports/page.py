"""What stands on a report: of one model, or of several side by side."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from gram_jax.reports import attacked, compared, tables
from gram_jax.reports.charts import accuracy_by_length, order_gaps, reliability
from gram_jax.reports.concerns import concerns, of_comparison
from gram_jax.reports.document import (
    Block,
    Concerns,
    Document,
    Examples,
    Figure,
    Gallery,
    Paragraph,
    Section,
    Table,
)
from gram_jax.reports.evidence import Evidence, aligned
from gram_jax.reports.schema import Bin, Source
from gram_jax.reports.words import many, visible

SHOWN_HASH = 12  # of a judge's 64 hex digits

READING = (
    "A judge is shown a prompt with two responses, once in each order, and says by the probabilities of two tokens "
    "which of them is better. A score is the mean of both orders. A pair counts as right where the chosen response, "
    "which people or a checker preferred, gets strictly more than half.",
    "Values in brackets are 95 % intervals: another draw of as many prompts would give a value in such a range. It "
    "says nothing about prompts of another kind, and two models whose intervals overlap may still differ on the same "
    "pairs: a comparison of accuracies over pairs has that difference too. The small lines beside them go from 0 to 1, "
    "with a mark at 0.5.",
)


def make_document(found: Sequence[Evidence]) -> Document:
    """The report of one model, or the comparison of several with each one's report behind it."""
    return _report(found[0]) if len(found) == 1 else _comparison(aligned(found))


def _report(found: Evidence) -> Document:
    about = found.about
    facts = (
        ("judge", _hash(found)),
        *_settings({name: value for name, value in about.settings.items() if name != "template"}),
        ("evaluated with", f"gram_jax {visible(about.gram_jax)}"),
    )
    return Document(visible(about.model), facts, (*_of_model(found), *_ending([found])))


def _of_model(found: Evidence) -> Iterable[Block]:
    evaluation = found.evaluation
    if evaluation is not None:
        yield tables.overview(evaluation)
    if (known := concerns(found)) is not None:
        yield known
    if evaluation is not None:
        for name, source in evaluation.sources.items():
            yield Section(visible(name), tuple(_of_source(source)))
    if found.attack is not None:
        yield Section("Attacks", tuple(attacked.of_model(found.attack)))


def _of_source(source: Source) -> Iterable[Block]:
    dropped = [f"{n:,} left out: {visible(why)}" for why, n in source.dropped.items() if n]
    read = "; ".join([f"{many(source.rows, 'row')} of {visible(source.source)}", *dropped])
    own = source.benchmark in ("pairs", "best_of_n")
    kind = "" if own else f" As {visible(source.benchmark)} defines it."
    if source.ranks:
        kind += " A pair is two responses to one prompt of which one has the higher grade."
    yield Paragraph(f"{read}.{kind}")
    yield from _there(tables.official(source.official), tables.key_figures(source))
    if figures := tuple(_figures({"": source})):
        yield Gallery(figures)
    yield from _there(tables.subsets(source))
    yield from tables.extra_tables(source)
    if source.calibration is not None and source.calibration.temperature is not None:
        yield tables.temperature(source.calibration.temperature)
    if source.worst:
        yield Section(
            "Surest mistakes",
            (
                Paragraph(
                    "The pairs on which the judge was surest of the wrong response, to read."
                ),
                Examples(tables.mistakes(source.worst)),
            ),
        )


def _comparison(found: Sequence[Evidence]) -> Document:
    blocks: list[Block] = []
    if sentences := tuple(of_comparison(found)):
        blocks.append(Concerns((("", sentences),)))
    with_sources = {one.label: one.evaluation for one in found if one.evaluation is not None}
    if len(with_sources) > 1:
        blocks.insert(0, compared.accuracies(with_sources))
    names = dict.fromkeys(name for one in with_sources.values() for name in one.sources)
    for name in names:
        sources = {
            label: one.sources[name] for label, one in with_sources.items() if name in one.sources
        }
        if len(sources) > 1:
            blocks.append(Section(visible(name), tuple(_of_sources(sources))))
    attacks = {one.label: one.attack for one in found if one.attack is not None}
    if len(attacks) > 1:
        blocks.append(Section("Attacks", tuple(attacked.side_by_side(attacks))))
    each = (Section(visible(one.label), tuple(_of_model(one)), collapsed=True) for one in found)
    blocks.append(Section("Each by itself", tuple(each)))
    facts = tuple((visible(one.label), f"judge {_hash(one)}") for one in found)
    return Document(f"{len(found)} models compared", facts, (*blocks, *_ending(found)))


def _of_sources(sources: Mapping[str, Source]) -> Iterable[Block]:
    yield from _there(compared.officials_on(sources), compared.models_on(sources))
    if figures := tuple(_figures(sources)):
        yield Gallery(figures)
    yield from _there(compared.subsets_on(sources))


_Part = TypeVar("_Part")
_Bin = TypeVar("_Bin", bound=Bin)


def _figures(sources: Mapping[str, Source]) -> Iterable[Figure]:
    """Those drawings for which something was measured, of every model that it was measured of."""

    def measured(part: Callable[[Source], _Part | None]) -> dict[str, _Part]:
        return {visible(label): x for label, source in sources.items() if (x := part(source))}

    if bins := measured(lambda source: source.calibration and _filled(source.calibration.bins)):
        yield reliability(bins)
    if bins := measured(lambda source: source.length and _filled(source.length.bins)):
        yield accuracy_by_length(bins)
    if found := measured(
        lambda s: s.position if s.position and any(s.position.histogram.counts) else None
    ):
        yield order_gaps({label: position.histogram for label, position in found.items()})


def _filled(bins: Sequence[_Bin]) -> list[_Bin]:
    return [bin for bin in bins if bin.n]


def _there(*blocks: Table | None) -> Iterable[Table]:
    return (block for block in blocks if block is not None)


def _ending(found: Sequence[Evidence]) -> Iterable[Block]:
    yield Section("How to read this", tuple(map(Paragraph, READING)))
    rows = []
    for one in found:
        start = f"{visible(one.label)}: " if len(found) > 1 else ""
        about = one.about
        rows += [(f"{start}model", visible(about.model)), (f"{start}judge", visible(about.judge))]
        rows += [(start + name, value) for name, value in _settings(about.settings)]
        rows.append((f"{start}gram_jax", visible(about.gram_jax)))
    yield Section(
        "Settings",
        (Table("As evaluated", ("setting", "value"), tuple(rows), prose=frozenset({1})),),
        collapsed=True,
    )


def _hash(found: Evidence) -> str:
    """Enough of a judge's hash to tell it from others."""
    return visible(found.about.judge[:SHOWN_HASH])


def _settings(settings: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        yield visible(name), "as the model has it" if value is None else visible(str(value))
