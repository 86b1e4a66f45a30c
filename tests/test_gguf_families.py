"""GGUF files of every family, written with the package's own table of names: the model of the Hugging Face folder."""

from dataclasses import replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_families import LONG, SIZES, WINDOW, logits_of_transformers, random_model, rows
from test_families import MODELS as FAMILIES
from test_gguf import neighbours

from gram_jax.batch import Sequences
from gram_jax.errors import LayoutError
from gram_jax.interop.gguf import gguf_config, load_gguf
from gram_jax.interop.hf_files import load_hf
from gram_jax.model.decoder import hidden_states
from gram_jax.model.heads import label_logits

pytestmark = pytest.mark.torch

GEMMA = dict(head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16, rms_norm_eps=1e-6)
# The architecture of the file, the class of the config, its settings, and the metadata beyond sizes.
MODELS = {
    "mistral": ("llama", "Mistral", dict(head_dim=16, sliding_window=None), {}),
    "qwen3_moe": (
        "qwen3moe",
        *FAMILIES["qwen3_moe"],
        {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 24},
    ),
    "smollm3": ("smollm3", "SmolLM3", dict(no_rope_layers=[1, 1, 1, 0]), {}),
    "ministral3": (
        "mistral3",
        *FAMILIES["ministral3"],
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.1,
        },
    ),
    "mistral small": ("mistral3", "Mistral", dict(head_dim=16, sliding_window=None), {}),
    "olmo2": ("olmo2", *FAMILIES["olmo2"], {}),
    "olmo3": (
        "olmo2",
        "Olmo3",
        dict(
            layer_types=["full_attention", "sliding_attention"] * 2,
            **FAMILIES["olmo3"][1],
        ),
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
            "attention.sliding_window": WINDOW,
            "attention.sliding_window_pattern": [False, True, False, True],
        },
    ),
    "phi3": ("phi3", "Phi3", {}, {"attention.sliding_window": 0}),
    "phi4 mini": (
        "phi3",
        "Phi3",
        dict(
            rope_parameters=LONG | {"partial_rotary_factor": 0.75},
            original_max_position_embeddings=128,
        ),
        {"rope.dimension_count": 6, "rope.scaling.original_context_length": 128},
    ),
    "gemma2": (
        "gemma2",
        "Gemma2",
        GEMMA,
        {
            "attention.sliding_window": WINDOW,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        GEMMA
        | dict(
            num_hidden_layers=6,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        ),
        {
            "attention.sliding_window": WINDOW,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def files(request, tmp_path_factory):
    """(model of transformers, its folder, its GGUF file)."""
    arch, name, settings, metadata = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    model = random_model(name, settings, folder)
    config = {**SIZES, "head_dim": 8, **settings, "rms_norm_eps": model.config.rms_norm_eps}
    return model, folder, write(folder / "x.gguf", arch, folder, config, metadata, theta(model))


def theta(model):
    found = model.config.rope_parameters
    return found.get("full_attention", found)["rope_theta"]


def write(path, arch, folder, config, metadata, rope_theta):
    """A file as llama.cpp's converter writes it."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(rope_theta)
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[list] = writer.add_array
        add[type(value)](f"{arch}.{key}", value)
    for name, array in converted(arch, load_file(folder / "model.safetensors"), config).items():
        writer.add_tensor(name, array)
    if "original_max_position_embeddings" in config:
        for kind in ("short", "long"):
            factors = np.array(config["rope_parameters"][f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(arch, tensors, config):
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    found, experts = {}, {}
    for name, array in sorted(tensors.items()):
        if arch.startswith("gemma") and (name == "lm_head.weight"):
            continue
        if ".experts." in name:
            layer, _, rest = name.partition(".experts.")
            expert, _, matrix = rest.partition(".")
            experts.setdefault(f"{layer}.experts.{matrix}", {})[int(expert)] = array
            continue
        if arch in ("llama", "mistral3", "smollm3") and ("q_proj" in name or "k_proj" in name):
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            array = neighbours(array, config[heads])
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        found[names.get_name(name, try_suffixes=(".weight",))] = array
    for name, parts in experts.items():
        stack = np.stack([parts[expert] for expert in sorted(parts)])
        found[names.get_name(name, try_suffixes=(".weight",))] = stack
    return found


def test_a_file_is_the_model_of_its_folder(files, one_device):
    _, folder, path = files
    cfg, params = load_hf(folder, one_device, None)
    found, same = load_gguf(path, one_device, None)
    assert found == replace(cfg, family=found.family)  # Mistral's files are those of a Llama
    exact = cfg.traits.norm_offset == 0  # the offset is added to the weights of the file's norms
    for leaf, expected in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=0 if exact else 2e-7, rtol=0)


@pytest.mark.slow
def test_logits_of_a_file_are_those_of_transformers(files, one_device, execution):
    model, _, path = files
    cfg, params = load_gguf(path, one_device, None)
    tokens = rows(40)
    seqs = Sequences(tokens, np.arange(40, dtype=np.int32) + 0 * tokens, np.ones_like(tokens))
    run = jax.jit(lambda params: label_logits(params, cfg, hidden(params), (5, 9)))

    def hidden(params):
        return hidden_states(params, cfg, seqs, execution)

    theirs = logits_of_transformers((None, model), tokens)[..., [5, 9]]
    np.testing.assert_allclose(run(params), theirs, atol=1e-4, rtol=1e-5)
    assert jnp.abs(theirs).max() > 1


def test_experts_of_another_architecture_are_named(tmp_path, one_device):
    """Mixtral's files are of the architecture llama."""
    folder = tmp_path / "model"
    random_model("Mistral", dict(head_dim=16, sliding_window=None), folder)
    config = {**SIZES, "head_dim": 16}
    path = write(tmp_path / "x.gguf", "llama", folder, config, {"expert_count": 8}, 1e4)
    with pytest.raises(LayoutError, match="mixture of experts"):
        gguf_config(path)
