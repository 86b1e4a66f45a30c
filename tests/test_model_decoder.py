"""What the decoder must and must not look at."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import random_params, random_rows

from gram_jax.batch import Sequences
from gram_jax.errors import LayoutError, RecipeError
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.model.config import Experts, Llama3Scaling, ModelConfig, Traits
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import label_logits, unembedding
from gram_jax.model.layer import rms_norm
from gram_jax.model.lora import LoraConfig, init_lora, lora_scales, lora_specs, merge_lora
from gram_jax.model.quantize import quantize
from gram_jax.model.rope import (
    Rope,
    apply_rope,
    rope_angles,
    rotate_by_halves,
    rotate_by_permutation,
)
from gram_jax.model.specs import param_specs
from gram_jax.tree import merge

BACKENDS = ("xla", "blocked")
run = jax.jit(hidden_states, static_argnums=(1, 3))

# Another value for every field. The architecture has no part in family and context_length: files
# do.
OTHER = {
    "family": "qwen2",
    "vocab_size": 300,
    "embed_size": 40,
    "layers": 3,
    "query_heads": 2,
    "kv_heads": 4,
    "head_size": 4,
    "mlp_size": 64,
    "norm_eps": 1e-2,
    "rope_theta": 1e4,
    "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 64),
    "qkv_bias": True,
    "qk_norm": True,
    "tied_head": False,
    "context_length": 1024,
    "head": "labels",
    "traits": Traits(norms="both"),
    "experts": Experts(4, 2, normalized=True, balance=0.0),
}
# The same for every trait; a window and its theta need layers that have them.
OTHER_TRAITS = {
    "layer_types": ("no_rope", "full"),
    "window": 5,
    "local_rope_theta": 50.0,
    "rotary_size": 4,
    "norms": "post",
    "norm_offset": 1.0,
    "projection_norm": True,
    "activation": "gelu_tanh",
    "embed_scale": 3.0,
    "query_scale": 1.0,
    "attention_softcap": 2.0,
    "logit_softcap": 2.0,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Traits)])
def test_every_trait_changes_something(field, execution, one_device):
    sliding = Traits(layer_types=("sliding", "full"), window=20)
    base = sliding if field in ("window", "local_rope_theta") else Traits()
    cfg = dataclasses.replace(tiny_config("qwen3", True), traits=base)
    other = dataclasses.replace(
        cfg, traits=dataclasses.replace(base, **{field: OTHER_TRAITS[field]})
    )
    seqs, logits = random_rows(cfg, [[24]], 24), []
    for config in (cfg, other):
        hidden = run(random_params(config, one_device), config, seqs, execution)
        logits.append(label_logits(random_params(config, one_device), config, hidden, (5, 9)))
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_every_config_field_changes_something(field, execution, one_device):
    cfg = tiny_config("llama", True)
    other = dataclasses.replace(cfg, **{field: OTHER[field]})
    assert getattr(cfg, field) != getattr(other, field)
    if field == "family":
        other = dataclasses.replace(other, qkv_bias=True)
    if field in ("family", "context_length", "head"):
        assert config_to_hf(cfg, "float32") != config_to_hf(other, "float32")
        return
    seqs = random_rows(cfg, [[24]], 24)
    outputs = []
    for config in (cfg, other):
        params = random_params(config, one_device)
        hidden = run(params, config, seqs, execution)
        outputs.append(jnp.einsum("btd,vd->btv", hidden, unembedding(params, config)))
    if param_specs(cfg) == param_specs(other):
        assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    else:
        shapes_differ = outputs[0].shape != outputs[1].shape
        assert shapes_differ or np.abs(outputs[0] - outputs[1]).max() > 1e-3


def gradient_by_column(params, cfg, seqs, column, execution):
    """|d hidden[0, column] / d embedding of the token in each column|; tokens must be distinct."""

    def output(embed):
        hidden = hidden_states({**params, "embed": embed}, cfg, seqs, execution)
        # A fixed direction: the plain sum of a normed vector moves little.
        return hidden[0, column] @ jnp.cos(jnp.arange(cfg.embed_size) * 1.7)

    gradient = jax.jit(jax.grad(output))(params["embed"])
    return np.abs(np.asarray(gradient)[np.asarray(seqs.tokens)[0]]).max(axis=-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_sees_the_past_of_its_own_document_only(backend, execution, one_device):
    cfg = tiny_config("llama", True)
    execution = dataclasses.replace(execution, attention=backend)
    params = random_params(cfg, one_device)
    seqs = random_rows(cfg, [[100, 60]], 180)
    tokens = np.random.default_rng(3).permutation(np.arange(1, cfg.vocab_size))[:180][None]
    seqs = seqs._replace(tokens=tokens.astype(np.int32))
    seen = gradient_by_column(params, cfg, seqs, 140, execution)
    assert (seen[100:141] > 0).all()
    assert not seen[:100].any()  # the document before
    assert not seen[141:].any()  # the future, and padding


@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_of_a_packed_row_do_not_leak(backend, execution, one_device):
    cfg = tiny_config("qwen3", True)
    execution = dataclasses.replace(execution, attention=backend)
    params = random_params(cfg, one_device)
    packed = random_rows(cfg, [[70, 90]], 192)
    other = random_rows(cfg, [[70, 90]], 192, seed=9)
    changed = packed._replace(
        tokens=np.where(packed.segments == 2, packed.tokens, other.tokens).astype(np.int32)
    )
    hidden = run(params, cfg, packed, execution)
    assert np.array_equal(hidden[0, 70:160], run(params, cfg, changed, execution)[0, 70:160])
    assert np.isfinite(hidden).all()
    alone = Sequences(*(x[:, 70:160] for x in packed))._replace(segments=np.ones((1, 90), np.int32))
    np.testing.assert_allclose(
        run(params, cfg, alone, execution)[0], hidden[0, 70:160], atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend, execution, one_device):
    cfg = tiny_config("llama3", True)
    execution = dataclasses.replace(execution, attention=backend)
    params = random_params(cfg, one_device)
    padded = random_rows(cfg, [[50]], 150)
    rubbish = padded._replace(tokens=np.where(padded.segments, padded.tokens, 7).astype(np.int32))
    hidden = run(params, cfg, padded, execution)
    assert np.isfinite(hidden).all()
    assert np.array_equal(hidden[:, :50], run(params, cfg, rubbish, execution)[:, :50])
    bare = Sequences(*(x[:, :50] for x in padded))
    np.testing.assert_allclose(run(params, cfg, bare, execution), hidden[:, :50], atol=2e-5, rtol=0)


def loss_of(cfg, seqs, execution):
    direction = np.random.default_rng(5).normal(size=(*seqs.tokens.shape, cfg.embed_size))
    weight = np.where(np.asarray(seqs.segments)[..., None] > 0, direction, 0).astype(np.float32)

    def loss(params):
        return jnp.sum(hidden_states(params, cfg, seqs, execution).astype(jnp.float32) * weight)

    return loss


@pytest.mark.slow
def test_recomputation_changes_no_gradient(execution, one_device):
    cfg = tiny_config("qwen2", True)
    params = random_params(cfg, one_device)
    seqs = random_rows(cfg, [[20, 11], [30]], 32)
    gradients = [
        jax.jit(jax.grad(loss_of(cfg, seqs, dataclasses.replace(execution, remat=remat))))(params)
        for remat in ("none", "dots", "attention", "full")
    ]
    for other in gradients[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
            gradients[0],
            other,
        )


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_bfloat16_runs_finite_near_float32(remat, execution, one_device):
    cfg = tiny_config("llama", False)
    params = random_params(cfg, one_device)
    seqs = random_rows(cfg, [[20, 11], [30]], 32)
    half = dataclasses.replace(execution, compute_dtype="bfloat16", remat=remat)
    hidden = run(params, cfg, seqs, half)
    assert hidden.dtype == jnp.bfloat16
    real = seqs.segments > 0
    error = np.abs(hidden.astype(jnp.float32) - run(params, cfg, seqs, execution))[real]
    assert error.mean() < 0.05
    gradients = jax.jit(jax.grad(loss_of(cfg, seqs, half)))(params)
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
def test_no_second_copy_of_the_weights_is_kept_for_the_backward_pass(remat, one_device):
    cfg = tiny_config("llama", True)
    execution = Execution("bfloat16", "blocked", remat, one_device)
    params = random_params(cfg, one_device)
    seqs = random_rows(cfg, [[20]], 24)
    kept = jax.eval_shape(lambda p: jax.vjp(loss_of(cfg, seqs, execution), p)[1], params)
    weights = {spec.shape for spec in param_specs(cfg)["layers"].values() if len(spec.shape) > 2}
    copies = [x for x in jax.tree.leaves(kept) if x.shape in weights and x.dtype == jnp.bfloat16]
    assert not copies


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_kept_product_is_kept_once_in_its_own_type(remat, one_device):
    """Products differ by platform; the branches of other platforms are not kept as zeros."""
    cfg = dataclasses.replace(tiny_config("llama", True), mlp_size=56)
    execution = Execution("bfloat16", "blocked", remat, one_device)
    params = random_params(cfg, one_device)
    seqs = random_rows(cfg, [[20]], 24)
    kept = jax.eval_shape(lambda p: jax.vjp(loss_of(cfg, seqs, execution), p)[1], params)
    products = [x for x in jax.tree.leaves(kept) if x.shape == (cfg.layers, 1, 24, 56)]
    assert {x.dtype for x in products} == {jnp.dtype("bfloat16")}
    assert len(products) == 2 or remat == "none"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [6, 64, 128])
def test_rotation_as_a_permutation_has_the_bits_of_rotation_by_halves(dtype, size):
    """A TPU computes it with a product; both forms run here, forward and backward."""
    rng = np.random.default_rng(0)
    x, d_y = (jnp.asarray(rng.normal(size=(2, 9, 3, size)) * 30, dtype) for _ in range(2))
    angles = rng.uniform(0, 4000, (2, 9, 1, size // 2)).astype(np.float32)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    by_halves, by_permutation = (
        jax.jit(lambda *given, f=f: f(*given)) for f in (rotate_by_halves, rotate_by_permutation)
    )
    expected = by_halves(x, cos, sin)
    rounding = 0 if dtype == "bfloat16" else 4e-6  # a CPU fuses multiply and add in either form
    np.testing.assert_allclose(by_permutation(x, cos, sin), expected, rtol=0, atol=rounding * 100)
    back = jax.vjp(lambda x: apply_rope(x, Rope(cos[:, :, 0], sin[:, :, 0])), x)[1](d_y)[0]
    plain = jax.vjp(lambda x: rotate_by_halves(x, cos, sin), x)[1](d_y)[0]
    np.testing.assert_allclose(back, plain, rtol=0, atol=rounding * 100)
    assert back.dtype == expected.dtype == x.dtype


def test_rms_norm_by_hand():
    got = rms_norm(
        jnp.array([[3.0, 4.0]]),
        jnp.array([1.0, 2.0]),
        dataclasses.replace(tiny_config("llama", True), norm_eps=1e-12),
    )
    np.testing.assert_allclose(got, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    cfg = tiny_config("llama3", True)
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, cfg.head_size)).astype(np.float32)

    def product(at_q, at_k):
        turn = rope_angles(jnp.array([[at_q, at_k]]), cfg)
        x = apply_rope(jnp.stack([q, k])[None, :, None], turn)[0, :, 0]
        return x[0] @ x[1]

    np.testing.assert_allclose(product(17, 5), product(112, 100), atol=1e-4)
    assert abs(product(17, 5) - product(17, 6)) > 1e-3


# Low-rank adaptation


LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "k", "v", "o", "gate", "up", "down"))


def adapted(cfg, one_device, *, trained):
    params = random_params(cfg, one_device)
    specs = lora_specs(cfg, LORA)
    lora = init_lora(specs, jax.random.key(0), one_device, "float32")
    if trained:
        lora = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), lora)
    scale = {"layers": {"lora_scale": lora_scales(cfg, LORA, one_device)}}
    return params, merge(merge(params, lora), scale)


@pytest.mark.slow
def test_a_fresh_lora_is_the_frozen_model(execution, one_device):
    cfg = tiny_config("llama", True)
    params, with_lora = adapted(cfg, one_device, trained=False)
    seqs = random_rows(cfg, [[20]], 20)
    assert np.array_equal(run(params, cfg, seqs, execution), run(with_lora, cfg, seqs, execution))


def test_merging_lora_keeps_the_model(execution, one_device):
    cfg = tiny_config("qwen2", True)
    params, with_lora = adapted(cfg, one_device, trained=True)
    merged = merge_lora(with_lora)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    seqs = random_rows(cfg, [[20]], 20)
    ours = run(with_lora, cfg, seqs, execution)
    np.testing.assert_allclose(run(merged, cfg, seqs, execution), ours, atol=1e-4, rtol=0)
    assert np.abs(ours - run(params, cfg, seqs, execution)).max() > 1e-2


def test_a_lora_is_not_merged_into_int8(one_device):
    params, with_lora = adapted(tiny_config("llama", True), one_device, trained=True)
    with pytest.raises(LayoutError, match=r"int8 matrices \(down, gate"):
        small = quantize(params, "int8")
        merge_lora({**small, "layers": {**with_lora["layers"], **small["layers"]}})


@pytest.mark.slow
def test_lora_needs_no_gradient_of_the_frozen_matrices(execution, one_device):
    cfg = tiny_config("llama", True)
    _, with_lora = adapted(cfg, one_device, trained=True)
    loss = loss_of(cfg, random_rows(cfg, [[60]], 60), execution)

    def of_lora(lora):
        return loss({**with_lora, "layers": {**with_lora["layers"], "lora": lora}})

    def operations(function, argument):
        return jax.jit(jax.grad(function)).lower(argument).compile().cost_analysis()["flops"]

    frozen = operations(of_lora, with_lora["layers"]["lora"])
    layers = param_specs(cfg)["layers"].values()
    weights = sum(math.prod(spec.shape[1:]) for spec in layers if spec.init == "normal")
    # A product of the 60 positions with every matrix of the layer: the scanned body counts once.
    assert frozen < operations(loss, with_lora) - 0.9 * 2 * 60 * weights


def test_lora_targets_must_exist():
    with pytest.raises(RecipeError, match=r"\['qq'\].*expected q, k, v"):
        LoraConfig(rank=4, alpha=8.0, targets=("q", "qq"))
