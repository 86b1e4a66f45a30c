"""config.json: both spellings are read, and what the decoder does not support is refused."""

import json
from dataclasses import fields, replace

import pytest
from conftest import FAMILIES, tiny_config

from gram_jax.errors import LayoutError
from gram_jax.interop.hf_config import config_from_hf, config_to_hf
from gram_jax.model.config import Experts


@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_of_rope_give_the_same_config(family):
    cfg = tiny_config(family, True)
    both = json.loads(json.dumps(config_to_hf(cfg, "float32")))
    old = {name: value for name, value in both.items() if name != "rope_parameters"}
    new = {n: value for n, value in both.items() if n not in ("rope_theta", "rope_scaling")}
    assert config_from_hf(old) == config_from_hf(new) == cfg
    if old["rope_scaling"]:  # the oldest name of the kind
        old["rope_scaling"] = dict(old["rope_scaling"])
        old["rope_scaling"]["type"] = old["rope_scaling"].pop("rope_type")
        assert config_from_hf(old) == cfg


SCALINGS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn of the context": {"factor": 4.0},
    "yarn with mscale": {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 16},
    "yarn not truncated": {"factor": 4.0, "attention_factor": 1.3, "truncate": False},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_of_rope_are_written_and_read(name):
    cfg = tiny_config("llama", True)
    found = json.loads(json.dumps(config_to_hf(cfg, "float32")))
    kind = name.split()[0]
    found |= {"rope_scaling": {"rope_type": kind, **SCALINGS[name]}}
    del found["rope_parameters"]
    scaled = config_from_hf(found)
    assert scaled.rope_scaling is not None and scaled.rope_scaling.factor in (2.0, 4.0)
    assert replace(scaled, rope_scaling=None) == cfg
    assert config_from_hf(json.loads(json.dumps(config_to_hf(scaled, "float32")))) == scaled


CHANGES = {
    "family": "qwen3",
    "vocab_size": 300,
    "embed_size": 64,
    "layers": 3,
    "query_heads": 8,
    "kv_heads": 1,
    "head_size": 16,
    "mlp_size": 50,
    "norm_eps": 1e-3,
    "rope_theta": 123.0,
    "rope_scaling": None,
    "tied_head": True,
    "context_length": 77,
    "head": "labels",
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_every_field_is_written_and_read(field):
    cfg = tiny_config("llama3", False)
    changed = replace(cfg, **{field: CHANGES[field]})
    if field == "family":  # the traits of a family come with it
        changed = replace(changed, qk_norm=True)
    assert changed != cfg
    assert config_from_hf(config_to_hf(changed, "float32")) == changed
    others = {"qkv_bias", "qk_norm", "traits", "experts"}
    assert set(CHANGES) | others == {f.name for f in fields(cfg)}


@pytest.mark.parametrize(
    "change", [{"count": 16}, {"per_token": 1}, {"normalized": False}, {"balance": 0.02}]
)
def test_every_field_of_experts_is_written_and_read(change):
    plain = replace(tiny_config("qwen3", False), family="qwen3_moe")
    cfg = replace(plain, experts=Experts(8, 2, normalized=True, balance=0.0))
    changed = replace(cfg, experts=replace(cfg.experts, **change))
    assert config_from_hf(config_to_hf(changed, "float32")) == changed != cfg
    with pytest.raises(LayoutError, match="experts"):
        config_to_hf(plain, "float32")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"sliding_window": 4096, "use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"quantization_config": {"bits": 4}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e5, "factor": 4.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e5}}},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "yarn", "factor": True}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.1}},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        {"rope_theta": 5.0},
        {"num_key_value_heads": 3},
    ],
)
def test_what_the_decoder_does_not_do_is_refused_by_name(change):
    found = config_to_hf(tiny_config("llama", True), "float32") | change
    with pytest.raises(LayoutError) as error:
        config_from_hf(found)
    names = {"layer_types": "layer_types", "num_key_value_heads": "key-value heads"}
    name = next(iter(change))
    expected = "rope" if name.startswith("rope") else names.get(name, name)
    assert expected in str(error.value)


def test_an_unknown_family_is_refused():
    with pytest.raises(LayoutError, match=r"mamba.*llama, .*qwen3, .*gemma2"):
        config_from_hf({"model_type": "mamba"})


@pytest.mark.parametrize(
    ("settings", "head"),
    [
        ({"id2label": {"0": "LABEL_0"}}, "scalar"),
        ({"num_labels": 1}, "scalar"),
        ({"id2label": {"0": "A"}, "gram_jax_head": "margin"}, "margin"),
        ({"id2label": {"0": "A", "1": "B"}}, "labels"),
        ({}, "labels"),
    ],
)
def test_the_labels_of_a_classifier_are_its_head(settings, head):
    cfg = tiny_config("llama", True)
    found = config_to_hf(cfg, "float32") | {"architectures": ["LlamaForSequenceClassification"]}
    assert config_from_hf(found | settings) == replace(cfg, head=head)


@pytest.mark.parametrize(
    "settings",
    [
        {"architectures": ["LlamaForSequenceClassification"], "id2label": dict.fromkeys("012")},
        {"architectures": ["LlamaForRewardModel"]},
        {"architectures": ["LlamaForTokenClassification"]},
    ],
)
def test_other_heads_are_refused_by_name(settings):
    found = config_to_hf(tiny_config("llama", True), "float32")
    with pytest.raises(LayoutError, match=r"id2label has 3|LlamaFor"):
        config_from_hf(found | settings)


def test_every_missing_field_is_listed_at_once():
    with pytest.raises(LayoutError) as error:
        config_from_hf({"model_type": "qwen2", "rope_theta": 1e6})
    for name in ("vocab_size", "hidden_size", "num_key_value_heads", "rms_norm_eps"):
        assert name in str(error.value)


def test_absent_fields_mean_what_transformers_says():
    found = config_to_hf(tiny_config("llama", False), "float32")
    for name in ("head_dim", "tie_word_embeddings", "rope_theta", "rope_parameters", "hidden_act"):
        del found[name]
    assert config_from_hf(found) == replace(tiny_config("llama", False), rope_theta=10000.0)


def test_a_mixture_that_no_class_has_cannot_be_written():
    with pytest.raises(LayoutError, match="qkv_bias"):
        config_to_hf(replace(tiny_config("llama", True), qkv_bias=True), "float32")


def test_transformers_reads_the_config_as_it_is_meant():
    transformers = pytest.importorskip("transformers")
    for family in FAMILIES:
        cfg = tiny_config(family, False)
        settings = config_to_hf(cfg, "float32")
        theirs = transformers.AutoConfig.for_model(**settings)
        assert theirs.rope_parameters == settings["rope_parameters"]
        assert (theirs.head_dim, theirs.rms_norm_eps) == (cfg.head_size, cfg.norm_eps)
        assert theirs.num_key_value_heads == cfg.kv_heads
        assert config_from_hf(theirs.to_dict()) == cfg
