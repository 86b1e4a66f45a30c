"""config.json <-> ModelConfig, as plain JSON, because the classes of transformers rename fields between versions.

A setting that the decoder does not support is an error that names it, raised before tensors are read.
"""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from gram_jax.errors import LayoutError
from gram_jax.model.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
    misfit,
)

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
FAMILIES = tuple(CLASSES)

# Numbers of ModelConfig under their names in config.json.
_NUMBERS = {
    "vocab_size": "vocab_size",
    "embed_size": "hidden_size",
    "layers": "num_hidden_layers",
    "query_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "mlp_size": "intermediate_size",
    "context_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
_ORIGINAL = "original_max_position_embeddings"
# Kinds of rope scaling: the class, and its fields under their names in config.json, in their order, with the value of
# an absent one (...: it must be there).
_SCALINGS: Mapping[str, tuple[type[RopeScaling], Mapping[str, Any]]] = {
    "linear": (LinearScaling, {"factor": ...}),
    "dynamic": (DynamicScaling, {"factor": ...}),
    "llama3": (
        Llama3Scaling,
        {"factor": ..., "low_freq_factor": ..., "high_freq_factor": ..., _ORIGINAL: ...},
    ),
    "yarn": (
        YarnScaling,
        {"factor": ..., _ORIGINAL: ..., "beta_fast": 32.0, "beta_slow": 1.0}
        | dict.fromkeys(("attention_factor", "mscale", "mscale_all_dim"))
        | {"truncate": True},
    ),
}
# Other entries of such a block that have no effect, or are read elsewhere.
_BESIDE_SCALING = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "finetuned",
    _ORIGINAL,
}

# Fields that enable what the decoder does not support: allowed values (None: absent or null).
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish", None),
    "mlp_bias": (False, None),
    "attention_bias": (False, None),  # in llama and qwen3 also a bias of the output projection
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "use_mrope": (False, None),
    "num_experts": (0, None),
    "num_local_experts": (0, 1, None),
}


