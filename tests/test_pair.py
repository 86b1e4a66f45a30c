"""Two responses, shown in both orders, become two scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import LABELS, random_params, random_rows
from test_objectives import shapes_of_products

from gram_jax.batch import PairBatch, Sequences
from gram_jax.scoring.padded import padded_logits
from gram_jax.scoring.pair import combine_orders, pair_probabilities, score_pair

CFG = tiny_config("llama", True)
T = 40


@pytest.fixture(scope="module")
def pair() -> PairBatch:
    """Four pairs of rows of different lengths."""
    lengths = [[n] for n in (30, 31, 12, 12, 40, 39, 25, 25)]
    seqs = random_rows(CFG, lengths, T)
    at = np.array(lengths, np.int32).reshape(4, 2) - 1
    return PairBatch(Sequences(*(x.reshape(4, 2, T) for x in seqs)), at)


def swapped(pair: PairBatch) -> PairBatch:
    return jax.tree.map(lambda x: x[:, ::-1], pair)


def test_swapping_the_responses_swaps_the_scores(pair, execution, one_device):
    params = random_params(CFG, one_device)
    scores = score_pair(params, CFG, pair, LABELS, execution)
    other = score_pair(params, CFG, swapped(pair), LABELS, execution)
    assert scores.shape == (4, 2) and scores.dtype == np.float32
    assert np.array_equal(scores[:, ::-1], other)
    assert (scores.sum(axis=1) == 1).all()
    assert np.ptp(scores[:, 0]) > 0.01


def test_a_judge_of_positions_scores_one_half(pair, execution, one_device):
    """Without attention the verdict depends on the last token alone, the same in both orders."""
    params = random_params(CFG, one_device)
    params["layers"]["o"] = jnp.zeros_like(params["layers"]["o"])
    tokens = pair.seqs.tokens.copy()
    np.put_along_axis(tokens, pair.verdict_at[..., None], 7, axis=2)
    blind = pair._replace(seqs=pair.seqs._replace(tokens=tokens))
    logits = padded_logits(params, CFG, blind, LABELS, execution)
    assert np.abs(logits[..., 0] - logits[..., 1]).min() > 0.05  # it has a favourite position
    assert (score_pair(params, CFG, blind, LABELS, execution) == 0.5).all()


def test_a_judge_of_positions_scores_exactly_one_half_for_any_logits():
    logits = np.random.default_rng(0).normal(size=(5000, 1, 2)).astype(np.float32) * 8
    diffs = np.broadcast_to(logits[..., 0] - logits[..., 1], (5000, 2))
    assert (pair_probabilities(diffs) == 0.5).all()


def test_scores_by_hand():
    """The mean of a softmax over the labels in each order: not over the orders."""
    diffs = np.array([[2.0, -3.0]])
    first = (1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(-3.0))) / 2
    np.testing.assert_allclose(pair_probabilities(diffs), [[first, 1 - first]], atol=1e-6)
    consistent = pair_probabilities(np.array([[5.0, -5.0]]))
    np.testing.assert_allclose(consistent[0, 0], 1 / (1 + np.exp(-5.0)), rtol=1e-6)


def test_a_score_does_not_depend_on_its_neighbours(pair, execution, one_device):
    params = random_params(CFG, one_device)
    scores = score_pair(params, CFG, pair, LABELS, execution)
    turned = jax.tree.map(lambda x: np.roll(x, 1, axis=0), pair)
    other = score_pair(params, CFG, turned, LABELS, execution)
    assert np.array_equal(np.roll(scores, 1, axis=0), other)


def test_eight_devices_score_what_one_scores(pair, execution, cube, one_device):
    scores = score_pair(random_params(CFG, one_device), CFG, pair, LABELS, execution)
    spread = dataclasses.replace(execution, placement=cube)
    other = score_pair(random_params(CFG, cube), CFG, pair, LABELS, spread)
    np.testing.assert_allclose(scores, other, atol=1e-5)


def test_scoring_multiplies_by_nothing_of_the_size_of_the_vocabulary(pair, execution, one_device):
    params = random_params(CFG, one_device)
    lowered = padded_logits.lower(params, CFG, pair, LABELS, execution)
    shapes = shapes_of_products(lowered.compile().as_text())
    assert not [shape for shape in shapes if CFG.vocab_size in shape]


def test_one_formula_for_arrays_and_for_a_single_pair():
    """The array form and the PairScore agree bit for bit for differences of all magnitudes and both signs."""
    random = np.random.default_rng(1)
    sizes = 10.0 ** random.uniform(-8, 4, (20_000, 2))
    diffs = (sizes * random.choice([-1, 1], sizes.shape)).astype(np.float32)
    scores = [combine_orders(one, other, False) for one, other in diffs.tolist()]
    assert np.array_equal(pair_probabilities(diffs), np.array([s[:2] for s in scores], np.float32))
    assert all(score.first + score.second == 1 for score in scores)
    exchanged = [combine_orders(other, one, False) for one, other in diffs.tolist()]
    assert [score.swapped() for score in scores] == exchanged


def test_the_fields_of_a_score_by_hand():
    """z_A - z_B is 1 as given and 2 with the responses swapped: sigma(1) for the first, then sigma(-2)."""
    score = combine_orders(1.0, 2.0, True)
    shown_first, shown_second = 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(2.0))
    assert score.first == pytest.approx((shown_first + shown_second) / 2)
    assert score.position_bias == pytest.approx(shown_first - shown_second)
    assert (score.margin, score.shortened) == (-0.5, True)
