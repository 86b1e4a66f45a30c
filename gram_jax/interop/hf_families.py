"""Model families by the model_type of config.json: their differences from Llama, and the entries that state them.

A family is declared here, and model/layer.py reads its traits; no other code depends on its name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from gram_jax.model.config import MOST_EXPERTS, Experts, LayerType, ModelConfig, Traits
from gram_jax.model.layer_types import layer_types

_TYPES: dict[str, LayerType] = {"full_attention": "full", "sliding_attention": "sliding"}
_WINDOW = "sliding_window"


@dataclass(frozen=True)
class Family:
    """A model_type of config.json.

    name: of its classes in transformers. fixed: traits of all its models. defaults: entries that its config.json may
    lack, beyond those that every family's may. windows: layers with a sliding window; "none", "all" (those of a model
    with `sliding_window`), "types" (by `layer_types`), or "switched" (by `layer_types`, if `use_sliding_window`).
    pattern: layer types if `layer_types` is absent, repeated. activation: name and value of its entry.
    by_type: rope settings differ between full and sliding layers. partial: some dimensions need not rotate.
    """

    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool = False
    qk_norm: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    windows: Literal["none", "all", "types", "switched"] = "none"
    pattern: tuple[LayerType, ...] = ("full",)
    activation: tuple[str, str] = ("hidden_act", "silu")
    by_type: bool = False
    partial: bool = False
    theta: float = 10000.0
    query_scaling: bool = False  # queries grow with their position
    experts: bool = False  # each MLP is a mixture
    classifier: str = ""  # class of its classifiers, if it is not `name` with the usual end

    @property
    def classifier_class(self) -> str:
        """Name of the family's sequence classifier class in transformers."""
        return self.classifier or f"{self.name}ForSequenceClassification"


_GEMMA: dict[str, Any] = {"norms": "both", "norm_offset": 1.0, "activation": "gelu_tanh"}
_OLMO: dict[str, Any] = {"norms": "post", "projection_norm": True}
_GELU = ("hidden_activation", "gelu_pytorch_tanh")
_GEMMA_DEFAULTS = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    _WINDOW: 4096,
    "rms_norm_eps": 1e-6,
}
FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral", windows="all"),
    "ministral": Family("Ministral", windows="types", pattern=("sliding",)),
    "ministral3": Family("Ministral3", windows="all", theta=1e6, query_scaling=True),
    "qwen2": Family("Qwen2", qkv_bias=True, windows="switched"),
    "qwen3": Family("Qwen3", qk_norm=True, defaults={"head_dim": 128}, windows="switched"),
    "qwen3_moe": Family(
        "Qwen3Moe",
        qk_norm=True,
        defaults={"use_sliding_window": False},
        windows="all",
        experts=True,
    ),
    "smollm3": Family(
        "SmolLM3", defaults={"tie_word_embeddings": True, "no_rope_layer_interval": 4}, theta=2e6
    ),
    "phi3": Family("Phi3", windows="all", partial=True),
    "gemma2": Family(
        "Gemma2",
        _GEMMA,
        defaults=_GEMMA_DEFAULTS
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        windows="types",
        pattern=("sliding", "full"),
        activation=_GELU,
    ),
    "gemma3_text": Family(
        "Gemma3",
        _GEMMA,
        qk_norm=True,
        # A config.json with images states of its text_config only what differs from these.
        defaults=_GEMMA_DEFAULTS
        | {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}
        | {"max_position_embeddings": 131072, "sliding_window_pattern": 6},
        windows="types",
        pattern=("sliding",) * 5 + ("full",),
        activation=_GELU,
        by_type=True,
        theta=1e6,
        classifier="Gemma3TextForSequenceClassification",
    ),
    "olmo2": Family("Olmo2", _OLMO, qk_norm=True),
    "olmo3": Family(
        "Olmo3",
        _OLMO,
        qk_norm=True,
        windows="types",
        pattern=("sliding",) * 3 + ("full",),
        by_type=True,
        theta=5e5,
    ),
}


