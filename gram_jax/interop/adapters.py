"""LoRA adapters in PEFT's layout: read as changes of a base model's tensors, and written from the LoRA of a run."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.files import expand_user, read_json, write_json
from gram_jax.interop.assemble import StoredTensor
from gram_jax.interop.hf_files import safetensors_of
from gram_jax.interop.hf_names import FUSED, tensor_mappings
from gram_jax.model.config import Head, ModelConfig
from gram_jax.model.lora import NUM_CONTRACTED_DIMS, LoraConfig
from gram_jax.model.specs import SCORE
from gram_jax.tree import Tree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Entries of adapter_config.json that are read, or that do not change the result.
_READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern"}
_READ |= {"alpha_pattern", "init_lora_weights", "bias"}
_IGNORED = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "lora_dropout",
}
_IGNORED |= {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"}
_IGNORED |= {
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "ensure_weight_tying",
}
# Initialisations that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change it.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter. Raises CheckpointError if it holds a whole model as well."""
    if not (folder / CONFIG).is_file():
        return False
    if whole := sorted(path.name for path in folder.glob("model*.safetensors")):
        raise CheckpointError(
            f"{folder} holds both an adapter ({CONFIG}) and a complete model ({', '.join(whole[:3])}), and it is "
            "unknown whether the adapter is merged into it: move one of them to another folder"
        )
    return True


