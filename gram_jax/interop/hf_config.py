"""config.json <-> ModelConfig, as plain JSON, because the classes of transformers rename fields between versions.

A setting that the decoder does not support is an error that names it, raised before tensors are read.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gram_jax.errors import LayoutError
from gram_jax.interop.hf_families import (
    FAMILIES,
    Family,
    fits_family,
    read_experts,
    read_traits,
    write_experts,
    write_traits,
)
from gram_jax.interop.hf_rope import read_rope, write_rope
from gram_jax.model.config import HEAD_ROWS, Head, LongScaling, ModelConfig, Traits, misfit

MARGIN = "gram_jax_head"  # "margin" in the config.json of a classifier whose one logit is that of the first label

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
_EXPERT_NUMBERS = {**_NUMBERS, "mlp_size": "moe_intermediate_size"}
# Fields that enable what the decoder does not support: allowed values (None: absent or null).
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "mlp_bias": (False, None),
    "attention_bias": (False, None),  # in llama and qwen3 also a bias of the output projection
    "use_bidirectional_attention": (False, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "use_mrope": (False, None),
    "num_experts": (0, None),
    "num_local_experts": (0, 1, None),
}


# What other entries are, if they are there and not null.
_KINDS: Mapping[str, tuple[type | tuple[type, ...], Sequence[str]]] = {
    "an object": (Mapping, ("rope_scaling", "rope_parameters", "id2label")),
    "a list": (list, ("architectures", "layer_types", "no_rope_layers")),
    "true or false": (bool, ("tie_word_embeddings", "use_sliding_window")),
    "a number of tokens or layers": (
        int,
        ("sliding_window", "max_window_layers", "sliding_window_pattern", "no_rope_layer_interval"),
    ),
    "a finite number above 0": (
        (int, float),
        (
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "partial_rotary_factor",
        ),
    ),
}


def config_from_hf(found: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig that a config.json describes.

    Rope settings are read as `rope_parameters` (transformers 5) and as `rope_theta` with `rope_scaling` (earlier
    versions). Raises LayoutError naming every field that is missing or not supported.
    """
    found = _text_config(found)
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise LayoutError(
            f"config.json says model_type = {kind!r}; gram_jax supports {', '.join(FAMILIES)}. Other models can "
            "run on a server (vLLM, SGLang), with which --server scores"
        )
    family = FAMILIES[kind]
    found = {
        **family.defaults,
        **{name: x for name, x in found.items() if x is not None or name not in family.defaults},
    }
    problems = _unsupported(found, family)
    if problems:
        raise LayoutError("config.json cannot be used:\n  " + "\n  ".join(problems))
    numbers: dict[str, Any] = {name: found.get(x) for name, x in _numbers(family).items()}
    numbers["norm_eps"] = float(numbers["norm_eps"])
    heads = numbers["query_heads"]
    kv_heads = numbers["kv_heads"] = numbers["kv_heads"] or heads
    head_size = numbers["head_size"] = numbers["head_size"] or numbers["embed_size"] // heads
    head = _head(found, problems)
    theta, scaling, local = read_rope(found, family, problems)
    traits = read_traits(found, family, head_size, problems)
    experts = read_experts(found, family, problems)
    rotated = traits.get("rotary_size", head_size)
    if isinstance(scaling, LongScaling):
        numbers["context_length"] = scaling.original_context
        if len(scaling.short) != rotated // 2:
            problems.append(
                f"short_factor has {len(scaling.short)} numbers, expected {rotated // 2}"
            )
    if heads % kv_heads or head_size % 2 or rotated % 2:
        problems.append(
            f"{heads} attention heads over {kv_heads} key-value heads of size {head_size}, {rotated} of it rotated: "
            "heads must be a multiple of key-value heads, and both sizes even"
        )
    if problems:
        raise LayoutError("config.json cannot be used:\n  " + "\n  ".join(problems))
    return ModelConfig(
        family=kind,
        **numbers,
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_head=bool(found.get("tie_word_embeddings", False)),
        head=head,
        traits=Traits(**traits, local_rope_theta=local),
        experts=experts,
    )


def _numbers(family: Family) -> Mapping[str, str]:
    return _EXPERT_NUMBERS if family.experts else _NUMBERS


