"""Figures of cells with their intervals, and what they say about a claim.

Every interval is a bootstrap that draws prompts and seeds anew, both at once (Owen 2007, "The pigeonhole bootstrap"):
pairs of one prompt stay together, and two judges are compared on the same prompts and with the same seed. With a single
seed only prompts are drawn, and the interval says nothing of other seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cells import Cell
from pools import Pools

from gram_jax.evals.calibration import BINS as ECE_BINS

DRAWS = 2000
SAME = 0.02  # a difference of accuracy that is no more than this decides nothing

Results = dict[Cell, dict[str, Any]]
Measure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; by_seed: what each seed alone gives."""

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    def text(self, sign: bool = False) -> str:
        """As a table has it."""
        form = "{:+.3f} ({:+.3f} to {:+.3f})" if sign else "{:.3f} ({:.3f} to {:.3f})"
        return form.format(self.value, self.low, self.high)


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

    weigh: what a pair weighs in its set, from whether its chosen response is the longer one (Pools.longer).
    terms: (weight, the same cell with every seed). Seeds for which a cell is missing are left out; None where none is
    left. A single term of weight 1 is a figure, 1 and -1 a difference.
    """
    rows = [at for at in range(len(terms[0][1])) if all(cells[at] in results for _, cells in terms)]
    if not rows or not sets:
        return None
    parts = []
    for name in sets:
        values = []
        for at in rows:
            total = 0.0
            for weight, cells in terms:
                # Of the new domain only the part that the seed leaves for testing.
                seed = max(cells[at].seed for _, cells in terms)
                domain = any(cells[at].domain is not None for _, cells in terms)
                p = answers(results[cells[at]], pools, name, seed if domain else None)
                total = total + weight * np.where(np.isnan(p), np.nan, measure(p))
            values.append(total)
        parts.append((np.array(values), weigh(pools.longer[name]), pools.prompts[name]))
    return _pigeonhole(parts)


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
    """Expected calibration error over 15 bins (as `gram-jax evaluate` has it), the mean over seeds.

    Few pairs make it large by themselves, and a drawn sample even more: its interval is moved up.
    """
    there = [cell for cell in cells if cell in results]
    if not there:
        return None
    p = np.array([answers(results[cell], pools, name, None) for cell in there])
    cluster = pools.prompts[name]
    confidence = np.maximum(p, 1 - p)
    gap = np.where(p == 0.5, 0.5, p > 0.5) - confidence
    bins = np.minimum(((confidence - 0.5) * 2 * ECE_BINS).astype(int), ECE_BINS - 1)
    sums = np.zeros((len(there), cluster.max() + 1, ECE_BINS))  # [S, C, bins]
    for s in range(len(there)):
        np.add.at(sums[s], (cluster, bins[s]), gap[s])
    counts = np.bincount(cluster)

    def error(seeds: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        off = np.abs(np.einsum("bc,sck->bsk", prompts, sums)).sum(-1) / (prompts @ counts)[:, None]
        return (off * seeds).sum(1) / seeds.sum(1)

    seeds, (prompts,) = _draws(len(there), [len(counts)])
    drawn = error(seeds, prompts)
    whole = error(np.ones((1, len(there))), np.ones((1, len(counts))))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(float(whole[0]), float(low), float(high), ())


def _pigeonhole(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Estimate:
    """parts: of each set the values [S, n], NaN where there is none, and of each pair its weight and prompt [n]."""
    seeds, prompts = _draws(len(parts[0][0]), [cluster.max() + 1 for _, _, cluster in parts])
    drawn, by_seed = [], []
    for (values, weights, cluster), times in zip(parts, prompts, strict=True):
        known = ~np.isnan(values) * weights
        sums, counts = (_by_prompt(x, cluster) for x in (known * np.nan_to_num(values), known))
        by_seed.append(sums.sum(1) / counts.sum(1))
        # A draw of few prompts may hold none of a seed's: it then counts nothing.
        with np.errstate(invalid="ignore"):
            means = (times @ sums.T) / (times @ counts.T)  # [draws, S]
            counted = np.sum(seeds * ~np.isnan(means), axis=1)
            drawn.append(np.nansum(means * seeds, axis=1) / counted)
    each = np.mean(by_seed, axis=0)
    low, high = np.nanpercentile(np.mean(drawn, axis=0), (2.5, 97.5))
    return Estimate(float(each.mean()), float(low), float(high), tuple(each.tolist()))


def _by_prompt(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """[S, n] summed to [S, C]."""
    return np.array([np.bincount(cluster, row, minlength=cluster.max() + 1) for row in values])


def _draws(seeds: int, prompts: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """How often each seed and each set's prompts are drawn: [draws, S], and [draws, C] of each set; always the same."""
    random = np.random.default_rng(0)

    def times(count: int) -> np.ndarray:
        return random.multinomial(count, np.full(count, 1 / count), DRAWS).astype(float)

    return times(seeds), [times(count) for count in prompts]


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
    elif (gain, trust) == (0, 1) and coin:
        words = "**not enough evidence**: less sure than the other, but not to be told from a coin"
    return words + (" (one seed only)" if len(right.by_seed) == 1 else "")
