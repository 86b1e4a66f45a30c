"""Two judges on the same pairs: their difference, and its interval."""

from dataclasses import replace

import numpy as np
import pytest

from gram_jax.data.records import Comparison, contents_of
from gram_jax.evals.paired import gain_between, outcomes, paired_gain
from gram_jax.judge.messages import as_prompt


def gain_of(changes: list[int]) -> tuple[float, tuple[float, float]]:
    """1: got better, -1: got worse, 0: stayed right; every pair a prompt of its own."""
    moved = np.array(changes)
    return paired_gain(moved <= 0, moved >= 0, np.arange(len(moved)))


def test_a_gain_of_nothing_at_all_is_as_uncertain_as_its_prompts_are_few():
    gain, bounds = gain_of([0] * 30)
    assert gain == 0
    assert bounds == pytest.approx((-0.1135, 0.1135), abs=1e-3)  # Wilson's, none of 30
    gain, (low, high) = gain_of([1] * 30)
    assert gain == 1 and 0.7 < low < high == pytest.approx(1)
    gain, (low, high) = gain_of([1, 1, 1, 0, 0, 0, 0, 0, 0, -1])
    assert gain == pytest.approx(0.2) and low < 0 < 0.2 < high < 0.7


def test_pairs_of_one_prompt_count_once():
    before, after = np.zeros(40, bool), np.arange(40) < 20
    _, apart = paired_gain(before, after, np.arange(40))
    _, together = paired_gain(before, after, np.arange(40) // 10)
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])


def test_intervals_of_gains_hold_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        moved = rng.choice([-1, 0, 1], p=[0.1, 0.65, 0.25], size=64)
        _, (low, high) = gain_of(moved.tolist())
        held += low <= 0.15 <= high
    assert held >= 182  # 95 % are 190


def test_outcomes_of_one_file_in_any_order_are_compared_pair_by_pair():
    rng = np.random.default_rng(1)
    records = [
        Comparison(as_prompt(f"q{at // 2}"), f"good {at}", f"bad {at}", 0, id=str(at))
        for at in range(60)
    ]
    one, other = rng.random(60) < 0.6, rng.random(60) < 0.8
    cluster = np.arange(60) // 2
    order = rng.permutation(60)
    turned = [replace(records[at], id=f"x{at}") for at in order]
    assert contents_of(records) == contents_of(turned)
    first = outcomes(records, one, cluster)
    second = outcomes(turned, other[order], cluster[order])
    assert first.prompts == second.prompts
    expected = float(other.mean() - one.mean())
    assert gain_between(first, second)[0] == pytest.approx(expected)
    assert gain_between(second, first)[0] == pytest.approx(-expected)
