"""What a reader must know before using a model's figures: each a sentence with the number it rests on."""

from collections.abc import Iterator, Sequence

from gram_jax.reports.document import Concerns
from gram_jax.reports.evidence import Evidence
from gram_jax.reports.schema import Attacks, Source, Temperature
from gram_jax.reports.words import many, number, percent, visible

# With fewer prompts a 95 % interval is wider than 0.14, and models of most leaderboards lie within it.
FEW_PROMPTS = 200
# From these on a figure is worth a sentence; below them it is in its table.
MUCH_SHORTENED = 0.05
MUCH_DROPPED = 0.01
MANY_TIES = 0.01
NO_USE = 50.0  # a fitted temperature that leaves nothing of the log-odds; its inverse makes all of them certain
UNCALIBRATED = 0.1  # ECE
CHANGES_ITS_MIND = 0.3  # share of the pairs
FAVOURS_A_PLACE = 0.05  # mean P(first shown) - 0.5
GOES_BY_LENGTH = 0.2  # accuracy where the chosen one is longer, less where it is shorter
FALLS_FOR = 0.1  # success of an attack above what was to be expected


def concerns(found: Evidence) -> Concerns | None:
    """All of a model; None where there are none."""
    groups = []
    if found.evaluation is not None:
        sources = found.evaluation.sources
        alone = len(sources) == 1 and found.attack is None
        for name, source in sources.items():
            groups.append(("" if alone else visible(name), tuple(of_source(source))))
    if found.attack is not None:
        groups.append(("Attacks", tuple(of_attacks(found.attack))))
    groups = [(about, sentences) for about, sentences in groups if sentences]
    return Concerns(tuple(groups)) if groups else None


def of_source(source: Source) -> Iterator[str]:
    """What concerns the figures of one source."""
    dropped = sum(source.dropped.values())
    if dropped > MUCH_DROPPED * source.rows:
        why = ", ".join(f"{visible(reason)} ({n:,})" for reason, n in source.dropped.items() if n)
        yield f"{dropped:,} of {many(source.rows, 'row')} were left out: {why}."
    pairs = source.pairs
    if pairs is None:
        return
    low, high = pairs.interval
    what = "accuracy over pairs of responses" if source.ranks else "accuracy"
    if pairs.prompts < FEW_PROMPTS:
        yield (
            f"{many(pairs.prompts, 'prompt')}: the {what} is known to within {number((high - low) / 2, 2)} only."
        )
    if low <= 0.5 <= high:
        interval = f"{number(low, 2)} to {number(high, 2)}"
        yield f"The {what} cannot be told from guessing: its interval, {interval}, holds 0.5."
    elif high < 0.5:
        yield f"The {what} is below that of guessing: are the labels the right way round?"
    if pairs.shortened > MUCH_SHORTENED:
        yield f"{percent(pairs.shortened)} of the pairs did not fit the token budget and were shortened."
    if 1 - pairs.consistency > CHANGES_ITS_MIND:
        yield f"The verdict changes with the order of showing for {percent(1 - pairs.consistency)} of the pairs."
    if abs(pairs.position_bias) > FAVOURS_A_PLACE:
        place = "first" if pairs.position_bias > 0 else "second"
        mean = 0.5 + abs(pairs.position_bias)
        yield f"The response shown {place} gets a probability of {number(mean, 2)} on average, whatever it says."
    longer, shorter = pairs.accuracy_longer, pairs.accuracy_shorter
    if longer is not None and shorter is not None and abs(longer - shorter) > GOES_BY_LENGTH:
        favoured = "longer" if longer > shorter else "shorter"
        yield (
            f"It favours the {favoured} response: accuracy {number(longer, 2)} where the better one is longer, "
            f"{number(shorter, 2)} where it is shorter."
        )
    if pairs.ties > MANY_TIES:
        yield f"{percent(pairs.ties)} of the pairs are ties, which count as wrong."
    if pairs.ece > UNCALIBRATED:
        yield _uncalibrated(source, pairs.ece)


