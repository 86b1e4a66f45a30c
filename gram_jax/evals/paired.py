"""Two judges on the same pairs: by how much one is more often right, which is known better than how often each is."""

from collections.abc import Mapping, Sequence

import numpy as np

from gram_jax.data.comparison import Comparison, contents_id
from gram_jax.evals.intervals import Interval, Tally, number, share, wilson_interval


def paired_gain(
    before: np.ndarray, after: np.ndarray, cluster: np.ndarray
) -> tuple[float, Interval]:
    """Accuracy of the second less that of the first, with its 95 % interval by prompts.

    before, after: bool [n], who is right where; cluster: i [n], the prompt of each pair.

    >>> gain, (low, high) = paired_gain(np.arange(40) < 20, np.arange(40) < 30, np.arange(40))
    >>> gain, low > 0
    (0.25, True)
    """
    # 0, 1/2 and 1 for a pair that got worse, stayed and got better.
    credit = (1.0 + after - before) / 2
    tally = Tally.of(credit, cluster, [""] * len(credit))
    gain = 2 * tally.value(share) - 1
    if (credit == 0.5).all():
        # Nothing to draw samples from: so many prompts may change unseen, one way or the other.
        unseen = wilson_interval(0, tally.prompts())[1]
        return gain, (-unseen, unseen)
    bounds = tally.interval(share)
    assert bounds is not None  # such credits are a share
    return gain, (2 * bounds[0] - 1, 2 * bounds[1] - 1)


def outcomes(
    records: Sequence[Comparison], correct: np.ndarray, cluster: np.ndarray
) -> dict[str, str]:
    """Who is right where, for evaluation.json: sources of the same contents have the same pairs at the same places.

    right: a 1 or a 0 for each pair, in the order of `contents_id`; prompts: the number of its prompt.
    """
    order = sorted(range(len(records)), key=lambda at: contents_id(records[at]))
    return {
        "right": "".join("1" if correct[at] else "0" for at in order),
        "prompts": " ".join(map(str, number(cluster[order].tolist()))),
    }


def gain_between(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[float, Interval]:
    """`paired_gain` of two `outcomes` of sources with the same contents."""
    before, after = (np.array(list(x["right"])) == "1" for x in (one, other))
    return paired_gain(before, after, np.array(one["prompts"].split(), int))
