"""Picking from graded responses, by hand: best of n, RewardBench 2 and its Ties."""

import numpy as np
import pytest

from gram_jax.data.records import Candidates
from gram_jax.errors import DataError
from gram_jax.evals.graded import (
    RankedCandidates,
    agreement,
    best_of_n,
    check_graded,
    check_ties,
    graded_pairs,
    pick_scores,
    reward_bench_2,
)
from gram_jax.evals.pairwise import verdicts_on
from gram_jax.judge.messages import as_prompt


def graded(name, strengths, grades, source="", lean=0.0) -> RankedCandidates:
    """A judge whose log-odds are differences of strengths, plus `lean` for whatever is shown first."""
    strengths = np.array(strengths, np.float32)
    logit_diffs = strengths[:, None] - strengths[None, :] + np.float32(lean)
    texts = tuple(f"{name} {at}" for at in range(len(grades)))
    record = Candidates(as_prompt(name), texts, tuple(map(float, grades)), name, source)
    return RankedCandidates(record, strengths, logit_diffs, False)


def official(found) -> dict[str, float]:
    return {one.name: one.value for one in found.official}


def test_the_grade_of_the_pick_stands_between_random_and_best():
    rankings = [graded("a", [3, 1, 2], [0.5, 0, 1]), graded("b", [1, 2], [0, 1])]
    found = best_of_n(rankings)
    named = official(found)
    assert named["grade of the pick"] == pytest.approx((0.5 + 1) / 2)
    assert named["grade of a random response"] == pytest.approx(0.5)
    assert named["grade of the best response"] == 1
    assert named["share of the possible gain"] == pytest.approx(0.5)
    assert named["a best response is picked"] == 0.5
    one, two = found.tables[0].rows
    assert one == [1, pytest.approx(0.5), pytest.approx(0.5)]
    # Of the pairs of "a" two are won by the response of grade 0.5 and one by that of 1; the best are 1, 1 and 0.5.
    assert two == [2, pytest.approx((2 / 3 + 1) / 2), pytest.approx((2.5 / 3 + 1) / 2)]


@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_the_share_of_the_gain_of_a_few_prompts_has_an_interval_that_holds_it_or_none(prompts):
    """The share is negative if the picks are worse than a random response, so it has no interval of Wilson's."""
    kinds = [[1, 0, 0, 0], [1, 0, 1, 1]]
    for grades in (kinds[:1], kinds[1:], kinds):
        rankings = [
            graded(str(at), [-1, 2, 0, -1], grades[at % len(grades)]) for at in range(prompts)
        ]
        gain = best_of_n(rankings).official[-1]
        assert gain.name == "share of the possible gain" and gain.value < 0
        if gain.interval is not None:
            low, high = gain.interval
            assert low <= gain.value <= high
    assert gain.interval is None or prompts > 1


def test_equally_strong_responses_share_the_credit_and_equal_grades_do_not_count():
    table = pick_scores([graded("a", [1, 1, 0], [1, 0, 0]), graded("b", [1, 0], [1, 1])])
    assert table.value() == 0.5 and table.counts.sum() == 1
    with pytest.raises(DataError, match="1 rows"):
        check_graded([graded("a", [1, 0], [1, 1]).record])


def test_pairs_of_graded_responses_are_seen_from_the_better_one():
    pairs, scores = graded_pairs([graded("a", [0, 2, 1], [0, 1, 1], lean=0.5)])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a 1", "a 0"), ("a 2", "a 0")]
    verdicts = verdicts_on(pairs, scores)
    assert verdicts.margin.tolist() == [2, 1]
    assert verdicts.correct.all() and (verdicts.position_bias > 0).all()


def test_reward_bench_2_shares_credit_over_ties_and_averages_subsets():
    rankings = [
        graded("a", [2, 1, 0, 0], [1, 0, 0, 0], "Math"),
        graded("b", [1, 0, 0, 0], [1, 0, 0, 0], "Math"),
        graded("c", [1, 1, 0, 0], [1, 0, 0, 0], "Safety"),
    ]
    named = official(reward_bench_2(rankings))
    assert named == {"RewardBench 2": 0.75, "Math": 1.0, "Safety": 0.5}


def test_the_score_of_ties_by_hand():
    reference = graded("ref:7", [3, 0, 1], [1, 0, 0], "Ties")  # right from wrong: 2
    tied = graded("tied:7", [5, 4.5, 1, 0], [1, 1, 0, 0], "Ties")  # apart 3.5, right ones 0.5
    named = official(reward_bench_2([reference, tied]))
    assert named["Ties"] == pytest.approx(1 + 0.01 * np.tanh(2 / 0.5 - 1))
    wide = graded("tied:7", [5, 2, 1, 0], [1, 1, 0, 0], "Ties")  # apart 1, right ones 3
    equal = graded(
        "tied:7", [5, 5, 1, 0], [1, 1, 0, 0], "Ties"
    )  # right ones 0: the ratio has no end
    assert official(reward_bench_2([reference, equal]))["Ties"] == pytest.approx(1.01)
    ratio = np.tanh(1 / 3 - 1)
    assert official(reward_bench_2([reference, wide]))["Ties"] == pytest.approx(0.6 + 0.01 * ratio)


def test_a_row_of_ties_without_its_other_row_is_counted_and_left_out():
    rows = [graded("ref:1", [1, 0], [1, 0], "Ties"), graded("a", [1, 0], [1, 0], "Math")]
    found = reward_bench_2(rows)
    assert official(found) == {"RewardBench 2": 1, "Math": 1}
    assert found.tables[0].rows[0][1] == 1
    with pytest.raises(DataError, match="expected ref:NUMBER or tied:NUMBER"):
        check_ties([graded("x", [1, 0], [1, 0], "Ties").record])


def test_agreement_with_grades_is_perfect_for_a_judge_that_orders_alike():
    assert agreement([graded("a", [1, 2, 3], [0, 5, 10])]).kendall == 1
    assert agreement([graded("a", [3, 2, 1], [0, 5, 10])]).pearson == pytest.approx(-1)
    assert agreement([graded("a", [1, 2], [1, 1])]) is None
