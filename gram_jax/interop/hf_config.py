"""config.json <-> ModelConfig. Read as plain JSON, because the classes of transformers rename
fields between versions.

Whatever our decoder would compute differently is refused here, by name, before any tensor is read.
"""

from collections.abc import Mapping
from typing import Any

from gram_jax.errors import LayoutError
from gram_jax.model.config import ModelConfig, RopeScaling

FAMILIES = ("llama", "qwen2", "qwen3")
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Fields that switch on something our decoder does not do: allowed values (None: absent or null).
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish", None),
    "mlp_bias": (False, None),
    "attention_bias": (
        False,
        None,
    ),  # on llama and qwen3 it also puts a bias on the output projection
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "use_mrope": (False, None),
    "num_experts": (0, None),
    "num_local_experts": (0, 1, None),
}


def config_from_hf(found: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig that a config.json describes.

    Rope settings are read in both spellings: `rope_parameters` (transformers 5) and `rope_theta`
    with `rope_scaling` (before). Raises LayoutError naming every field that is missing or asks for
    something else.
    """
    family = found.get("model_type")
    if family not in FAMILIES:
        raise LayoutError(
            f"config.json says model_type = {family!r}; gram_jax runs {', '.join(FAMILIES)} (Llama "
            "3.x, SmolLM2, Qwen2.5, Qwen3 dense)"
        )
    classes = [str(name) for name in found.get("architectures") or ()]
    if any("Classification" in name or "Reward" in name for name in classes):
        raise LayoutError(
            f"config.json says architectures = {classes}, a model with a scalar head: expected a language model "
            "(...ForCausalLM), which judges by its next token"
        )
    problems = _unfit(found, family)
    theta, scaling = _rope(found, problems)
    if problems:
        raise LayoutError("config.json cannot be used:\n  " + "\n  ".join(problems))

    heads = found["num_attention_heads"]
    kv_heads = found.get("num_key_value_heads") or heads
    head_size = found.get("head_dim") or (
        128 if family == "qwen3" else found["hidden_size"] // heads
    )
    if heads % kv_heads or head_size % 2:
        raise LayoutError(
            f"config.json: {heads} attention heads over {kv_heads} key-value heads of size "
            f"{head_size}: heads must be a multiple of key-value heads, and the head size even"
        )
    return ModelConfig(
        family=family,
        vocab_size=found["vocab_size"],
        embed_size=found["hidden_size"],
        layers=found["num_hidden_layers"],
        query_heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_size=found["intermediate_size"],
        norm_eps=float(found["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head=bool(found.get("tie_word_embeddings", False)),
        context_length=found["max_position_embeddings"],
    )


def _unfit(found: Mapping[str, Any], family: str) -> list[str]:
    """Fields that ask for what the decoder does not do, and fields that are missing or no positive numbers."""
    problems = [
        f"{name} = {found[name]!r} (this decoder has only {name} = {allowed[0]!r})"
        for name, allowed in _ONLY.items()
        if found.get(name) not in allowed
    ]
    if found.get("use_sliding_window") or (
        "use_sliding_window" not in found and found.get("sliding_window") is not None
    ):
        problems.append(f"sliding_window = {found.get('sliding_window')!r} is in use")
    if kinds := set(found.get("layer_types") or ()) - {"full_attention"}:
        problems.append(f"layer_types holds {sorted(kinds)} (only full_attention is known)")

    required = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ]
    # Where a field may be absent, the family's own class of transformers says what absence means.
    if family != "llama":
        required.append("num_key_value_heads")
    for name in required:
        value = found.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            problems.append(f"{name} = {value!r} (expected a positive number)")
    return problems


def _rope(found: Mapping[str, Any], problems: list[str]) -> tuple[float, RopeScaling | None]:
    new = found.get("rope_parameters") or {}
    old = found.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in new.values()):
        problems.append("rope_parameters differ between kinds of layers")
        return 0.0, None
    # Some writers put rope_theta into rope_scaling as well; 10000 is what transformers assumes for
    # an absent one.
    thetas = {
        float(value)
        for value in (new.get("rope_theta"), found.get("rope_theta"), old.get("rope_theta"))
        if value is not None
    }
    scalings = [_scaling(block, problems) for block in (new, old) if block]
    if len(thetas) > 1:
        problems.append(f"rope_theta is given as {sorted(thetas)} in different places")
    if len(set(scalings)) > 1:
        problems.append("rope_parameters and rope_scaling contradict each other")
    return (min(thetas) if thetas else 10000.0), (scalings[0] if scalings else None)


def _scaling(block: Mapping[str, Any], problems: list[str]) -> RopeScaling | None:
    kind = block.get("rope_type", block.get("type", "default"))
    if "mrope_section" in block or kind not in ("default", "llama3"):
        problems.append(f"rope scaling of type {kind!r} (known: default, llama3)")
        return None
    if block.get("partial_rotary_factor") not in (None, 1):
        problems.append(f"partial_rotary_factor = {block['partial_rotary_factor']} (known: 1)")
    if kind == "default":
        return None
    names = (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    )
    if missing := [name for name in names if not isinstance(block.get(name), int | float)]:
        problems.append(f"llama3 rope scaling lacks {', '.join(missing)}")
        return None
    factor, low, high, original = (block[name] for name in names)
    return RopeScaling(float(factor), float(low), float(high), int(original))


def config_to_hf(cfg: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of this model, rope settings in both spellings. `config_from_hf` is the inverse.

    Raises LayoutError for a mixture of traits that no class of transformers has.
    """
    if (cfg.qkv_bias, cfg.qk_norm) != (cfg.family == "qwen2", cfg.family == "qwen3"):
        raise LayoutError(
            f"no class of transformers fits family = {cfg.family!r} with qkv_bias = {cfg.qkv_bias} "
            f"and qk_norm = {cfg.qk_norm}"
        )
    scaling = cfg.rope_scaling and {
        "rope_type": "llama3",
        "factor": cfg.rope_scaling.factor,
        "low_freq_factor": cfg.rope_scaling.low_frequency_factor,
        "high_freq_factor": cfg.rope_scaling.high_frequency_factor,
        "original_max_position_embeddings": cfg.rope_scaling.original_context,
    }
    result = {
        "architectures": [CLASSES[cfg.family]],
        "model_type": cfg.family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embed_size,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.query_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "intermediate_size": cfg.mlp_size,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied_head,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        # transformers 4 reads the first two, transformers 5 the third
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            **(scaling or {"rope_type": "default"}),
            "rope_theta": cfg.rope_theta,
        },
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if cfg.family == "llama":
        result |= {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    else:
        result |= {"use_sliding_window": False, "sliding_window": None}
    if cfg.family == "qwen3":
        result["attention_bias"] = False
    return result


def check_vocabulary(tokenizer: Any, cfg: ModelConfig) -> None:
    """Raises LayoutError if a token's id lies outside the embedding table (a larger table is usual)."""
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= cfg.vocab_size or len(tokenizer) > cfg.vocab_size:
        raise LayoutError(
            f"the tokenizer does not fit the weights: it has {len(tokenizer)} tokens with ids up "
            f"to {highest}, the embedding table has {cfg.vocab_size} rows. Use the tokenizer that "
            "belongs to the model"
        )