def adapter_base(folder: Path) -> str:
    """The name of an adapter's base: a path as given, or next to or inside its folder, or a hub name."""
    name = _settings(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise LayoutError(
            f"{folder / CONFIG}: base_model_name_or_path = {name!r}, expected the name of the base model"
        )
    for path in (expand_user(name, error=LayoutError), folder.parent / name, folder / name):
        if path.exists():
            return str(path)
    return name


def adapted(stored: Mapping[str, StoredTensor], folder: Path) -> dict[str, StoredTensor]:
    """The base's tensors with an adapter: W + s B A in f32, s = alpha / r or (rsLoRA) alpha / sqrt(r).

    Whole tensors of the adapter (modules_to_save) replace those of the base. Raises LayoutError naming an entry or
    tensor that is not supported or does not fit.
    """
    settings, found = _settings(folder), _tensors(folder)
    result = dict(stored)
    pairs = {
        match[1] for name in found if (match := re.fullmatch(r"(.+)\.lora_[AB]\.weight", name))
    }
    if not pairs:
        raise LayoutError(
            f"{folder / WEIGHTS} holds no tensor NAME.lora_A.weight: it is not a LoRA adapter"
        )
    for name, tensor in found.items():
        if re.sub(r"\.lora_[AB]\.weight$", "", name) in pairs:
            continue
        if "lora_" in name:
            raise LayoutError(
                f"{name} in {folder / WEIGHTS} is not supported (DoRA, LoRA of embeddings, biases of LoRA): merge the "
                "adapter with peft (merge_and_unload) and save the model"
            )
        result[name] = tensor
    if "score.weight" in found:  # the base's own head is not used
        result.pop("lm_head.weight", None)
    for module in sorted(pairs):
        result[f"{module}.weight"] = _adapted(module, stored, found, settings, folder)
    return result


def _adapted(
    module: str,
    stored: Mapping[str, StoredTensor],
    found: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    folder: Path,
) -> StoredTensor:
    names = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    base = stored.get(f"{module}.weight")
    if base is None or any(name not in found for name in names):
        missing = (
            f"the base has no {module}.weight"
            if base is None
            else "one of lora_A and lora_B is missing"
        )
        raise LayoutError(f"{folder / WEIGHTS}: {module}: {missing}")
    a, b = (found[name] for name in names)
    rank = _of_module(module, settings.get("rank_pattern"), settings.get("r"))
    alpha = _of_module(module, settings.get("alpha_pattern"), settings.get("lora_alpha"))
    if len(base.shape) != 2 or a.shape != (rank, base.shape[1]) or b.shape != (base.shape[0], rank):
        raise LayoutError(
            f"{folder / WEIGHTS}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, which do not fit "
            f"a LoRA of rank {rank} ({CONFIG}) of a matrix {list(base.shape)}"
        )
    scale = alpha / (sqrt(rank) if settings.get("use_rslora") else rank)

    def read(part: tuple[slice, ...]) -> np.ndarray:
        rows, columns = part
        left = b.read((rows, slice(None))).astype(np.float32)
        right = a.read((slice(None), columns)).astype(np.float32)
        return base.read(part).astype(np.float32) + scale * (left @ right)

    return replace(base, read=read)


def _of_module(module: str, pattern: Any, usual: Any) -> Any:
    """The rank or alpha of a module: that of the first pattern that its name ends with, as peft looks it up."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return usual


def _is_expression(key: str) -> bool:
    """Whether `_of_module` can look up a key of a pattern."""
    try:
        return re.compile(f"({key})") is not None
    except re.error:
        return False


def adapted_config(cfg: ModelConfig, folder: Path) -> ModelConfig:
    """The base's config with the head that comes with an adapter (score.weight), if one does."""
    if (head := _tensors(folder).get("score.weight")) is None:
        return cfg
    heads: dict[int, Head] = {1: "scalar", 2: "labels"}
    if head.shape[0] not in heads:
        raise LayoutError(
            f"{folder / WEIGHTS}: score.weight has {head.shape[0]} rows (supported: 1 and 2)"
        )
    return replace(cfg, head=heads[head.shape[0]])


def _settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises LayoutError naming every entry that is not supported."""
    found = read_json(folder / CONFIG)
    problems = [
        f"{name} = {value!r}"
        for name, value in found.items()
        if value and name not in _READ | _IGNORED
    ]
    if found.get("peft_type") != "LORA":
        problems.append(f"peft_type = {found.get('peft_type')!r} (supported: 'LORA')")
    if found.get("bias", "none") != "none":
        problems.append(f"bias = {found['bias']!r} (supported: 'none')")
    if found.get("init_lora_weights") not in _INITIALISATIONS:
        problems.append(
            f"init_lora_weights = {found['init_lora_weights']!r}, which changes the base"
        )
    numbers = [found.get("r"), found.get("lora_alpha")]
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = found.get(name) or {}
        if isinstance(pattern, dict) and all(map(_is_expression, pattern)):
            numbers += pattern.values()
        else:
            problems.append(
                f"{name} = {pattern!r} (expected regular expressions and their numbers)"
            )
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in numbers):
        problems.append(f"ranks and alphas are {numbers} (expected positive numbers)")
    if problems:
        raise LayoutError(
            f"{folder / CONFIG} cannot be used:\n  "
            + "\n  ".join(problems)
            + "\nMerge the adapter with peft "
            "(merge_and_unload) and save the model, whose folder can be read"
        )
    return found


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    """The adapter's tensors by their names in the base model."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has {CONFIG} but no {WEIGHTS}: the download is probably incomplete"
        )
    found = safetensors_of(path)
    if strange := [name for name in found if not name.startswith(PREFIX)]:
        raise LayoutError(
            f"{path}: {strange[0]} does not begin with {PREFIX}, as the names of peft do"
        )
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def write_adapter(
    folder: Path, cfg: ModelConfig, lora: LoraConfig, params: Tree, *, base: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors into a folder; numbers are moved, not computed.

    params: the LoRA's a and b of every layer, and a scalar head if it was trained. Raises LayoutError for a family
    whose projections are stored fused.
    """
    if cfg.family in FUSED:
        raise LayoutError(
            f"the family {cfg.family} stores {', '.join(FUSED[cfg.family])} fused, whose parts peft does not adapt: "
            "convert the run as a model, with its LoRA merged"
        )
    tensors: dict[str, np.ndarray] = {}
    modules: dict[str, str] = {}
    places = {(slot.rule.path, slot.at): name for name, slot in tensor_mappings(cfg, "hf").items()}
    for target in lora.targets:
        ins = NUM_CONTRACTED_DIMS[target]
        a, b = (np.asarray(params["layers"]["lora"][target][x]) for x in ("a", "b"))
        for layer in range(cfg.layers):
            module = places[f"layers/{target}", (layer,)].removesuffix(".weight")
            modules[module.rpartition(".")[2]] = target
            inputs = prod(a.shape[1 : 1 + ins])
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a[layer].reshape(inputs, lora.rank).T
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b[layer].reshape(lora.rank, -1).T
    scalar = SCORE in params
    if scalar:
        tensors[f"{PREFIX}score.weight"] = np.asarray(params[SCORE]).reshape(-1, cfg.embed_size)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": sorted(modules),
        "modules_to_save": ["score"] if scalar else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, settings)
