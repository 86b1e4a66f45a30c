"""Every family: random models of transformers, read from their folders, give the same numbers in every program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import family_tokenizer
from safetensors.numpy import load_file, save_file

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.errors import GramWarning, LayoutError
from gram_jax.interop.hf_config import config_from_hf, config_to_hf
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hf_families import FAMILIES
from gram_jax.interop.hf_files import load_hf
from gram_jax.interop.hf_names import file_tensors
from gram_jax.judge.encode import Encoded, encode_items
from gram_jax.judge.spec import make_spec
from gram_jax.losses import smoothed_verdict_nll
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.generate import SamplingConfig, generate
from gram_jax.model.heads import hidden_at, label_logits
from gram_jax.scoring.engine import ScoringEngine
from gram_jax.scoring.scorer import Scorer

pytestmark = pytest.mark.torch

SIZES = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
WINDOW = 11
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0] * 3,
}
# The class of its config, and settings beyond SIZES that exercise all traits.
MODELS = {
    "mistral": ("Mistral", dict(head_dim=16, sliding_window=None)),
    "mistral with a window": ("Mistral", dict(sliding_window=WINDOW)),
    "ministral": (
        "Ministral",
        dict(
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
    ),
    "ministral3": (
        "Ministral3",
        dict(
            head_dim=16,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 16.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        ),
    ),
    "qwen3 with a window": (
        "Qwen3",
        dict(head_dim=8, sliding_window=WINDOW, use_sliding_window=True, max_window_layers=1),
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(
            head_dim=16,
            moe_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=3,
            norm_topk_prob=True,
        ),
    ),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 0, 1, 1])),
    "phi3": ("Phi3", {}),
    "phi4 mini": (
        "Phi3",
        dict(
            rope_parameters=LONG | {"partial_rotary_factor": 0.75},
            original_max_position_embeddings=128,
        ),
    ),
    "gemma2": ("Gemma2", dict(head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=24)),
    "gemma3_text": (
        "Gemma3Text",
        dict(
            head_dim=16,
            sliding_window=WINDOW,
            query_pre_attn_scalar=24,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            },
        ),
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        dict(
            sliding_window=WINDOW,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 64,
                },
            },
        ),
    ),
}


# Together they have all traits.
USUAL = ("gemma2", "olmo3", "phi4 mini")
PARAMS = [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


@pytest.fixture(scope="module", params=PARAMS)
def model(request, tmp_path_factory):
    """(name, model of transformers, its folder)."""
    folder = tmp_path_factory.mktemp("model")
    return request.param, random_model(*MODELS[request.param], folder), folder


def random_model(name, settings, folder):
    """A model of transformers with random weights, none of them special, and its folder."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    torch.manual_seed(0)
    found = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for path, weight in found.named_parameters():
            around = 1.0 if "norm" in path and "Gemma" not in name else 0.0
            scale = 1.0 if "embed" in path or "head" in path else 0.25
            weight.copy_(around + scale * torch.randn(weight.shape))
    found.save_pretrained(folder)
    return found


@pytest.fixture
def loaded(model, one_device):
    return load_hf(model[2], one_device, None)


def rows(length, count=2, seed=1):
    return np.random.default_rng(seed).integers(3, 128, (count, length)).astype(np.int32)


def logits_of_transformers(model, tokens):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model[1](torch.from_numpy(tokens).long()).logits.numpy()


def gradients_of_transformers(model):
    """By the names of a folder, which holds experts apart that the model holds in one tensor."""
    found = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    for name in [name for name in found if ".experts." in name]:
        (layer, matrix), whole = name.split(".experts."), found.pop(name)
        if matrix == "gate_up_proj":
            gate, up = np.split(whole, 2, axis=1)
            parts = {"gate_proj": gate, "up_proj": up}
        else:
            parts = {"down_proj": whole}
        for part, stack in parts.items():
            for expert, one in enumerate(stack):
                found[f"{layer}.experts.{expert}.{part}.weight"] = one
    return found


