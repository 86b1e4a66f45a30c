"""Ranking: what each method asks for, what it makes of the answers, and what it must not depend on."""

import itertools
from typing import get_args

import jax
import numpy as np
import pytest
from scipy.special import expit

from gram_jax import cli
from gram_jax.errors import DataError, JudgeError
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import (
    Ranking,
    RankingMethod,
    bradley_terry,
    order_of,
    tournament,
)
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement

METHODS = get_args(RankingMethod)


def play(logit_diffs: np.ndarray, count: int | None = None, method: str | None = None, **options):
    """A ranking where logit_diffs [n, n] is what the judge says of (first, second), and all that was asked."""
    asked, game = [], tournament(count or len(logit_diffs), method, **options)
    try:
        matches = next(game)
        while True:
            asked.append(matches)
            matches = game.send([logit_diffs[match] for match in matches])
    except StopIteration as over:
        return over.value, asked


def perfect(quality: np.ndarray, preference: float = 0.0) -> np.ndarray:
    return quality[:, None] - quality[None] + preference


def noisy(count: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    quality = random.normal(size=count)
    pair = random.normal(size=(count, count)) * noise
    return quality, perfect(quality, 0.5) + (pair - pair.T) / np.sqrt(2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 33])
def test_a_judge_without_errors_is_followed_by_every_method(method, orders, count):
    quality = np.random.default_rng(count).permutation(count).astype(float)
    options = {"references": [0]} if method == "reference" else {}
    found, _ = play(perfect(quality), method=method, order_mode=orders, **options)
    assert found.order == order_of(quality)
    assert found.ties == 0 and found.cycles in (0, None)
    if method != "bradley_terry":
        np.testing.assert_allclose(found.strengths, quality - quality.mean(), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_both_orders_cancel_a_preference_for_a_position(method):
    quality = np.random.default_rng(0).normal(size=9)
    options = {"references": [3, 5]} if method == "reference" else {}
    plain, _ = play(perfect(quality), method=method, **options)
    leaning, _ = play(perfect(quality, 7.0), method=method, **options)
    assert leaning.order == plain.order == order_of(quality)
    assert leaning.ties > 0.9  # and it is seen that the judge says "the first one" nearly always


@pytest.mark.parametrize(
    ("method", "count", "both", "rounds"),
    [
        ("round_robin", 16, 240, 1),
        ("bradley_terry", 16, 240, 1),
        ("knockout", 16, 30, 4),
        ("knockout", 13, 24, 4),
        ("linear", 16, 30, 15),
        ("groups", 16, 84, 3),
        ("groups", 64, 372, 5),
        ("groups", 5, 14, 2),
        ("groups", 4, 12, 1),
    ],
)
def test_what_a_method_costs(method, count, both, rounds):
    """No more than this: pairs that have met are not compared again."""
    for seed in range(5):
        _, logit_diffs = noisy(count, seed)
        found, asked = play(logit_diffs, method=method)
        once, _ = play(logit_diffs, method=method, order_mode="one")
        flat = list(itertools.chain(*asked))
        assert len(flat) == len(set(flat)) == found.comparisons <= both
        assert found.rounds == len(asked) == rounds
        if method in ("round_robin", "linear", "knockout"):
            assert (found.comparisons, 2 * once.comparisons) == (both, both)


def test_one_order_shows_everybody_first_as_often_as_second():
    for method in ("round_robin", "groups"):
        for count in (5, 8, 16):
            _, asked = play(noisy(count, 1)[1], method=method, order_mode="one")
            lead = np.zeros(count, int)
            for first, second in itertools.chain(*asked):
                lead[first] += 1
                lead[second] -= 1
            assert abs(lead).max() <= 2


def test_linear_search_keeps_the_best_so_far_in_a_tie():
    found, asked = play(np.zeros((4, 4)), method="linear")
    assert found.order[0] == 0
    assert [{*pair} for (pair, _) in asked] == [{0, 1}, {0, 2}, {0, 3}]


def test_references_are_compared_with_and_not_ranked():
    quality = np.array([0.3, 2.0, -1.0, 9.0, -9.0])
    found, asked = play(perfect(quality), count=3, method="reference", references=[3, 4])
    assert found.order == [1, 0, 2] and found.strengths.shape == (3,)
    assert found.margins.shape == (3, 3) and np.isnan(found.margins[0, 1])
    assert all({3, 4} & {*match} for match in itertools.chain(*asked))


def test_circles_and_ties_are_counted():
    circle = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], float)
    found, _ = play(circle, method="round_robin")
    assert (found.cycles, found.ties) == (1.0, 0.0)
    always_first, _ = play(np.ones((4, 4)), method="round_robin")
    assert (always_first.ties, always_first.cycles) == (1.0, 0.0)
    four = np.zeros((4, 4))
    four[:3, :3], four[:3, 3], four[3, :3] = circle, 5, -5
    assert play(four, method="round_robin")[0].cycles == 0.25  # one of four triples
    assert play(circle, method="knockout")[0].cycles is None


