"""Figures of cells with their intervals (intervals.py), and what they say about a claim.

Two judges are compared on the same prompts and with the same seeds, pair by pair.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cells import RAW, Cell
from intervals import Estimate, estimate, jackknifed, mean_over_pairs
from pools import Pools

from gram_jax.evals.calibration import selective_accuracy
from gram_jax.evals.pairwise import side as side_of

SAME = 0.02  # largest difference of accuracy that counts as none

Results = dict[Cell, dict[str, Any]]
Measure = Callable[[np.ndarray], np.ndarray]


def accuracy(p: np.ndarray) -> np.ndarray:
    """1 if the chosen response has strictly more than half, else 0; p: P(chosen), [n]."""
    return (p > 0.5).astype(float)


def brier(p: np.ndarray) -> np.ndarray:
    """Squared distance of P(chosen) from 1: 0.25 for a judge that always says one half."""
    return (1 - p) ** 2


def alike(longer: np.ndarray) -> np.ndarray:
    """Equal weights."""
    return np.ones(len(longer))


def length_balanced(longer: np.ndarray) -> np.ndarray:
    """Weights with equal sums for pairs whose chosen response is longer and pairs whose chosen response is shorter.

    longer: -1, 0, 1, [n]. Pairs of equal length have weight 0.
    """
    weights = np.zeros(len(longer))
    for side in (-1, 1):
        weights[longer == side] = 1 / max(1, np.sum(longer == side))
    return weights


def contrast(
    results: Results,
    pools: Pools,
    terms: Sequence[tuple[float, Sequence[Cell]]],
    sets: Sequence[str],
    measure: Measure,
    weigh: Measure = alike,
) -> Estimate | None:
    """Sum of weight x measure, averaged over the pairs of each set, then over sets, then over seeds.

    measure: within 0 to 1. weigh: what a pair weighs in its set, from whether its chosen response is the longer one
    (Pools.longer).
    terms: (weight, the same cell with every seed). Seeds for which a cell is missing are left out; None if none
    remains. A single term of weight 1 is a figure, 1 and -1 a difference.
    """
    rows = [at for at in range(len(terms[0][1])) if all(cells[at] in results for _, cells in terms)]
    if not rows or not sets:
        return None
    seeds = [seed_of([cells[at] for _, cells in terms]) for at in rows]
    if None in seeds:  # the same for every seed
        rows, seeds = rows[:1], []
    found = []
    for name in sets:
        values = [_combined(results, pools, terms, at, name, measure) for at in rows]
        found.append(
            mean_over_pairs(np.array(values), weigh(pools.longer[name]), pools.prompts[name])
        )
    weights = [weight for weight, _ in terms]
    bounds = sum(min(0.0, w) for w in weights), sum(max(0.0, w) for w in weights)
    return estimate(found, [seed for seed in seeds if seed is not None], bounds)


def seed_of(cells: Sequence[Cell]) -> int | None:
    """The seed of their training; None if none of them was trained."""
    return next((cell.seed for cell in cells if cell != RAW), None)


def _combined(
    results: Results,
    pools: Pools,
    terms: Sequence[tuple[float, Sequence[Cell]]],
    at: int,
    name: str,
    measure: Measure,
) -> np.ndarray:
    """The terms' sum for every pair of a set, with the seed that has this place."""
    cells = [cells[at] for _, cells in terms]
    # Of the new domain only the part that the seed leaves for testing.
    domain = any(cell.domain is not None for cell in cells)
    total = np.zeros(len(pools.prompts[name]))
    for (weight, _), cell in zip(terms, cells, strict=True):
        p = answers(results[cell], pools, name, seed_of(cells) if domain else None)
        total += weight * np.where(np.isnan(p), np.nan, measure(p))
    return total


def answers(result: dict[str, Any], pools: Pools, name: str, domain_seed: int | None) -> np.ndarray:
    """P(chosen) of every pair of a set; NaN for those outside the tested part of a seed's new domain."""
    p, whole = np.array(result["sets"][name]["p"]), len(pools.prompts[name])
    if domain_seed is None:
        return p
    part = pools.domain_test(domain_seed)
    found = np.full(whole, np.nan)
    found[part] = p if len(p) < whole else p[part]
    return found


def of_the_longer(results: Results, pools: Pools) -> Results:
    """The results with P(longer response) instead of P(chosen): `accuracy` is then how often the longer one wins.

    NaN, which does not count, if both have the same length.
    """
    found: Results = {}
    for cell, result in results.items():
        whole = {
            name: np.array(one["p"])
            for name, one in result["sets"].items()
            if len(one["p"]) == len(pools.prompts[name])
        }
        found[cell] = {
            "sets": {name: {"p": _of_longer(p, pools.longer[name])} for name, p in whole.items()}
        }
    return found


def _of_longer(p: np.ndarray, longer: np.ndarray) -> np.ndarray:
    return np.select([longer > 0, longer < 0], [p, 1 - p], np.nan)


def consistent(results: Results) -> Results:
    """The results with 1 instead of P(chosen) if both orders prefer the same response, else 0.

    `accuracy` is then the order consistency. Cells without positions are left out.
    """
    return _of_orders(results, lambda first, second: side_of(first) == side_of(second))


