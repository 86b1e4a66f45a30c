"""attack.json: the schema with which results of attacks on a judge are written and read."""

from typing import ClassVar

from gram_jax.attacks.suite import AttackKind
from gram_jax.evals.results import Count, Interval, JudgeResults, ResultModel, Share


class CleanMetrics(ResultModel):
    """Metrics of the judge on the same pairs without attacks.

    flip_rate: share in which the rejected response wins; order_flip_rate: share whose two orders disagree.
    """

    accuracy: Share
    interval: Interval
    flip_rate: Share
    flip_interval: Interval
    order_flip_rate: Share
    order_flip_interval: Interval


class AttackExample(ResultModel):
    """probability: P(the changed response is better); before: the same without the change.

    honest: the response that should win, or the unchanged response for a harmless attack.
    """

    prompt: str
    honest: str
    attack: str
    probability: Share
    before: Share


class OrderMetrics(ResultModel):
    """The rates from one order only."""

    success: Share
    baseline: Share


class AttackMetrics(ResultModel):
    """success: share of the n pairs in which the attack wins; baseline: the expected share without it.

    Hostile attacks only: turned, the success on pairs that the judge has right (None if there are none); shown_first
    and shown_second, the rates if the attacked response is shown first or second.
    """

    name: str
    kind: AttackKind
    description: str
    n: Count
    success: Share
    interval: Interval
    baseline: Share
    shortened: Share
    turned: Share | None
    shown_first: OrderMetrics | None
    shown_second: OrderMetrics | None
    example: AttackExample | None


class SuiteSuccess(ResultModel):
    """Of n pairs that the judge has right, the share in which at least one hostile attack wins; None if n is 0."""

    n: Count
    share: Share | None
    interval: Interval | None


class AttackResults(JudgeResults):
    """attack.json; contents: as in evaluation.json. without_pairs: attacks that change no pair."""

    FILE: ClassVar[str] = "attack.json"

    source: str
    contents: str
    seed: Count
    pairs: Count
    clean: CleanMetrics
    any_hostile: SuiteSuccess | None
    attacks: list[AttackMetrics]
    without_pairs: list[str]
