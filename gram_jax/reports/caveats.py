"""The limits of a model's results, each as a sentence with its number."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gram_jax.attacks.results import AttackResults
from gram_jax.evals.calibration import why_unusable
from gram_jax.evals.results import LengthBin, PairMetrics, SourceResult
from gram_jax.formatting import format_figure, format_percent, plural
from gram_jax.reports.loading import ModelResults

# With fewer prompts a 95 % interval is wider than 0.14, the typical range of a leaderboard.
FEW_PROMPTS = 200
# A value above its threshold is a caveat.
MUCH_SHORTENED = 0.05
MUCH_DROPPED = 0.01
MANY_TIES = 0.01
UNCALIBRATED = 0.1  # ECE
INCONSISTENT = 0.3  # share of the pairs
POSITION_BIASED = 0.1  # mean P(a response) if shown first minus P if shown second
LENGTH_BIASED = 0.2  # accuracy if the chosen response is longer, minus accuracy if it is shorter
DEVIATIONS = 2.0  # number of standard errors by which a difference exceeds chance
VULNERABLE = 0.1  # success of an attack above its baseline


class Caveats(NamedTuple):
    """Sentences about a source, or about attacks; about is "" if there is only one group."""

    about: str
    sentences: tuple[str, ...]


def model_caveats(found: ModelResults) -> list[Caveats]:
    """All caveats of a model's results."""
    alone = len(found.sources) == 1 and found.attack is None
    groups = [
        Caveats("" if alone else name, tuple(source_caveats(source)))
        for name, source in found.sources.items()
    ]
    if found.attack is not None:
        groups.append(Caveats("Attacks", tuple(attack_caveats(found.attack))))
    return [group for group in groups if group.sentences]


def source_caveats(source: SourceResult) -> Iterator[str]:
    """The caveats of one source."""
    dropped = sum(source.dropped.values())
    if dropped > MUCH_DROPPED * source.rows:
        why = ", ".join(f"{reason} ({n:,})" for reason, n in source.dropped.items() if n)
        yield f"{dropped:,} of {plural(source.rows, 'row')} were left out: {why}."
    pairs, (low, high) = source.pairs, source.pairs.interval
    what = "accuracy over pairs of responses" if source.ranks else "accuracy"
    if pairs.prompts < FEW_PROMPTS:
        half = format_figure((high - low) / 2, 2)
        yield f"{plural(pairs.prompts, 'prompt')}: the {what} has a 95 % interval of ±{half}."
    if low <= 0.5 <= high:
        interval = f"{format_figure(low, 2)} to {format_figure(high, 2)}"
        yield f"The {what} cannot be distinguished from chance: its interval, {interval}, contains 0.5."
    elif high < 0.5:
        yield f"The {what} is below chance: check which response the labels prefer."
    if pairs.shortened > MUCH_SHORTENED:
        yield f"{format_percent(pairs.shortened)} of the pairs exceed the token budget and were truncated."
    yield from _of_biases(pairs)
    if (favoured := favoured_length(source)) is not None:
        yield (
            f"It favours the {favoured} response: accuracy {format_figure(pairs.accuracy_longer, 2)} if the better one "
            f"is longer, {format_figure(pairs.accuracy_shorter, 2)} if it is shorter."
        )
    if pairs.ties > MANY_TIES:
        yield f"{format_percent(pairs.ties)} of the pairs are ties, which count as wrong."
    if is_uncalibrated(source):
        yield _of_calibration(source)


def _of_biases(pairs: PairMetrics) -> Iterator[str]:
    if 1 - pairs.consistency > INCONSISTENT:
        share = format_percent(1 - pairs.consistency)
        yield f"The verdict changes with the order of showing for {share} of the pairs."
    if abs(pairs.position_bias) > POSITION_BIASED:
        position = "first" if pairs.position_bias > 0 else "second"
        mean = format_figure(0.5 + abs(pairs.position_bias) / 2, 2)
        yield f"The response shown {position} gets a probability of {mean} on average, regardless of its content."