def test_a_round_robin_ranks_by_the_sum_of_log_odds():
    table = np.array([[0, 3.0, 0.1], [-3.0, 0, 0.2], [-0.1, -0.2, 0]])
    assert play(table, method="round_robin")[0].order == [
        0,
        2,
        1,
    ]  # two narrow wins weigh less than a clear one
    _, logit_diffs = noisy(7, 3)
    found, _ = play(logit_diffs, method="round_robin")
    np.testing.assert_allclose(found.margins, (logit_diffs - logit_diffs.T) / 2, atol=1e-6)
    np.testing.assert_allclose(found.strengths, found.margins.mean(axis=1), atol=1e-5)


def test_the_bradley_terry_fit_is_the_most_likely_one():
    """Where everything is known of it: the gradient vanishes, the preference for a position is found and apart."""
    quality, _ = noisy(6, 0)
    strengths, errors = bradley_terry(
        np.where(np.eye(6, dtype=bool), np.nan, perfect(quality, 0.8))
    )
    np.testing.assert_allclose(strengths, quality - quality.mean(), atol=2e-3)
    assert errors.max() < 2e-3  # nothing is left unexplained
    two, unsure = bradley_terry(np.array([[np.nan, 1.0], [np.nan, np.nan]]))
    assert two[0] > two[1] and np.isnan(unsure).all()


def test_the_errors_of_the_fit_are_as_large_as_they_say():
    ratios = []
    for seed in range(200):
        quality, logit_diffs = noisy(8, seed, noise=0.4)
        strengths, errors = bradley_terry(np.where(np.eye(8, dtype=bool), np.nan, logit_diffs))
        ratios.append((strengths - (quality - quality.mean())) / errors)
    assert 0.85 < np.sqrt(np.mean(np.square(ratios))) < 1.15


def test_a_one_sided_judge_does_not_break_the_fit():
    strengths, errors = bradley_terry(
        np.where(np.eye(3, dtype=bool), np.nan, perfect(np.array([0, 80, 160.0])))
    )
    assert order_of(strengths) == [2, 1, 0] and np.isfinite(strengths).all()
    assert not np.isinf(errors).any()


@pytest.mark.slow
def test_groups_choose_nearly_as_well_as_a_round_robin_for_a_third():
    """The claim of docs/ranking.md, with few runs and a tolerance for their scatter."""
    for count, runs, share in ((16, 400, 0.35), (64, 60, 0.10)):
        quality = {"groups": 0.0, "round_robin": 0.0}
        cost = dict(quality)
        for seed in range(runs):
            truth, logit_diffs = noisy(count, seed)
            for method in quality:
                found, _ = play(logit_diffs, method=method)
                quality[method] += truth[found.order[0]] / runs
                cost[method] += found.comparisons / runs
        assert quality["groups"] >= 0.93 * quality["round_robin"]
        assert cost["groups"] <= share * cost["round_robin"]


