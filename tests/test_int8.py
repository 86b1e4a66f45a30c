"""Weights and products in 8 bits: their rounding, and all programs that score with them."""

import jax
import numpy as np
import pytest
from conftest import FAMILIES, tiny_config
from model_cases import LABELS, random_params, random_rows

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.errors import LayoutError
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import hidden_at, label_logits
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.model.quantize import format_of, quantize
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
    found = quantize(params, "int8")
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
    found = quantize(random_params(cfg, one_device), "int8")
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
    found = quantize({"layers": layers}, "int8")
    assert all(not np.asarray(leaf).any() for leaf in tree.flatten(multiplied_out(found)).values())


@pytest.mark.parametrize(
    ("weights", "of"), [("int8_dynamic", "i8"), ("float8_dynamic", "f8E4M3FN")]
)
def test_dynamic_formats_compute_all_products_of_the_layers_in_8_bits(
    weights, of, execution, one_device
):
    cfg = tiny_config("qwen3", True)
    params = random_params(cfg, one_device)
    seqs = random_rows(cfg, [[24], [20]], 24)
    forward = jax.jit(lambda params: hidden_states(params, cfg, seqs, execution))
    eight = quantize(params, weights)
    assert format_of(params) == "float32" and format_of(eight) == weights
    dots = [line for line in forward.lower(eight).as_text().splitlines() if "dot_general" in line]
    assert sum(line.count(f"x{of}>") == 2 for line in dots) == len(NUM_CONTRACTED_DIMS)
    found, exact = (np.ravel(forward(side)[:, :20]) for side in (eight, params))
    assert 0.99 < np.corrcoef(found, exact)[0, 1] < 1


def test_products_in_8_bits_cannot_be_trained(execution, one_device):
    cfg = tiny_config("qwen3", True)
    params = quantize(random_params(cfg, one_device), "int8_dynamic")
    seqs = random_rows(cfg, [[8]], 8)

    def loss(final_norm):
        return hidden_states(params | {"final_norm": final_norm}, cfg, seqs, execution).sum()

    def of_embedding(embed):
        return hidden_states(params | {"embed": embed}, cfg, seqs, execution).sum()

    jax.grad(loss)(params["final_norm"])  # after the layers
    with pytest.raises(LayoutError, match="int8_dynamic"):
        jax.grad(of_embedding)(params["embed"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no judge.json")
@pytest.mark.parametrize("weights", ["int8_dynamic", "float8_dynamic"])
def test_products_in_8_bits_score_alike_in_both_programs_and_on_a_mesh(weights):
    pairs = [("q", "one", "two"), ("Name a prime.", "Seven.", "Nine is a prime, I think.")]
    alone = make_placement({}, devices=jax.devices()[:1])
    whole = Scorer.load("tiny-random", placement=alone).score_many(pairs)
    judge = Scorer.load("tiny-random", placement=alone, weights=weights)
    assert judge.identity.weights == weights
    found = judge.score_many(pairs)
    np.testing.assert_allclose([s.first for s in found], [s.first for s in whole], atol=2e-2)
    rows = Scorer(*_parts(judge), judge.execution, method="padded").score_many(pairs)
    spread = make_placement({"fsdp": 2, "tensor": 2, "data": 2})
    cut = Scorer.load("tiny-random", placement=spread, weights=weights).score_many(pairs)
    for other in (rows, cut):  # another order of f32 sums may move an activation to the next value
        np.testing.assert_allclose([s.margin for s in other], [s.margin for s in found], atol=5e-3)


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