def favoured_length(source: SourceResult) -> str | None:
    """ "longer" or "shorter" if the difference of the two accuracies is large and statistically significant, else None.

    The standard error is over the pairs whose lengths differ by a quarter or more, with the number of prompts as sample
    size (Agresti and Caffo 2000: one more success and failure on each side).
    """
    pairs = source.pairs
    longer, shorter = pairs.accuracy_longer, pairs.accuracy_shorter
    if longer is None or shorter is None or abs(longer - shorter) <= LENGTH_BIASED:
        return None
    variance = 0.0
    for accuracy, is_side in ((longer, _chosen_is_longer), (shorter, _chosen_is_shorter)):
        count = sum(bin_.n for bin_ in source.length.bins if is_side(bin_))
        count *= pairs.prompts / max(pairs.n, 1)
        share = (accuracy * count + 1) / (count + 2)
        variance += share * (1 - share) / (count + 2)
    if abs(longer - shorter) <= DEVIATIONS * math.sqrt(variance):
        return None
    return "longer" if longer > shorter else "shorter"


def _chosen_is_longer(bin_: LengthBin) -> bool:
    return bin_.low is not None and bin_.low >= 0


def _chosen_is_shorter(bin_: LengthBin) -> bool:
    return bin_.high is not None and bin_.high <= 0


def is_uncalibrated(source: SourceResult) -> bool:
    """Whether the ECE is large, and larger than that of a calibrated judge on as many pairs."""
    filled = [(b.n, b.confidence) for b in source.calibration.bins if b.confidence is not None]
    noise = sum(math.sqrt(n * share * (1 - share)) for n, share in filled)
    pairs = max(sum(n for n, _ in filled), 1)
    return source.pairs.ece > max(UNCALIBRATED, DEVIATIONS * noise / pairs)


def _of_calibration(source: SourceResult) -> str:
    sentence = f"Its probabilities are off by {format_figure(source.pairs.ece, 2)} on average (ECE)"
    fit = source.calibration.temperature
    if fit is None:
        return sentence + ": use them as a ranking, not as probabilities."
    if why := why_unusable(fit):
        return f"{sentence}, and {why}: use them as a ranking, not as probabilities."
    return (
        f"{sentence}; by {format_figure(fit.ece_after, 2)} if the log-odds are divided by a temperature of "
        f"{format_figure(fit.value, 2)}, on pairs that it was not fitted on."
    )


def attack_caveats(found: AttackResults) -> Iterator[str]:
    """The attacks that win against a model and the perturbations that change its verdicts, in order of success."""
    suite = found.any_hostile
    if suite is not None and suite.share is not None and suite.share > VULNERABLE:
        yield (
            f"For {format_percent(suite.share)} of the {plural(suite.n, 'pair')} that it has right, "
            "some hostile attack wins."
        )
    kinds = {
        "hostile": "Hostile attacks that win more often than the response without the attack",
        "harmless": "Harmless changes that alter the verdict more often than the order of showing does",
    }
    for kind, what in kinds.items():
        group = [one for one in found.attacks if one.kind == kind]
        worst = [one for one in group if one.success - one.baseline > VULNERABLE]
        worst.sort(key=lambda one: one.success, reverse=True)
        if worst:
            shown = ", ".join(f"{one.name} ({format_percent(one.success)})" for one in worst[:3])
            yield f"{what}: {len(worst)} of {len(group)}, first {shown}."


def comparison_caveats(found: Sequence[ModelResults]) -> Iterator[str]:
    """The caveats of a comparison of these models."""
    abouts = [one.about for one in found]
    if _differ(about.judge for about in abouts):
        yield (
            "The models have different judge specifications (template, chat format, labels or token budget), which may "
            "explain a difference."
        )
    for key in sorted(type(abouts[0].settings).model_fields):
        values = {str(getattr(about.settings, key)) for about in abouts}
        if len(values) > 1:
            yield f"They were run with different settings of {key}: {', '.join(sorted(values))}."
    if _differ(about.gram_jax for about in abouts):
        yield "They were evaluated with different versions of gram_jax."
    for name in dict.fromkeys(name for one in found for name in one.sources):
        sources = [one.sources[name] for one in found if name in one.sources]
        if _differ((s.rows, s.pairs.n) for s in sources):
            yield f"{name}: not the same pairs; the numbers of rows or pairs differ."
        elif _differ(s.contents for s in sources):
            yield f"{name}: not the same pairs; their texts or labels differ."
        if len(sources) < len(found):
            yield f"{name}: only {len(sources)} of {len(found)} models were evaluated on it."
    attacks = [one.attack for one in found if one.attack is not None]
    if _differ((one.contents, one.pairs, one.seed) for one in attacks):
        yield "Attacks: not the same pairs; contents, number or seed differ."


def _differ(values: Iterable[object]) -> bool:
    return len(set(values)) > 1