def test_options_that_do_not_go_together_are_refused():
    for method, references, message in [
        ("best", 0, "unknown method of ranking 'best': expected one of groups, "),
        ("reference", 0, "needs references"),
        ("knockout", 2, "references are for the method"),
        (None, ("a",), "references are for the method"),
    ]:
        with pytest.raises(JudgeError, match=message):
            RankingConfig(method, references=references)
    with pytest.raises(JudgeError, match="order_mode is"):
        RankingConfig(order_mode="ab")
    with pytest.raises(JudgeError, match="nothing to rank"):
        next(tournament(0))


def test_the_command_offers_every_method():
    assert get_args(cli.scoring.Method) == METHODS


@pytest.fixture(scope="module")
def judge() -> Scorer:
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match="no judge.json"):
        judge = Scorer.load("tiny-random", placement=placement, max_length=256)
    judge.engine.params = jax.tree.map(lambda w: w * 4, judge.params)  # tells texts apart
    return judge


RESPONSES = ["Seven.", "Nine, I think.", "", "Two\nand three", "Seven.", "eleven " * 9, "12"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("orders", ["both", "one"])
def test_a_ranking_depends_on_nothing_but_the_responses(judge: Scorer, method, orders):
    """Not on their order, not on how often one occurs, not on what else is ranked: to the last bit."""
    config = RankingConfig(method, orders, 2 if method == "reference" else 0)
    (alone,) = judge.rank_many([("Name a prime.", RESPONSES)], config)
    shuffled = np.random.default_rng(0).permutation(len(RESPONSES))
    others = [("q", ["a", "b"]), ("Name a prime.", [RESPONSES[i] for i in shuffled])]
    found = list(judge.rank_many([*others, ("Name", ["x"])], config))
    assert np.array_equal(found[1].strengths, alone.strengths[shuffled])
    assert np.array_equal(
        found[1].margins, alone.margins[np.ix_(shuffled, shuffled)], equal_nan=True
    )
    assert [RESPONSES[shuffled[i]] for i in found[1].order] == [RESPONSES[i] for i in alone.order]
    assert found[2] == (Ranking([0], *found[2][1:])) and found[2].comparisons == 0
    assert alone.strengths[0] == alone.strengths[4]
    assert alone.order.index(4) == alone.order.index(0) + 1


def test_ranking_compares_as_scoring_does(judge: Scorer):
    table = judge.compare("Name a prime.", RESPONSES)
    assert table.shape == (7, 7) and table.dtype == np.float32
    assert np.array_equal(table, -table.T)
    for i, j in itertools.permutations(range(7), 2):
        pair = judge.score("Name a prime.", RESPONSES[i], RESPONSES[j])
        np.testing.assert_allclose(table[i, j], pair.margin, atol=2e-5)
    found = judge.rank("Name a prime.", RESPONSES, method="round_robin")
    assert judge.best("Name a prime.", RESPONSES, method="round_robin") == found.order[0]
    assert expit(table).min() < 0.49


def test_what_does_not_fit_is_marked(judge: Scorer):
    with pytest.warns(UserWarning, match="are longer than 256 tokens"):
        found = judge.rank("q", ["a " * 400, "b"])
    assert found.shortened
    assert not judge.rank("q", ["a", "b"]).shortened


def test_what_is_no_list_of_texts_is_refused(judge: Scorer):
    for responses in ("abc", ["a", None], [["a"], "b"]):
        with pytest.raises(DataError, match="list 0"):
            judge.rank("q", responses)
    with pytest.raises(JudgeError, match="nothing to rank"):
        judge.best("q", [])
    with pytest.raises(JudgeError, match="references: expected a list"):
        judge.rank("q", ["a", "b"], method="reference", references="a")
