"""Rope settings of a config.json: theta and scaling, in the spellings of transformers 4 and 5."""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from gram_jax.interop.hf_families import Family
from gram_jax.model.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
    misfit,
)

_QUERY_BETA = "llama_4_scaling_beta"
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
        | {"truncate": True, _QUERY_BETA: None},
    ),
}
# Other entries of such a block that have no effect, or are read elsewhere.
_BESIDE_SCALING = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "finetuned",
    "max_position_embeddings",
    _ORIGINAL,
}
_LONG = {"short_factor", "long_factor", "attention_factor"}


def read_rope(
    found: Mapping[str, Any], family: Family, problems: list[str]
) -> tuple[float, RopeScaling | None, float | None]:
    """(theta, scaling, theta of sliding layers if it is stated apart). Appends what is not supported to `problems`."""
    new, old = found.get("rope_parameters") or {}, found.get("rope_scaling") or {}
    local = None
    if family.by_type:
        theta = found.get("rope_theta", family.theta)
        local = found.get("rope_local_base_freq", 10000.0 if family.theta == 1e6 else theta)
        by_type = {"sliding_attention": {}, "full_attention": {}} | dict(new)
        if unknown := sorted(by_type.keys() - {"sliding_attention", "full_attention"}):
            problems.append(
                f"rope_parameters have {', '.join(unknown)}, expected those of layer types"
            )
        sliding, new = by_type["sliding_attention"], by_type["full_attention"]
        if sliding.get("rope_type", "default") != "default":
            problems.append(
                f"rope scaling of type {sliding['rope_type']!r} in sliding layers (supported: default)"
            )
        local = sliding.get("rope_theta", local)
    elif any(isinstance(value, Mapping) for value in new.values()):
        problems.append("rope_parameters differ between kinds of layers")
        return 0.0, None, None
    # Some writers put rope_theta into rope_scaling, too.
    values = [block.get("rope_theta") for block in (new, found, old)]
    for value in [*values, local]:
        if value is not None and (expected := misfit("rope_theta", value)):
            problems.append(f"rope_theta = {value!r} (expected {expected})")
            return 0.0, None, None
    thetas = {float(value) for value in values if value is not None}
    blocks = {"rope_parameters": new, "rope_scaling": old}
    scalings = [
        _scaling(found, name, block, family, problems) for name, block in blocks.items() if block
    ]
    if family.query_scaling and not scalings:
        problems.append(f"rope_parameters are missing (expected yarn with {_QUERY_BETA})")
    if len(thetas) > 1:
        problems.append(f"rope_theta is {sorted(thetas)} in different places")
    if len(set(scalings)) > 1:
        problems.append("rope_parameters and rope_scaling contradict each other")
    return (
        min(thetas, default=family.theta),
        scalings[0] if scalings else None,
        None if local is None else float(local),
    )


def _scaling(
    found: Mapping[str, Any],
    name: str,
    block: Mapping[str, Any],
    family: Family,
    problems: list[str],
) -> RopeScaling | None:
    """The scaling of a block, which has this name in config.json."""
    kind = block.get("rope_type", block.get("type", "default"))
    if family.partial and kind in ("longrope", "su", "yarn"):
        return _long_scaling(found, block, problems)
    if kind not in ("default", *_SCALINGS):
        problems.append(f"{name} of type {kind!r} (supported: default, {', '.join(_SCALINGS)})")
        return None
    if block.get("partial_rotary_factor") not in (None, 1) and not family.partial:
        problems.append(f"partial_rotary_factor = {block['partial_rotary_factor']} (supported: 1)")
    make, fields = _SCALINGS.get(kind, (None, {}))
    if family.query_scaling != (block.get(_QUERY_BETA) is not None):
        expected = "yarn with it" if family.query_scaling else "no such entry"
        problems.append(
            f"{name} of type {kind!r} with {_QUERY_BETA} = {block.get(_QUERY_BETA)!r} (expected {expected})"
        )
        return None
    if unknown := sorted(block.keys() - fields - _BESIDE_SCALING):
        problems.append(
            f"{name} of type {kind!r} has {', '.join(unknown)} (supported: no such entry)"
        )
    if make is None:
        return None
    # As transformers reads it: Phi-3 has it outside the block, others may leave it out.
    original = found.get(_ORIGINAL) or block.get(_ORIGINAL) or found.get("max_position_embeddings")
    stated = {**block, _ORIGINAL: original}
    values: dict[str, Any] = {
        key: value if stated.get(key) is None else stated[key] for key, value in fields.items()
    }
    wrong = [
        key
        for key, value in values.items()
        if not (isinstance(value, int | float) or (value is None and fields[key] is None))
        or (isinstance(value, bool) != (key == "truncate"))
        or (key in ("factor", _ORIGINAL) and not (value or 0) > 0)
    ]
    if wrong:
        problems.append(f"{name} of type {kind!r} lacks usable values of {', '.join(wrong)}")
        return None
    return make(*(_typed(key, value) for key, value in values.items()))


def _typed(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    return int(value) if name == _ORIGINAL else float(value)


def _block(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The block of config.json that `_scaling` reads."""
    for kind, (make, fields) in _SCALINGS.items():
        if isinstance(scaling, make):
            values = dict(zip(fields, astuple(scaling), strict=True))
            return {"rope_type": kind} | {n: x for n, x in values.items() if x is not None}
    return None


def _long_scaling(
    found: Mapping[str, Any], block: Mapping[str, Any], problems: list[str]
) -> RopeScaling | None:
    original, context = found.get(_ORIGINAL), found.get("max_position_embeddings")
    short: Any = block.get("short_factor")
    long: Any = block.get("long_factor")
    if unknown := sorted(block.keys() - _LONG - _BESIDE_SCALING):
        problems.append(f"longrope scaling has {', '.join(unknown)} (supported: no such entry)")
    original = original or block.get(_ORIGINAL)
    lists = isinstance(short, list) and isinstance(long, list) and len(short) == len(long)
    if not lists or not isinstance(original, int) or not isinstance(context, int):
        problems.append(
            f"longrope scaling lacks usable values of short_factor, long_factor or {_ORIGINAL}"
        )
        return None
    return LongScaling(
        tuple(map(float, short)),
        tuple(map(float, long)),
        original,
        context,
        block.get("attention_factor"),
    )


def write_rope(cfg: ModelConfig, family: Family) -> dict[str, Any]:
    """Entries of config.json that `read_rope` reads, in both spellings.

    transformers 4 reads rope_theta and rope_scaling (and rope_local_base_freq), transformers 5 rope_parameters.
    """
    scaling, outside = _block(cfg.rope_scaling), {}
    if isinstance(cfg.rope_scaling, LongScaling):
        long = cfg.rope_scaling
        scaling = {
            "rope_type": "longrope",
            "short_factor": list(long.short),
            "long_factor": list(long.long),
        }
        if long.attention_factor is not None:
            scaling["attention_factor"] = long.attention_factor
        outside = {
            _ORIGINAL: long.original_context,
            "max_position_embeddings": long.extended_context,
        }
    parameters = {**(scaling or {"rope_type": "default"}), "rope_theta": cfg.rope_theta}
    if family.partial:
        partial = (cfg.traits.rotary_size or cfg.head_size) / cfg.head_size
        parameters["partial_rotary_factor"] = partial
    written = {
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": parameters,
        **outside,
    }
    if family.by_type:
        local = cfg.traits.local_rope_theta
        written["rope_parameters"] = {
            "full_attention": parameters,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
        written["rope_local_base_freq"] = local
    return written