def read_experts(found: Mapping[str, Any], family: Family, problems: list[str]) -> Experts | None:
    """The mixture of experts of a family that has one."""
    if not family.experts:
        return None
    count = found.get("num_experts", found.get("num_local_experts"))
    balance = found.get("router_aux_loss_coef", 0.001)
    values = {"num_experts": count, "num_experts_per_tok": found.get("num_experts_per_tok", 8)}
    for name, value in values.items():
        if type(value) is not int or not 1 <= value <= MOST_EXPERTS:
            problems.append(f"{name} = {value!r} (expected an integer from 1 to {MOST_EXPERTS:,})")
    for name in ("norm_topk_prob", "output_router_logits"):
        if type(found.get(name, False)) is not bool:
            problems.append(f"{name} = {found[name]!r} (expected true or false)")
    if type(balance) not in (int, float) or not 0 <= balance < math.inf:
        problems.append(f"router_aux_loss_coef = {balance!r} (expected a finite number from 0)")
    # Layers with a plain MLP among them would need a second stack of weights.
    if found.get("decoder_sparse_step", 1) != 1 or found.get("mlp_only_layers"):
        problems.append(
            f"decoder_sparse_step = {found.get('decoder_sparse_step', 1)!r} and mlp_only_layers = "
            f"{found.get('mlp_only_layers')!r:.60} (supported: experts in every layer)"
        )
    if problems:
        return None
    return Experts(
        *values.values(),
        normalized=found.get("norm_topk_prob", False),
        balance=float(balance) if found.get("output_router_logits", False) else 0.0,
    )