def in_one_order(results: Results) -> Results:
    """The results with the mean accuracy of both orders, each alone, instead of P(chosen): 0, 0.5 or 1.

    Cells without positions are left out.
    """
    return _of_orders(results, lambda first, second: (accuracy(first) + accuracy(second)) / 2)


def _of_orders(
    results: Results, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Results:
    """The results with a measure of P(chosen) when the chosen response is shown first and second."""
    return {
        cell: {
            "sets": {name: {"p": _of_both(one, measure)} for name, one in result["sets"].items()}
        }
        for cell, result in results.items()
        if all(len(one["gap"]) == len(one["p"]) for one in result["sets"].values())
    }


def _of_both(
    one: dict[str, Any], measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    p, gap = np.array(one["p"]), np.array(one["gap"])
    return measure(p + gap / 2, p - gap / 2).astype(float)


def confident_half(p: np.ndarray) -> float:
    """Accuracy of the half of the pairs with the highest confidence."""
    return selective_accuracy(p, 0.5)


def over_pairs(
    results: Results,
    pools: Pools,
    cells: Sequence[Cell],
    name: str,
    measure: Callable[[np.ndarray], float],
) -> Estimate | None:
    """A measure of all pairs of a set together, the mean over seeds.

    measure: of P(chosen), [n], as `gram-jax evaluate` has it: expected_calibration_error, which is biased upwards for
    few pairs (the interval does not include this bias), or confident_half.
    """
    there = [cell for cell in dict.fromkeys(cells) if cell in results]
    if not there:
        return None
    seeds = [cell.seed for cell in there if cell != RAW]
    p = np.array([answers(results[cell], pools, name, None) for cell in there])
    found = jackknifed(p, pools.prompts[name], measure)
    return estimate([found], seeds, (0.0, 1.0))


UNDECIDED = 0.01  # mean |P(chosen) - 0.5| below which a judge has learned no verdict


def undecided(results: Results, pools: Pools, cells: Sequence[Cell], sets: Sequence[str]) -> bool:
    """Whether probabilities differ from 0.5 by less than UNDECIDED, in the mean over seeds and pairs."""
    there = [cell for cell in cells if cell in results]
    p = [
        answers(results[cell], pools, name, cell.seed if cell.domain is not None else None)
        for cell in there
        for name in sets
    ]
    return bool(p) and float(np.nanmean(np.abs(np.concatenate(p) - 0.5))) < UNDECIDED


RULES = """\
A claim says that one judge is better than another. The result depends on two differences with their 95 % intervals: of
accuracy, and of the Brier score, which is lower for better probabilities. A difference is significant if its interval
excludes 0. A judge is *at chance* if the interval of its accuracy reaches 0.5. The first row that applies decides.

| result | condition |
|---|---|
| **not tested** | the probabilities of both judges differ from 0.5 by less than {undecided} on average: neither learned a verdict. This row was added when the results were known |
| **one seed only** | the interval says nothing about other seeds, so nothing is decided |
| **holds partly** | more accurate, but at chance or with a worse Brier score |
| **holds** | more accurate |
| **does not hold** | less accurate, unless the Brier score is better and the judge is not at chance |
| **does not hold** | worse Brier score |
| **not enough evidence** | better Brier score, but at chance: an uninformed judge has a better Brier score if it is less confident |
| **holds partly** | better Brier score |
| **no difference** | the interval of accuracy is within {same} |
| **not enough evidence** | none of these |"""  # noqa: E501


def rules() -> str:
    """The conditions of `verdict`, as Markdown."""
    return RULES.format(same=SAME, undecided=UNDECIDED)


def verdict(right: Estimate | None, sharp: Estimate | None, better: Estimate | None) -> str:
    """The result of the claim "the first is better", by `rules`.

    right, sharp: differences of accuracy and of Brier score; better: accuracy of the first.
    """
    if right is None or sharp is None or better is None:
        return "**not run yet**"
    if len(right.by_seed) == 1:
        return "**one seed only**"
    gain = (right.low > 0) - (right.high < 0)
    trust = (sharp.high < 0) - (sharp.low > 0)
    words = {
        (1, 1): "**holds**",
        (1, 0): "**holds** (Brier score indistinguishable)",
        (1, -1): "**holds partly**: more accurate, worse Brier score",
        (0, 1): "**holds partly**: better Brier score, accuracy indistinguishable",
        (0, 0): "**not enough evidence**",
        (0, -1): "**does not hold**: worse Brier score, accuracy indistinguishable",
        (-1, 1): "**holds partly**: better Brier score, less accurate",
        (-1, 0): "**does not hold**",
        (-1, -1): "**does not hold**",
    }[gain, trust]
    coin = better.low <= 0.5
    if (gain, trust) == (0, 0) and max(abs(right.low), abs(right.high)) <= SAME:
        words = f"**no difference** of more than {SAME} of accuracy"
    elif (gain, trust) == (-1, 1) and coin:
        words = "**does not hold**"
    elif gain == 1 and coin:
        words = "**holds partly**: more accurate, but at chance"
        words += ", and worse Brier score" if trust == -1 else ""
    elif (gain, trust) == (0, 1) and coin:
        words = "**not enough evidence**: less confident than the other, but at chance"
    return words
