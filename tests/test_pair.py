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
from gram_jax.scoring.pair import pair_logits, pair_scores, score_pair

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
    assert scores.shape == (4, 2) and scores.dtype == jnp.float32
    assert np.array_equal(scores[:, ::-1], other)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=2e-7)
    assert np.ptp(scores[:, 0]) > 0.01


def test_a_judge_of_positions_scores_one_half(pair, execution, one_device):
    """Without attention the verdict depends on the last token alone, the same in both orders."""
    params = random_params(CFG, one_device)
    params["layers"]["o"] = jnp.zeros_like(params["layers"]["o"])
    tokens = pair.seqs.tokens.copy()
    np.put_along_axis(tokens, pair.verdict_at[..., None], 7, axis=2)
    blind = pair._replace(seqs=pair.seqs._replace(tokens=tokens))
    logits = pair_logits(params, CFG, blind, LABELS, execution)
    assert np.abs(logits[..., 0] - logits[..., 1]).min() > 0.05  # it has a favourite position
    assert (score_pair(params, CFG, blind, LABELS, execution) == 0.5).all()


def test_a_judge_of_positions_scores_exactly_one_half_for_any_logits():
    logits = np.random.default_rng(0).normal(size=(5000, 1, 2)).astype(np.float32) * 8
    scores = pair_scores(jnp.asarray(np.broadcast_to(logits, (5000, 2, 2))))
    assert (scores == 0.5).all()


def test_scores_by_hand():
    """The mean of a softmax over the labels in each order: not over the orders."""
    logits = jnp.array([[[2.0, 0.0], [-1.0, 2.0]]])
    first = (1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(-3.0))) / 2
    np.testing.assert_allclose(pair_scores(logits), [[first, 1 - first]], atol=1e-6)
    consistent = pair_scores(jnp.array([[[5.0, 0.0], [0.0, 5.0]]]))
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
    lowered = score_pair.lower(params, CFG, pair, LABELS, execution)
    shapes = shapes_of_products(lowered.compile().as_text())
    assert not [shape for shape in shapes if CFG.vocab_size in shape]
