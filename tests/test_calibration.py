"""Calibration and length, on made-up verdicts with known answers."""

import itertools

import numpy as np
import pytest
from scipy.special import expit

from gram_jax.data.records import Comparison
from gram_jax.evals.calibration import (
    accuracy_over_coverage,
    expected_calibration_error,
    fit_temperature,
    held_out_temperature,
    negative_log_likelihood,
    reliability,
    selective_accuracy,
)
from gram_jax.evals.cycles import cycle_rate, pair_tables
from gram_jax.evals.lengths import controlled_accuracy, length_bins
from gram_jax.judge.messages import as_prompt


def test_bins_of_the_reliability_curve_hold_every_pair():
    p = np.array([0.52, 0.9, 0.1, 0.95, 1.0, 0.5])
    bins = reliability(p)
    assert len(bins) == 15 and sum(row.n for row in bins) == 6
    last = bins[-1]
    assert (last.n, last.accuracy) == (1, 1.0) and last.high == 1
    first = bins[0]  # 0.52 is right, 0.5 is a tie
    assert (first.n, first.accuracy) == (2, 0.75)
    assert first.confidence == pytest.approx(0.51)
    assert bins[5].accuracy is None


def sharpened(factor: float, n: int = 20000) -> np.ndarray:
    """Margins of the chosen response of a judge that is calibrated, but for `factor`."""
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, n)
    right = rng.uniform(size=n) < expit(honest)
    return factor * np.where(right, honest, -honest)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_sharpened_the_judge(factor: float):
    assert fit_temperature(sharpened(factor)) == pytest.approx(factor, rel=0.05)


def test_a_fitted_temperature_is_tested_on_the_other_half():
    margin = sharpened(3.0)
    found = held_out_temperature(margin, np.arange(len(margin)))
    assert found.fitted_on + found.tested_on == len(margin)
    assert found.ece_before > 0.08 > 0.02 > found.ece_after
    assert found.nll_after < found.nll_before


def test_both_pairs_of_a_prompt_are_in_the_same_half_and_few_pairs_have_no_temperature():
    margin = sharpened(1.0, 200)
    cluster = np.repeat(np.arange(40), 5)
    found = held_out_temperature(margin, cluster)
    assert found.fitted_on == found.tested_on == 100
    # A pair more of a prompt of the fitting half is one more for fitting.
    fitting = np.flatnonzero(np.random.default_rng(0).permutation(40) % 2 == 0)
    more = held_out_temperature(np.append(margin, 1.0), np.append(cluster, fitting[0]))
    assert (more.fitted_on, more.tested_on) == (101, 100)
    assert held_out_temperature(margin[:30], np.arange(30)) is None
    many = np.repeat(np.arange(4), 50)  # 200 pairs of four prompts
    assert held_out_temperature(margin, many) is None


def test_a_half_that_is_all_right_gives_no_temperature():
    margin = np.where(np.arange(200) < 190, 2.0, -1.0)
    cluster = np.arange(200)
    fitting = np.random.default_rng(0).permutation(200) % 2 == 0
    assert held_out_temperature(np.where(fitting, 2.0, margin), cluster) is None
    assert held_out_temperature(margin, cluster) is not None


def test_calibration_error_of_known_cases():
    assert expected_calibration_error(np.array([0.8] * 8 + [0.2] * 2)) == pytest.approx(0)
    assert expected_calibration_error(np.array([0.999] * 5 + [0.001] * 5)) == pytest.approx(0.499)
    assert expected_calibration_error(np.array([0.5, 0.5])) == 0
    assert expected_calibration_error(expit(sharpened(1.0))) < 0.02
    assert negative_log_likelihood(np.zeros(4)) == pytest.approx(np.log(2))


LENGTHS = np.array([[40, 10], [20, 10], [11, 10], [10, 10], [10, 20], [10, 45]])


def test_accuracy_by_length_and_where_length_is_no_help():
    longer_wins = LENGTHS[:, 0] > LENGTHS[:, 1]
    assert controlled_accuracy(longer_wins, LENGTHS) == 0.5
    assert controlled_accuracy(longer_wins[:3], LENGTHS[:3]) is None
    bins = length_bins(longer_wins, LENGTHS, np.arange(6))
    assert [row.n for row in bins] == [1, 0, 1, 2, 1, 1, 0]
    assert bins[0].low is None and bins[-1].high is None
    assert bins[0].accuracy == 0.0 and bins[3].accuracy == 0.5


def test_accuracy_over_coverage_ends_at_the_accuracy_and_ignores_the_order_of_pairs():
    p = np.array([0.9, 0.85, 0.2, 0.6, 0.45, 0.5, 0.5, 0.55, 0.3, 0.7])
    points = accuracy_over_coverage(p)
    assert [point.coverage for point in points] == pytest.approx(np.arange(1, 11) / 10)
    assert points[0].accuracy == 1 and points[-1].accuracy == pytest.approx((p > 0.5).mean())
    assert selective_accuracy(p, 0.3) == pytest.approx(2 / 3)  # 0.9, 0.85 and the wrong 0.2
    # 0.3 and 0.7 are equally confident: of the fourth pair one half counts
    assert selective_accuracy(p, 0.4) == pytest.approx(2.5 / 4)
    assert accuracy_over_coverage(p[::-1]) == points


def test_a_judge_whose_confidence_says_nothing_has_a_flat_curve():
    rng = np.random.default_rng(0)
    right, sure = rng.uniform(size=40000) < 0.7, rng.uniform(0.5, 1, 40000)
    accuracies = [x.accuracy for x in accuracy_over_coverage(np.where(right, sure, 1 - sure))]
    assert accuracies == pytest.approx([0.7] * 10, abs=0.02)
    honest = accuracy_over_coverage(expit(sharpened(1.0)))
    assert all(a.accuracy > b.accuracy for a, b in itertools.pairwise(honest))


def triangle(prompt: str, *wins: tuple[str, str]) -> list[Comparison]:
    return [Comparison(as_prompt(prompt), one, other, 0) for one, other in wins]


def test_cycles_are_counted_among_the_responses_to_one_prompt():
    cycle = triangle("p", ("a", "b"), ("b", "c"), ("c", "a"))
    chain = triangle("q", ("a", "b"), ("b", "c"), ("a", "c"))
    apart = triangle("r", ("a", "b"), ("b", "c")) + triangle("s", ("c", "a"))
    ones = np.ones(3)
    assert cycle_rate(pair_tables(cycle, ones)) == 1
    assert cycle_rate(pair_tables(chain, ones)) == 0
    assert cycle_rate(pair_tables(apart, ones)) is None
    assert cycle_rate(pair_tables(cycle + chain + apart, np.ones(9))) == 0.5
    # The judge turns one verdict round: the cycle is a chain, and the chain is a cycle.
    assert cycle_rate(pair_tables(cycle, np.array([1, 1, -1.0]))) == 0
    assert cycle_rate(pair_tables(chain, np.array([1, 1, -1.0]))) == 1
