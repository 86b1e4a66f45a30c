"""Figures of cells with their intervals (intervals.py), and what they say about a claim.

Two judges are compared on the same prompts and with the same seeds, pair by pair.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cells import RAW, Cell
from intervals import Estimate, estimate, jackknifed, mean_over_pairs
from pools import Pools

from gram_jax.evals.calibration import expected_calibration_error

SAME = 0.02  # a difference of accuracy that is no more than this decides nothing

Results = dict[Cell, dict[str, Any]]
Measure = Callable[[np.ndarray], np.ndarray]


def accuracy(p: np.ndarray) -> np.ndarray:
    """1 where the chosen response has strictly more than half; p: P(chosen), [n]."""
    return (p > 0.5).astype(float)


def brier(p: np.ndarray) -> np.ndarray:
    """Squared distance of P(chosen) from 1: 0.25 for a judge that always says one half."""
    return (1 - p) ** 2


def alike(longer: np.ndarray) -> np.ndarray:
    """Every pair weighs the same."""
    return np.ones(len(longer))


def length_balanced(longer: np.ndarray) -> np.ndarray:
    """Pairs whose chosen response is the longer one weigh together as much as those where it is the shorter.

    longer: -1, 0, 1, [n]. Pairs of equal length weigh nothing.
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
    terms: (weight, the same cell with every seed). Seeds for which a cell is missing are left out; None where none is
    left. A single term of weight 1 is a figure, 1 and -1 a difference.
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
    """What they were trained with; None where none of them was."""
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
    """The same with P(longer response) in place of P(chosen): its `accuracy` is how often a judge takes the longer one.

    NaN, which counts nothing, where both are equally long.
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


def calibration_error(
    results: Results, pools: Pools, cells: Sequence[Cell], name: str
) -> Estimate | None:
    """Expected calibration error as `gram-jax evaluate` has it, the mean over seeds.

    Few pairs make it large by themselves: its interval says how it varies, not how far it is from an endless set's.
    """
    there = [cell for cell in cells if cell in results]
    if not there:
        return None
    p = np.array([answers(results[cell], pools, name, None) for cell in there])
    found = jackknifed(p, pools.prompts[name], expected_calibration_error)
    return estimate([found], [cell.seed for cell in there], (0.0, 1.0))


RULES = """\
A claim says that one judge is better than another. Two differences decide, each with its 95 % interval: of accuracy and
of Brier score, which is lower for a better calibrated judge. A difference counts where its interval leaves out 0.

- **holds**: more accurate, and not worse calibrated.
- **holds partly**: more accurate but worse calibrated; or better calibrated but less accurate or not to be told apart
  in accuracy; or more accurate, but itself not to be told from a coin.
- **does not hold**: less accurate, and not better calibrated or not to be told from a coin; or worse calibrated and not
  to be told apart in accuracy.
- **not enough evidence**: neither difference counts. So it is where only the Brier score is better and the better judge
  cannot be told from a coin (the interval of its accuracy reaches 0.5): who knows nothing and says so has a better
  score than who knows nothing and is sure.
- **no difference**: neither counts and the interval of accuracy lies within {same}."""


def rules() -> str:
    """What `verdict` goes by, for the reader of a report."""
    return RULES.format(same=SAME)


def verdict(right: Estimate | None, sharp: Estimate | None, better: Estimate | None) -> str:
    """What is to be said of "the first is better", by `rules`.

    right, sharp: differences of accuracy and of Brier score; better: accuracy of the first.
    """
    if right is None or sharp is None or better is None:
        return "**not run yet**"
    gain = (right.low > 0) - (right.high < 0)
    trust = (sharp.high < 0) - (sharp.low > 0)
    words = {
        (1, 1): "**holds**",
        (1, 0): "**holds** (calibration cannot be told)",
        (1, -1): "**holds partly**: more accurate, worse calibrated",
        (0, 1): "**holds partly**: better calibrated, accuracy cannot be told",
        (0, 0): "**not enough evidence**",
        (0, -1): "**does not hold**: worse calibrated, accuracy cannot be told",
        (-1, 1): "**holds partly**: better calibrated, less accurate",
        (-1, 0): "**does not hold**",
        (-1, -1): "**does not hold**",
    }[gain, trust]
    coin = better.low <= 0.5
    if (gain, trust) == (0, 0) and max(abs(right.low), abs(right.high)) <= SAME:
        words = f"**no difference** of more than {SAME} of accuracy"
    elif (gain, trust) == (-1, 1) and coin:
        words = "**does not hold**"
    elif gain == 1 and coin:
        words = "**holds partly**: more accurate, but not to be told from a coin"
        words += ", and worse calibrated" if trust == -1 else ""
    elif (gain, trust) == (0, 1) and coin:
        words = "**not enough evidence**: less sure than the other, but not to be told from a coin"
    return words + (" (one seed only)" if len(right.by_seed) == 1 else "")
