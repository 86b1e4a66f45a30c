"""The figures of an evaluation, on hand-made scores with known answers."""

import math

import numpy as np
import pytest

from gram_jax.data.records import Comparison
from gram_jax.errors import DataError
from gram_jax.evals.intervals import wilson_interval
from gram_jax.evals.pairwise import evaluate_pairs, report_pairs, verdicts_on
from gram_jax.judge.messages import as_prompt
from gram_jax.scoring.pair import PairScore


def score(p_given: float, p_swapped: float, shortened: bool = False) -> PairScore:
    """A score from P(first) when it is shown first and when it is shown second."""
    first = (p_given + p_swapped) / 2
    log_odds = [math.log(p / (1 - p)) for p in (p_given, p_swapped)]
    return PairScore(first, 1 - first, sum(log_odds) / 2, p_given - p_swapped, shortened)


def report(scores, chosen_first: list[bool], prompts=None, lengths=None):
    """The report of scores in the order of a source; lengths: of the first and the second response."""
    n = len(scores)
    records = [
        Comparison(as_prompt(f"q{prompt}"), "x" * first, "y" * second, label=int(not better))
        for prompt, (first, second), better in zip(
            prompts or range(n), lengths or [(1, 1)] * n, chosen_first, strict=True
        )
    ]
    seen = [s if better else s.swapped() for s, better in zip(scores, chosen_first, strict=True)]
    return report_pairs(verdicts_on(records, seen), skipped_ties=0)


FOUR = [score(0.9, 0.8), score(0.7, 0.2), score(0.3, 0.1, True), score(0.6, 0.6)]
RIGHT = [True, True, False, False]


def test_four_pairs_counted_by_hand():
    found = report(FOUR, RIGHT)
    assert found.n == 4
    assert found.accuracy == 0.5  # right, wrong (0.45), right, wrong
    assert found.accuracy_chosen_first == 0.75  # 0.9, 0.7; second pair of chosen: 1-0.1, 1-0.6
    assert found.accuracy_chosen_second == 0.5
    assert found.consistency == 0.75
    assert found.position_bias == pytest.approx(np.mean([0.1, 0.5, 0.2, 0.0]))
    assert found.brier == pytest.approx(np.mean([0.15**2, 0.55**2, 0.2**2, 0.6**2]))
    assert found.shortened == 0.25
    assert found.ties == 0


def test_exchanged_labels_give_one_minus_the_accuracy():
    scores = [score(p, q) for p, q in np.random.default_rng(0).uniform(0.05, 0.95, (50, 2))]
    labels = [i % 3 == 0 for i in range(50)]
    straight = report(scores, labels)
    exchanged = report(scores, [not label for label in labels])
    assert exchanged.accuracy == pytest.approx(1 - straight.accuracy)
    assert exchanged.margin == pytest.approx(-straight.margin)
    assert exchanged.position_bias == straight.position_bias


@pytest.mark.parametrize("n", range(1, 60))
def test_an_interval_holds_its_own_share_however_close_to_its_end(n: int):
    for hits in (0, n / 3, n):
        low, high = wilson_interval(hits, n)
        assert 0 <= low <= hits / n <= high <= 1


def test_a_judge_of_positions_scores_one_half_and_is_always_wrong():
    found = report([score(0.9, 0.1)] * 8, [True, False] * 4)
    assert found.accuracy == 0
    assert found.ties == 1
    assert found.consistency == 0
    assert found.position_bias == pytest.approx(0.8)
    assert (found.accuracy_chosen_first, found.accuracy_chosen_second) == (1, 0)


def test_which_side_the_source_shows_first_does_not_matter():
    mirrored = [PairScore(s.second, s.first, -s.margin, s.position_bias, s.shortened) for s in FOUR]
    one, other = report(FOUR, RIGHT), report(mirrored, [not right for right in RIGHT])
    one, other = (found.model_dump(exclude={"interval", "by_source"}) for found in (one, other))
    assert one == pytest.approx(other)


def test_an_order_that_cannot_tell_agrees_with_no_side_whatever_the_labels_say():
    """Exchanging the labels must not change what does not depend on them."""
    scores = [score(0.5, 0.7), score(0.5, 0.3), score(0.5, 0.5)]
    for labels in ([True] * 3, [False] * 3):
        assert report(scores, labels).consistency == pytest.approx(1 / 3)
    assert report(scores, [True] * 3).ties == pytest.approx(1 / 3)


def test_pairs_that_share_a_prompt_widen_the_interval():
    scores = [score(0.9, 0.9)] * 6 + [score(0.1, 0.1)] * 6
    apart = report(scores, [True] * 12).interval
    together = report(scores, [True] * 12, prompts=[i // 3 for i in range(12)])
    assert together.prompts == 4 and together.accuracy == 0.5
    assert apart == wilson_interval(6, 12)
    assert together.interval == pytest.approx(wilson_interval(2, 4))
    all_right = report([score(0.9, 0.9)] * 12, [True] * 12, prompts=[0] * 6 + [1] * 6)
    assert all_right.interval == wilson_interval(2, 2)


def test_a_judge_of_lengths_shows_in_the_length_figures():
    longer, shorter = score(0.9, 0.9), score(0.1, 0.1)
    found = report(
        [longer, shorter, longer, longer],
        [True, True, False, True],
        lengths=[(31, 15), (15, 31), (31, 15), (31, 15)],
    )
    assert (found.accuracy_longer, found.accuracy_shorter) == (1, 0)
    assert found.length_slope == pytest.approx(math.log(9))  # every pair doubles the length
    assert report(FOUR, RIGHT).length_slope == 0
    assert report(FOUR, RIGHT).accuracy_longer is None


def test_the_interval_is_wilsons():
    low, high = wilson_interval(0, 10)
    assert low == 0 and high == pytest.approx(0.2775, abs=1e-4)
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


class FakeScorer:
    def stream(self, comparisons, *, progress=None):
        for _, first, second in comparisons:
            yield score(0.9, 0.9) if len(first) > len(second) else score(0.1, 0.1)


def test_pairs_are_counted_and_ties_of_the_source_left_out():
    rows = [("long one", "short", 0, "a"), ("longer", "s", 1, "b"), ("x", "y", "tie", "")]
    records = [
        Comparison(as_prompt("q"), first, second, label, source=source)
        for first, second, label, source in rows
    ]
    found = evaluate_pairs(FakeScorer(), records)
    assert (found.n, found.skipped_ties, found.accuracy) == (2, 1, 0.5)
    assert found.by_source == {"a": (1, 1.0), "b": (1, 0.0)}
    with pytest.raises(DataError, match="1 records"):
        evaluate_pairs(FakeScorer(), records[2:])
