"""Weights of eight bits: what rounding does to them, and that whatever scores takes them."""

import jax
import numpy as np
import pytest
from conftest import FAMILIES, tiny_config
from model_cases import LABELS, random_params

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import hidden_at, label_logits
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.model.quantize import quantize_int8
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement


def multiplied_out(params: tree.Tree) -> tree.Tree:
    """The same tree in float32, as the model will see it."""
    layers = dict(params["layers"])
    scales = layers.pop("scales")
    layers |= {name: layers[name].astype(np.float32) * scales[name] for name in scales}
    return {**params, "layers": layers}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_moves_by_more_than_half_a_step_of_its_channel(family, one_device):
    params = random_params(tiny_config(family, True), one_device)
    found = quantize_int8(params)
    back = multiplied_out(found)
    for name, contracted in NUM_CONTRACTED_DIMS.items():
        before, after = (np.asarray(side["layers"][name]) for side in (params, back))
        assert found["layers"][name].dtype == np.int8
        channels = tuple(range(1, 1 + contracted))
        step = np.abs(before).max(axis=channels, keepdims=True) / 127
        assert (np.abs(before - after) <= step * 0.501).all()
        assert np.abs(np.asarray(found["layers"][name])).max(axis=channels).min() == 127
    untouched = tree.flatten(params).keys() - {f"layers/{name}" for name in NUM_CONTRACTED_DIMS}
    for path in untouched:
        assert tree.flatten(found)[path] is tree.flatten(params)[path]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_multiplies_by_integer_times_scale(family, execution, one_device):
    cfg = tiny_config(family, False)
    found = quantize_int8(random_params(cfg, one_device))
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 24)).astype(np.int32)
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), tokens.shape)
    seqs, verdict_at = Sequences(tokens, positions, np.ones_like(tokens)), np.array([[23], [11]])

    def logits(params):
        hidden = hidden_at(hidden_states(params, cfg, seqs, execution), verdict_at)
        return label_logits(params, cfg, hidden, LABELS)

    np.testing.assert_allclose(logits(found), logits(multiplied_out(found)), atol=1e-5)


def test_a_channel_of_zeros_stays_zero():
    layers = {
        name: np.zeros((1, 2, 3, 4)[: 3 + (c > 1)], np.float32)
        for name, c in NUM_CONTRACTED_DIMS.items()
    }
    found = quantize_int8({"layers": layers})
    assert all(not np.asarray(leaf).any() for leaf in tree.flatten(multiplied_out(found)).values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no judge.json")
def test_both_programs_and_several_devices_score_with_them():
    pairs = [("q", "one", "two"), ("Name a prime.", "Seven.", "Nine is a prime, I think.")]
    alone = make_placement({}, devices=jax.devices()[:1])
    whole = Scorer.load("tiny-random", placement=alone).score_many(pairs)
    small = Scorer.load("tiny-random", placement=alone, weights="int8")
    assert sum(x.nbytes for x in jax.tree.leaves(small.params["layers"])) < 0.4 * sum(
        x.nbytes
        for x in jax.tree.leaves(Scorer.load("tiny-random", placement=alone).params["layers"])
    )
    found = small.score_many(pairs)
    np.testing.assert_allclose([s.first for s in found], [s.first for s in whole], atol=1e-2)
    assert [s.margin for s in found] != [s.margin for s in whole]
    rows = Scorer(*_parts(small), small.execution, method="padded").score_many(pairs)
    spread = make_placement({"fsdp": 2, "tensor": 2, "data": 2})
    cut = Scorer.load("tiny-random", placement=spread, weights="int8").score_many(pairs)
    for other in (rows, cut):
        np.testing.assert_allclose([s.margin for s in other], [s.margin for s in found], atol=1e-5)
    half = Scorer.load("tiny-random", placement=alone, weights="bfloat16", compute_dtype="float32")
    assert half.params["layers"]["q"].dtype == "bfloat16"
    assert isinstance(half.execution, Execution) and half.execution.compute_dtype == "float32"


def _parts(judge: Scorer) -> tuple:
    return judge.params, judge.cfg, judge.tokenizer, judge.spec
