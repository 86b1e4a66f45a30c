"""The table of names: one rule per weight, and lossless conversion."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import FAMILIES, tiny_config

from gram_jax import tree
from gram_jax.interop.hf_names import RULES, tensor_mappings
from gram_jax.model.config import Traits
from gram_jax.model.specs import param_specs


@pytest.mark.parametrize("names", ["hf", "gguf"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_has_exactly_one_place_in_a_file(family, tied, names):
    cfg = tiny_config(family, tied)
    places = [(slot.rule.path, slot.at) for slot in tensor_mappings(cfg, names).values()]
    assert len(places) == len(set(places))
    specs = tree.flatten(param_specs(cfg))
    assert {path for path, _ in places} == specs.keys()
    sizes = dict.fromkeys(specs, 0)
    for slot in tensor_mappings(cfg, names).values():
        sizes[slot.rule.path] += int(np.prod(slot.stored_shape))
    assert sizes == {path: int(np.prod(spec.shape)) for path, spec in specs.items()}


@pytest.mark.parametrize("norms", ["pre", "post", "both"])
def test_no_two_rules_of_a_model_claim_the_same_name(norms):
    cfg = replace(tiny_config("qwen3", False), qkv_bias=True, traits=Traits(norms=norms))
    specs = tree.flatten(param_specs(cfg))
    for names in ("hf", "gguf"):
        rules = [rule.of(cfg, names) for rule in RULES if rule.path in specs]
        assert len(rules) == len(specs)
        for field in ("path", names):
            assert len({getattr(rule, field) for rule in rules}) == len(rules)


def test_a_query_matrix_is_split_by_heads_and_turned():
    slot = tensor_mappings(tiny_config("llama", True), "hf")[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    stored = np.arange(32 * 32).reshape(32, 32)
    ours = slot.to_model(stored)
    assert ours.shape == (32, 4, 8)
    assert ours[5, 2, 3] == stored[2 * 8 + 3, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_is_exact_and_a_part_of_the_file_is_that_part_of_the_leaf(family):
    rng = np.random.default_rng(0)
    for slot in tensor_mappings(tiny_config(family, False), "hf").values():
        stored = rng.integers(0, 1000, slot.stored_shape)
        np.testing.assert_array_equal(slot.to_stored(slot.to_model(stored)), stored)
        assert slot.to_model(stored).shape == slot.shape
        for axis, size in enumerate(slot.shape):
            index = [slice(None)] * len(slot.shape)
            index[axis] = slice(size // 2, None)
            part, rest = slot.stored_part(index)
            found = slot.to_model(stored[part])[rest]
            np.testing.assert_array_equal(found, slot.to_model(stored)[tuple(index)])


def test_a_part_cut_by_heads_reads_no_more_than_itself():
    slot = tensor_mappings(tiny_config("llama", True), "hf")[
        "model.layers.1.self_attn.o_proj.weight"
    ]
    part, rest = slot.stored_part((slice(2, 4), slice(None), slice(0, 16)))
    assert part == (slice(0, 16), slice(16, 32))
    assert rest == (slice(None), slice(0, 8), slice(None))