@pytest.mark.parametrize("backend", ["blocked", pytest.param("xla", marks=pytest.mark.slow)])
def test_logits_are_those_of_transformers(backend, model, loaded, one_device):
    cfg, params = loaded
    tokens = rows(40)
    seqs = Sequences(tokens, np.arange(40, dtype=np.int32) + 0 * tokens, np.ones_like(tokens))
    hidden = hidden_states(params, cfg, seqs, Execution("float32", backend, "none", one_device))
    theirs = logits_of_transformers(model, tokens)
    at = jnp.arange(40)[None].repeat(2, 0)
    for labels in [(5, 9), (77, 101)]:
        ours = label_logits(params, cfg, hidden_at(hidden, at), labels)
        np.testing.assert_allclose(ours, theirs[..., list(labels)], atol=1e-4, rtol=1e-5)
    assert np.abs(theirs).max() > 1


@pytest.mark.slow
def test_gradients_of_the_verdict_are_those_of_transformers(model, loaded, execution):
    torch = pytest.importorskip("torch")
    cfg, params = loaded
    tokens, labels = rows(30), (5, 9)
    seqs = Sequences(tokens, np.arange(30, dtype=np.int32) + 0 * tokens, np.ones_like(tokens))

    def loss(params):
        hidden = hidden_at(hidden_states(params, cfg, seqs, execution), jnp.full((2, 1), 29))
        logits = label_logits(params, cfg, hidden, labels)
        return smoothed_verdict_nll(logits, jnp.array([[0], [1]]), 0.0).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    model[1].zero_grad()
    logits = model[1](torch.from_numpy(tokens).long()).logits[:, -1, list(labels)]
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum")
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-4)
    leaves = tree.flatten(gradients)
    expected_of = gradients_of_transformers(model[1])
    for name, slots in file_tensors(cfg).items():
        parts = [np.asarray(leaves[s.rule.path]) for s in slots]
        parts = [s.to_stored(x[s.at]) for s, x in zip(slots, parts, strict=True)]
        expected = expected_of[name]
        error = np.abs(np.concatenate(parts) - expected).max()
        assert error <= 1e-4 * max(1.0, np.abs(expected).max()), name


@pytest.mark.slow
def test_padded_rows_and_prefix_trees_give_the_logits_of_transformers(model, loaded, one_device):
    cfg, params = loaded
    execution = Execution("float32", "blocked", "none", one_device, packed=False)
    labels, shared = (5, 9), rows(17, 1)[0]
    texts = [np.concatenate([shared, rows(n, 1, n)[0]]) for n in (30, 21)]
    encoded = [
        Encoded(text, np.zeros(len(text), np.float32), field_starts=(17, 25)) for text in texts
    ]
    expected = [logits_of_transformers(model, text[None])[0, -1] for text in texts]
    expected = [z[labels[0]] - z[labels[1]] for z in expected]
    for method in ("padded", "prefix_shared"):
        engine = ScoringEngine(params, cfg, labels, execution, 64, method)
        for paired in (True, False):
            found = engine.label_logit_diffs(encoded, paired=paired)
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_greedy_generation_is_that_of_transformers_token_for_token(model, loaded, execution):
    torch = pytest.importorskip("torch")
    cfg, params = loaded
    prompts = [rows(n, 1, n)[0] for n in (23, 5)]
    found = generate(params, cfg, prompts, execution, SamplingConfig(12, temperature=0))
    for prompt, tokens in zip(prompts, found.tokens, strict=True):
        ids = prompt[None]
        for _ in range(12):  # without a cache, which is the definition
            following = logits_of_transformers(model, ids)[:, -1].argmax(-1)
            ids = np.concatenate([ids, following[:, None].astype(np.int32)], 1)
        assert tokens.tolist() == ids[0, len(prompt) :].tolist()
    assert torch is not None


def test_a_folder_comes_back_bit_for_bit_with_the_same_config(model, loaded, tmp_path, one_device):
    cfg, params = loaded
    folder = export_hf(tmp_path / "one", cfg, params, dtype=None, tokenizer=None, spec=None)
    stored, again = (load_file(x / "model.safetensors") for x in (model[2], folder))
    stored.pop("lm_head.weight", None) if cfg.tied_head else None
    assert again.keys() == stored.keys()
    assert all(again[name].tobytes() == stored[name].tobytes() for name in stored)
    assert load_hf(folder, one_device, None)[0] == cfg
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert type(theirs) is type(model[1].config)
    for name in ("sliding_window", "layer_types", "no_rope_layers"):
        assert getattr(theirs, name, None) == getattr(model[1].config, name, None), name
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokens = rows(40)
    expected = logits_of_transformers(model, tokens)
    np.testing.assert_array_equal(logits_of_transformers((None, again.eval()), tokens), expected)