def write_experts(cfg: ModelConfig) -> dict[str, Any]:
    """Entries of config.json that `read_experts` reads."""
    if (experts := cfg.experts) is None:
        return {}
    return {
        "moe_intermediate_size": cfg.mlp_size,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "norm_topk_prob": experts.normalized,
        "output_router_logits": experts.balance > 0,
        "router_aux_loss_coef": experts.balance or 0.001,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def read_traits(
    found: Mapping[str, Any], family: Family, head_size: int, problems: list[str]
) -> dict[str, Any]:
    """Fields of Traits but the rope of sliding layers, from a config.json with its defaults filled in."""
    kinds = _read_types(found, family, problems)
    values = {**family.fixed, "layer_types": _period(kinds)}
    if "sliding" in kinds:
        values["window"] = found.get(_WINDOW)
        if not (type(values["window"]) is int and values["window"] > 0):
            problems.append(f"{_WINDOW} = {found.get(_WINDOW)!r} (expected a number of tokens)")
    if family.partial and (partial := _partial(found)) not in (None, 1):
        values["rotary_size"] = int(head_size * partial)
    if family.activation == _GELU:
        values["embed_scale"] = float(found["hidden_size"]) ** 0.5
        values["query_scale"] = float(found["query_pre_attn_scalar"]) ** -0.5
        values["attention_softcap"] = found.get("attn_logit_softcapping")
        values["logit_softcap"] = found.get("final_logit_softcapping")
    return values


def _partial(found: Mapping[str, Any]) -> Any:
    blocks = (found, found.get("rope_parameters") or {}, found.get("rope_scaling") or {})
    return next((x["partial_rotary_factor"] for x in blocks if "partial_rotary_factor" in x), None)


def _read_types(
    found: Mapping[str, Any], family: Family, problems: list[str]
) -> tuple[LayerType, ...]:
    """The type of each layer."""
    layers, given, window = found["num_hidden_layers"], found.get("layer_types"), found.get(_WINDOW)
    switched_off = family.windows == "switched" and not found.get("use_sliding_window", False)
    if given is not None and (
        not isinstance(given, Sequence) or len(given) != layers or not set(given) <= _TYPES.keys()
    ):
        problems.append(
            f"layer_types = {given!r:.80} (expected num_hidden_layers = {layers} of {', '.join(_TYPES)})"
        )
        return ("full",)
    if family.windows == "all":
        without = window is None or not found.get("use_sliding_window", not family.experts)
        return ("full" if without else "sliding",) * layers
    if family.windows == "none" or switched_off:
        if "sliding_attention" in (given or ()) or (not switched_off and window is not None):
            problems.append(
                f"{_WINDOW} = {window!r} and layer_types = {given!r:.60} (the family {family.name} has no window here)"
            )
        if "no_rope_layer_interval" in found:
            return _without_rope(found, problems)
        return ("full",) * layers
    if given is not None:
        return tuple(_TYPES[kind] for kind in given)
    if family.windows == "switched":
        full = found.get("max_window_layers", layers)
        return tuple("full" if layer < full else "sliding" for layer in range(layers))
    pattern = family.pattern
    if isinstance(length := found.get("sliding_window_pattern"), int) and length > 0:
        pattern = ("sliding",) * (length - 1) + ("full",)
    if window is None:
        pattern = ("full",)
    return tuple(pattern[layer % len(pattern)] for layer in range(layers))


def _without_rope(found: Mapping[str, Any], problems: list[str]) -> tuple[LayerType, ...]:
    layers, interval = found["num_hidden_layers"], found["no_rope_layer_interval"]
    rotated = found.get("no_rope_layers")
    if rotated is None:
        rotated = [(layer + 1) % interval for layer in range(layers)]
    if not isinstance(rotated, Sequence) or len(rotated) != layers:
        problems.append(
            f"no_rope_layers = {rotated!r:.80} (expected num_hidden_layers = {layers} numbers, 0 without)"
        )
        return ("full",)
    return tuple("full" if has else "no_rope" for has in rotated)


def _period(kinds: tuple[LayerType, ...]) -> tuple[LayerType, ...]:
    """The shortest beginning that, repeated, gives all layers."""
    for size in range(1, len(kinds)):
        if all(kind == kinds[at % size] for at, kind in enumerate(kinds)):
            return kinds[:size]
    return kinds


def write_traits(cfg: ModelConfig) -> dict[str, Any]:
    """Entries of config.json that `read_traits` reads."""
    family, traits = FAMILIES[cfg.family], cfg.traits
    names: dict[LayerType, str] = {kind: name for name, kind in _TYPES.items()}
    kinds = layer_types(cfg)
    written: dict[str, Any] = {}
    if family.windows != "none":
        written[_WINDOW] = traits.window
    if family.windows in ("types", "switched"):
        written["layer_types"] = [names[kind] for kind in kinds]
    if family.windows == "switched" or "use_sliding_window" in family.defaults:
        written["use_sliding_window"] = "sliding" in kinds
    if "no_rope_layer_interval" in family.defaults:
        written["no_rope_layers"] = [int(kind != "no_rope") for kind in kinds]
    if family.partial:
        written["partial_rotary_factor"] = (traits.rotary_size or cfg.head_size) / cfg.head_size
    if family.activation == _GELU:
        scalar = (traits.query_scale or cfg.head_size**-0.5) ** -2
        written |= {
            "query_pre_attn_scalar": round(scalar),
            "attn_logit_softcapping": traits.attention_softcap,
            "final_logit_softcapping": traits.logit_softcap,
        }
    return written


def fits_family(cfg: ModelConfig) -> bool:
    """Whether a model has the traits that its family fixes."""
    family = FAMILIES[cfg.family]
    fixed = {f.name: f.default for f in fields(Traits) if f.name in _GEMMA | _OLMO}
    fixed |= dict(family.fixed)
    found = cfg.qkv_bias, cfg.qk_norm, cfg.experts is not None
    return found == (family.qkv_bias, family.qk_norm, family.experts) and all(
        getattr(cfg.traits, name) == value for name, value in fixed.items()
    )
