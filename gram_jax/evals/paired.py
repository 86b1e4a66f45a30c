"""Difference of two mean scores of the same items, such as the accuracies of two judges, with a paired interval."""

from collections.abc import Sequence

import numpy as np

from gram_jax.data.records import Comparison, contents_id
from gram_jax.evals.intervals import ROUNDING, BootstrapTable, factorize, wilson_interval
from gram_jax.evals.results import Interval, PairOutcomes


def paired_gain(
    before: np.ndarray, after: np.ndarray, cluster: np.ndarray
) -> tuple[float, Interval]:
    """Mean of the second scores minus that of the first, and its 95 % interval, clustered by prompt.

    before, after: bool [n], which pairs are right, or f [n], scores from 0 to 1. cluster: i [n], the prompt of each.

    >>> gain, (low, high) = paired_gain(np.arange(40) < 20, np.arange(40) < 30, np.arange(40))
    >>> gain, low > 0
    (0.25, True)
    """
    # Also a score from 0 to 1: of pairs 0 if only the first judge is right, 1 if only the second is, else 1/2.
    scores = (1.0 + after - before) / 2
    table = BootstrapTable.of(scores, cluster, [""] * len(scores))
    gain = 2 * table.value() - 1
    if np.abs(scores - 0.5).max() < ROUNDING:
        # Resampling shows no variation. Wilson's bound for no change in n prompts limits the gain in both directions.
        unseen = wilson_interval(0, table.prompts(""))[1]
        return gain, (-unseen, unseen)
    bounds = table.interval()
    assert bounds is not None  # the scores are shares
    return gain, (2 * bounds[0] - 1, 2 * bounds[1] - 1)


def outcomes(
    records: Sequence[Comparison], correct: np.ndarray, cluster: np.ndarray
) -> PairOutcomes:
    """Which pairs are right, in the order of `contents_id`, which is equal for sources with the same contents."""
    order = sorted(range(len(records)), key=lambda at: contents_id(records[at]))
    return PairOutcomes(
        right="".join("1" if correct[at] else "0" for at in order),
        prompts=" ".join(map(str, factorize(cluster[order].tolist()))),
    )


def gain_between(one: PairOutcomes, other: PairOutcomes) -> tuple[float, Interval]:
    """`paired_gain` from the `outcomes` of two sources with the same contents."""
    before, after = (np.array(list(x.right)) == "1" for x in (one, other))
    return paired_gain(before, after, np.array(one.prompts.split(), int))