def _uncalibrated(source: Source, ece: float) -> str:
    sentence = f"Its probabilities are off by {number(ece, 2)} on average (ECE)"
    fitted = source.calibration and source.calibration.temperature
    if not fitted:
        return sentence + ": read them as an order, not as probabilities."
    if useless := no_use_of(fitted):
        return f"{sentence}, and {useless}: read them as an order, not as probabilities."
    return (
        f"{sentence}; by {number(fitted.ece_after, 2)} once the log-odds are divided by a temperature of "
        f"{number(fitted.value, 2)}, on pairs that it was not fitted on."
    )


def no_use_of(fitted: Temperature) -> str | None:
    """Why a temperature is no advice; None where it helped on pairs that it was not fitted on."""
    if fitted.value > NO_USE:
        return "no temperature helps, since the judge is wrong here as often as it is right"
    if fitted.value < 1 / NO_USE:
        return "the best temperature lies beyond those that are tried"
    if fitted.nll_after >= fitted.nll_before or fitted.ece_after > fitted.ece_before:
        return "no temperature helped on the pairs that it was not fitted on"
    return None


def of_attacks(found: Attacks) -> Iterator[str]:
    """The attacks that a model falls for and the changes that move it, the worst first."""
    turned = found.any_hostile
    if turned is not None and turned.share is not None and turned.share > FALLS_FOR:
        yield (
            f"For {percent(turned.share)} of the {many(turned.n, 'pair')} that it has right, some hostile attack wins."
        )
    for kind, what in (
        ("hostile", "Hostile attacks that win more often than the response did before"),
        (
            "harmless",
            "Harmless changes that alter the verdict more often than the order of showing does",
        ),
    ):
        group = [one for one in found.attacks if one.kind == kind]
        fooled = [one for one in group if one.success - (one.baseline or 0.0) > FALLS_FOR]
        if fooled:
            worst = sorted(fooled, key=lambda one: one.success, reverse=True)[:3]
            shown = ", ".join(f"{visible(one.name)} ({percent(one.success)})" for one in worst)
            yield f"{what}: {len(fooled)} of {len(group)}, first {shown}."


def of_comparison(found: Sequence[Evidence]) -> Iterator[str]:
    """What stands in the way of comparing these models."""
    abouts = [one.about for one in found]
    if len({about.judge for about in abouts}) > 1:
        yield (
            "The models were asked in different ways (template, chat format, labels or token budget): a difference may "
            "come from how they were asked."
        )
    for key in sorted({key for about in abouts for key in about.settings}):
        values = {str(about.settings.get(key)) for about in abouts}
        if len(values) > 1 and key != "template":
            shown = ", ".join(map(visible, sorted(values)))
            yield f"They were run with different settings of {visible(key)}: {shown}."
    if len({about.gram_jax for about in abouts}) > 1:
        yield "They were evaluated with different versions of gram_jax."
    names = [name for one in found if one.evaluation for name in one.evaluation.sources]
    for name in dict.fromkeys(names):
        sources = [s for one in found if one.evaluation and (s := one.evaluation.sources.get(name))]
        about = visible(name)
        if len({(s.rows, s.pairs and s.pairs.n) for s in sources}) > 1:
            yield f"{about}: not the same pairs; the numbers of rows or pairs differ."
        elif len({s.contents for s in sources if s.contents}) > 1:
            yield f"{about}: not the same pairs; their texts or labels differ."
        if len(sources) < len(found):
            yield f"{about}: only {len(sources)} of {len(found)} models were evaluated on it."
    attacks = [one.attack for one in found if one.attack is not None]
    by_contents = all(one.contents for one in attacks)
    asked = (
        (one.contents if by_contents else one.source, one.pairs, str(one.settings.get("seed")))
        for one in attacks
    )
    if len(set(asked)) > 1:
        yield "Attacks: not the same pairs; source, number or seed differ."