def test_both_spellings_of_rope_are_one_config(model, loaded):
    cfg, _ = loaded
    both = json.loads(json.dumps(config_to_hf(cfg, "float32")))
    old = {name: value for name, value in both.items() if name != "rope_parameters"}
    new = {
        n: x
        for n, x in both.items()
        if n not in ("rope_theta", "rope_scaling", "rope_local_base_freq")
    }
    assert config_from_hf(old) == config_from_hf(new) == cfg


def test_a_model_with_images_is_read_as_its_text_model(tmp_path, one_device):
    transformers = pytest.importorskip("transformers")
    text = transformers.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=WINDOW)
    plain = transformers.AutoModelForCausalLM.from_config(text)
    plain.save_pretrained(tmp_path / "text")
    cfg, params = load_hf(tmp_path / "text", one_device, None)
    settings = json.loads((tmp_path / "text" / "config.json").read_text())
    images = tmp_path / "images"
    images.mkdir()
    outer = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": settings,
    }
    (images / "config.json").write_text(json.dumps(outer))
    stored = load_file(tmp_path / "text" / "model.safetensors")
    renamed = {f"language_model.{name}": array for name, array in stored.items()}
    patch = {"vision_tower.patch.weight": np.ones((2, 2), np.float32)}
    save_file(renamed | patch, images / "model.safetensors")
    with pytest.warns(GramWarning, match="vision_tower"):
        found, same = load_hf(images, one_device, None)
    assert found == cfg
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("family", "change", "name"),
    [
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma2", {"layer_types": ["linear_attention"] * 4}, "layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("olmo2", {"sliding_window": 7}, "sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts"),
        ("qwen3", {"num_experts": 8}, "num_experts"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_a_family_does_not_do_is_refused_by_name(family, change, name):
    settings = SIZES | {"rms_norm_eps": 1e-5, "model_type": family}
    if family == "qwen3_moe":
        settings |= {"moe_intermediate_size": 24, "num_experts": 8}
    for entry in ("pad_token_id", "bos_token_id", "eos_token_id"):
        del settings[entry]
    config_from_hf(settings)
    with pytest.raises(LayoutError, match=name):
        config_from_hf(settings | change)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_classes_of_a_family_exist(family):
    transformers = pytest.importorskip("transformers")
    assert hasattr(transformers, f"{FAMILIES[family].name}ForCausalLM")
    assert hasattr(transformers, FAMILIES[family].classifier_class)


def test_a_judge_of_a_tokenizer_of_sentencepiece_scores_as_transformers(
    tmp_path, one_device, execution
):
    """From texts to scores: chat template, tokens, and both orders of a Gemma-like model."""
    transformers = pytest.importorskip("transformers")
    torch, tokenizer = pytest.importorskip("torch"), family_tokenizer("gemma")
    spec = make_spec(tokenizer, max_length=300)
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    config = transformers.Gemma2Config(**sizes, head_dim=16, sliding_window=64)
    torch.manual_seed(0)
    found = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    found.save_pretrained(tmp_path)
    cfg, params = load_hf(tmp_path, one_device, None)
    score = Scorer(params, cfg, tokenizer, spec, execution).score("Name a tree.", "  oak", "bay\n")
    orders = [("Name a tree.", "  oak", "bay\n"), ("Name a tree.", "bay\n", "  oak")]
    diffs = []
    for text in encode_items(tokenizer, spec.comparison, orders, 300):
        logits = logits_of_transformers((None, found), text.tokens[None])[0, -1]
        diffs.append(float(logits[spec.label_ids[0]] - logits[spec.label_ids[1]]))
    assert score.margin == pytest.approx((diffs[0] - diffs[1]) / 2, abs=1e-5)