def config_from_hf(found: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig that a config.json describes.

    Rope settings are read as `rope_parameters` (transformers 5) and as `rope_theta` with `rope_scaling` (earlier
    versions). Raises LayoutError naming every field that is missing or not supported.
    """
    family = found.get("model_type")
    if family not in FAMILIES:
        raise LayoutError(
            f"config.json says model_type = {family!r}; gram_jax supports {', '.join(FAMILIES)} (Llama 3.x, SmolLM2, "
            "Qwen2.5, Qwen3 dense)"
        )
    classes = [str(name) for name in found.get("architectures") or ()]
    if any("Classification" in name or "Reward" in name for name in classes):
        raise LayoutError(
            f"config.json says architectures = {classes}, a model with a scalar head: expected a language model "
            "(...ForCausalLM), which judges by its next token"
        )
    problems = _unsupported(found, family)
    theta, scaling = _rope(found, problems)
    if problems:
        raise LayoutError("config.json cannot be used:\n  " + "\n  ".join(problems))

    numbers: dict[str, Any] = {field: found.get(name) for field, name in _NUMBERS.items()}
    numbers["norm_eps"] = float(numbers["norm_eps"])
    heads = numbers["query_heads"]
    numbers["kv_heads"] = numbers["kv_heads"] or heads
    usual_size = 128 if family == "qwen3" else numbers["embed_size"] // heads
    numbers["head_size"] = numbers["head_size"] or usual_size
    return ModelConfig(
        family=family,
        **numbers,
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head=bool(found.get("tie_word_embeddings", False)),
    )


def _unsupported(found: Mapping[str, Any], family: str) -> list[str]:
    problems = [
        f"{name} = {found[name]!r} (the decoder supports only {name} = {allowed[0]!r})"
        for name, allowed in _ONLY.items()
        if found.get(name) not in allowed
    ]
    if found.get("use_sliding_window", found.get("sliding_window") is not None):
        problems.append(f"sliding_window = {found.get('sliding_window')!r} is in use")
    if kinds := set(found.get("layer_types") or ()) - {"full_attention"}:
        problems.append(f"layer_types holds {sorted(kinds)} (supported: full_attention)")
    # What an absent field means is defined by the family's class in transformers.
    optional = {"head_dim", "num_key_value_heads"} if family == "llama" else {"head_dim"}
    for field, name in _NUMBERS.items():
        value = found.get(name)
        absent = value is None and name in optional
        if not absent and (expected := misfit(field, value)):
            problems.append(f"{name} = {value!r} (expected {expected})")
    return problems


def _rope(found: Mapping[str, Any], problems: list[str]) -> tuple[float, RopeScaling | None]:
    new, old = found.get("rope_parameters") or {}, found.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in new.values()):
        problems.append("rope_parameters differ between kinds of layers")
        return 0.0, None
    # Some writers put rope_theta into rope_scaling, too; transformers assumes 10000 if it is absent.
    values = [block.get("rope_theta") for block in (new, found, old)]
    for value in values:
        if value is not None and (expected := misfit("rope_theta", value)):
            problems.append(f"rope_theta = {value!r} (expected {expected})")
            return 0.0, None
    thetas = {float(value) for value in values if value is not None}
    scalings = [_scaling(found, block, problems) for block in (new, old) if block]
    if len(thetas) > 1:
        problems.append(f"rope_theta is {sorted(thetas)} in different places")
    if len(set(scalings)) > 1:
        problems.append("rope_parameters and rope_scaling contradict each other")
    return min(thetas, default=10000.0), scalings[0] if scalings else None


def _scaling(
    found: Mapping[str, Any], block: Mapping[str, Any], problems: list[str]
) -> RopeScaling | None:
    kind = block.get("rope_type", block.get("type", "default"))
    if kind not in ("default", *_SCALINGS):
        problems.append(
            f"rope scaling of type {kind!r} (supported: default, {', '.join(_SCALINGS)})"
        )
        return None
    if block.get("partial_rotary_factor") not in (None, 1):
        problems.append(f"partial_rotary_factor = {block['partial_rotary_factor']} (supported: 1)")
    make, fields = _SCALINGS.get(kind, (None, {}))
    if unknown := sorted(block.keys() - fields - _BESIDE_SCALING):
        problems.append(
            f"rope scaling of type {kind!r} has {', '.join(unknown)} (supported: no such entry)"
        )
    if make is None:
        return None
    # As transformers reads it: Phi-3 has it outside the block, others may leave it out.
    original = found.get(_ORIGINAL) or block.get(_ORIGINAL) or found.get("max_position_embeddings")
    values = {**block, _ORIGINAL: original}
    values = {
        name: values.get(name) if values.get(name) is not None else value
        for name, value in fields.items()
    }
    wrong = [
        name
        for name, value in values.items()
        if not (isinstance(value, int | float) or (value is None and fields[name] is None))
        or (isinstance(value, bool) != (name == "truncate"))
        or (name in ("factor", _ORIGINAL) and not value > 0)
    ]
    if wrong:
        problems.append(f"{kind} rope scaling lacks usable values of {', '.join(wrong)}")
        return None
    return make(
        *(
            value
            if value is None or isinstance(value, bool)
            else int(value)
            if name == _ORIGINAL
            else float(value)
            for name, value in values.items()
        )
    )


def _scaling_block(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The block of config.json that `_scaling` reads."""
    for kind, (make, fields) in _SCALINGS.items():
        if isinstance(scaling, make):
            values = dict(zip(fields, astuple(scaling), strict=True))
            return {"rope_type": kind} | {n: x for n, x in values.items() if x is not None}
    return None


def config_to_hf(cfg: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json of this model, rope settings in both spellings; the inverse of `config_from_hf`.

    Raises LayoutError for a combination of traits that no class of transformers has.
    """
    if (cfg.qkv_bias, cfg.qk_norm) != (cfg.family == "qwen2", cfg.family == "qwen3"):
        raise LayoutError(
            f"no class of transformers fits family = {cfg.family!r} with qkv_bias = {cfg.qkv_bias} and qk_norm = "
            f"{cfg.qk_norm}"
        )
    scaling = _scaling_block(cfg.rope_scaling)
    result = {
        "architectures": [CLASSES[cfg.family]],
        "model_type": cfg.family,
        **{name: getattr(cfg, field) for field, name in _NUMBERS.items()},
        "hidden_act": "silu",
        "tie_word_embeddings": cfg.tied_head,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        # transformers 4 reads the first two, transformers 5 the third
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": cfg.rope_theta},
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
    """Raises LayoutError if the embedding table has no row for a token (more rows than tokens are usual)."""
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= cfg.vocab_size or len(tokenizer) > cfg.vocab_size:
        raise LayoutError(
            f"the tokenizer does not fit the weights: it has {len(tokenizer)} tokens with ids up to {highest}, the "
            f"embedding table has {cfg.vocab_size} rows. Use the tokenizer of the model"
        )