def _text_config(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json about text, if the model reads images as well."""
    text = found.get("text_config")
    if not isinstance(text, Mapping):
        return found
    outer = {
        name: found[name]
        for name in ("tie_word_embeddings", "architectures", "id2label")
        if name in found
    }
    return {**outer, **text}


def _is(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether a value is of these kinds; a truth value is no number, and numbers are finite and above 0."""
    if kinds is bool or not isinstance(value, bool | int | float):
        return isinstance(value, kinds)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < math.inf


def _head(found: Mapping[str, Any], problems: list[str]) -> Head:
    """By `architectures`, and for a classifier the number of its labels, which is that of id2label (default 2)."""
    classes = [str(name) for name in found.get("architectures") or ()]
    if all(
        re.search(r"ForCausalLM$|ForConditionalGeneration$|^((?!For).)*Model$", x) for x in classes
    ):
        return "language"
    if any(not name.endswith("ForSequenceClassification") for name in classes):
        problems.append(
            f"architectures = {classes} (supported: ...ForCausalLM, and ...ForSequenceClassification with one or two "
            "labels)"
        )
        return "language"
    labels = found.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else found.get("num_labels", 2)
    if count == 2:
        return "labels"
    if count != 1:
        problems.append(f"id2label has {count} labels (supported: 1, a reward; 2, the verdicts)")
    return "margin" if found.get(MARGIN) == "margin" else "scalar"


def _unsupported(found: Mapping[str, Any], family: Family) -> list[str]:
    problems = [
        f"{name} = {found[name]!r} (expected {expected})"
        for expected, (kinds, names) in _KINDS.items()
        for name in names
        if found.get(name) is not None and not _is(found[name], kinds)
    ]
    problems += [
        f"{name} = {found[name]!r} (the decoder supports only {name} = {allowed[0]!r})"
        for name, allowed in _ONLY.items()
        if found.get(name) not in allowed and not (family.experts and name.endswith("_experts"))
    ]
    name, activation = family.activation
    same = {"silu": ("silu", "swish", None)}.get(activation, (activation,))
    if found.get(name) not in same:
        problems.append(f"{name} = {found.get(name)!r} (supported: {activation!r})")
    if not family.partial and found.get("partial_rotary_factor") not in (1, None):
        problems.append(f"partial_rotary_factor = {found['partial_rotary_factor']} (supported: 1)")
    # What an absent field means is defined by the family's class in transformers.
    optional = (
        {"head_dim"}
        if family.qkv_bias or family.name == "Qwen3"
        else {"head_dim", "num_key_value_heads"}
    )
    for field, name in _numbers(family).items():
        value = found.get(name)
        absent = value is None and name in optional
        if not absent and (expected := misfit(field, value)):
            problems.append(f"{name} = {value!r} (expected {expected})")
    return problems


def config_to_hf(
    cfg: ModelConfig, dtype: str, labels: Sequence[str] = ("LABEL_0", "LABEL_1")
) -> dict[str, Any]:
    """config.json of this model, rope settings in both spellings; the inverse of `config_from_hf`.

    labels: names of a classifier's labels. Raises LayoutError for a combination of traits that no class of transformers
    has.
    """
    family = FAMILIES[cfg.family]
    if not fits_family(cfg):
        raise LayoutError(
            f"no class of transformers fits family = {cfg.family!r} with qkv_bias = {cfg.qkv_bias}, qk_norm = "
            f"{cfg.qk_norm}, experts = {cfg.experts} and {cfg.traits}"
        )
    name, activation = family.activation
    language = cfg.head == "language"
    result = {
        "architectures": [f"{family.name}ForCausalLM" if language else family.classifier_class],
        "model_type": cfg.family,
        **{name: getattr(cfg, field) for field, name in _NUMBERS.items()},
        name: activation,
        "tie_word_embeddings": cfg.tied_head,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        **({} if family.qkv_bias else {"attention_bias": False}),
        **write_rope(cfg, family),
        **write_traits(cfg),
        **write_experts(cfg),
    }
    if cfg.family == "llama":
        result |= {"mlp_bias": False, "pretraining_tp": 1}
    return result | _label_settings(cfg.head, labels)


def _label_settings(head: Head, labels: Sequence[str]) -> dict[str, Any]:
    """Entries of a classifier's config.json; transformers counts id2label, it does not store num_labels."""
    if head == "language":
        return {}
    names = dict(enumerate(labels[: HEAD_ROWS[head]]))
    return {
        "id2label": {str(i): name for i, name in names.items()},
        "label2id": {name: i for i, name in names.items()},
        "problem_type": {"scalar": "regression", "labels": "single_label_classification"}.get(head),
        "use_sep_token": False,
        **({MARGIN: "margin"} if head == "margin" else {}),
    }


def check_vocabulary(tokenizer: Any, cfg: ModelConfig) -> None:
    """Raises LayoutError if the embedding table has no row for a token (more rows than tokens are usual)."""
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= cfg.vocab_size or len(tokenizer) > cfg.vocab_size:
        raise LayoutError(
            f"the tokenizer does not fit the weights: it has {len(tokenizer)} tokens with ids up to {highest}, the "
            f"embedding table has {cfg.vocab_size} rows. Use the tokenizer of the model"
        )
