"""Fuzzing of model folders: damaged and contradictory ones are errors that name the field or tensor.

    python benchmarks/model_folders.py --count 1000

Every trial takes a folder of a random family with random weights and changes one thing: an entry of config.json gets
a value of another type or another size, or a tensor is dropped, renamed, transposed, of another shape or dtype, or
additional. The folder must be rejected by an error of gram_jax that names what was changed, or give the same model.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from gram_jax.errors import GramError
from gram_jax.interop.hf_config import config_from_hf
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hf_families import FAMILIES
from gram_jax.interop.models import load_model
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import init_params, param_specs
from gram_jax.sharding import Placement, make_placement

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
# What a family requires in addition to the sizes.
REQUIRED = {
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "qwen3_moe": {
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
}
WRONG: tuple[Any, ...] = (
    "many",
    -1,
    0,
    2.5,
    True,
    [],
    {},
    [3],
    {"a": 1},
    float("inf"),
    float("nan"),
)
# Entries whose value may be any text, number or absent without another model coming out.
FREE = {"initializer_range", "attention_dropout", "use_cache", "torch_dtype", "dtype"}
FREE |= {"bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "max_window_layers"}


def make_folder(family: str, place: Path, one: Placement, seed: int) -> tuple[Path, ModelConfig]:
    """A folder of a family as another program writes it, without a manifest."""
    found = SIZES | REQUIRED.get(family, {}) | {"model_type": family}
    cfg = replace(config_from_hf(found), tied_head=seed % 2 == 0)
    params = init_params(param_specs(cfg), jax.random.key(seed), one, "float32")
    folder = export_hf(place, cfg, params, dtype=None, tokenizer=None, spec=None)
    (folder / "gram_jax_manifest.json").unlink()
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})
    return folder, cfg


def change_config(settings: dict[str, Any], draw: random.Random) -> str:
    """Spoil an entry of config.json; returns its name."""
    family = FAMILIES[settings["model_type"]]
    name = draw.choice(sorted(settings.keys() - FREE))
    sizes = [size for size in SIZES if size not in ("rms_norm_eps", "max_position_embeddings")]
    if name in sizes and draw.random() < 0.5:
        settings[name] = settings[name] * 2
    elif name in sizes or name in family.defaults or draw.random() < 0.7:
        settings[name] = draw.choice(WRONG)
    else:
        del settings[name]
    return name


def change_tensors(tensors: dict[str, np.ndarray], draw: random.Random) -> str:
    """Spoil a tensor; returns its name."""
    name = draw.choice(sorted(tensors))
    array = tensors[name]
    match draw.choice(["drop", "rename", "shape", "rows", "dtype", "add", "nan"]):
        case "drop":
            del tensors[name]
        case "rename":
            del tensors[name]
            tensors[name.replace("weight", "wieght")] = array
        case "shape":
            tensors[name] = np.ascontiguousarray(array[None])
        case "rows":
            tensors[name] = np.concatenate([array, array])
        case "dtype":
            kind = draw.choice([np.int8, np.float64, ml_dtypes.float8_e4m3fn])
            tensors[name] = array.astype(kind)
        case "add":
            name = f"model.layers.{draw.randrange(9)}.self_attn.extra.weight"
            tensors[name] = np.ones(3, np.float32)
        case "nan":
            tensors[name] = np.full_like(array, np.nan)
    return name


def trial(source: Path, cfg: ModelConfig, target: Path, one: Placement, draw: random.Random) -> str:
    """What happened to a changed folder: "error", "same", or a description of what went wrong."""
    settings = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    original = {name: array.tobytes() for name, array in tensors.items()}
    of_config = draw.random() < 0.5
    name = change_config(settings, draw) if of_config else change_tensors(tensors, draw)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(settings))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    try:
        found, params = load_model(target, one, None)
    except GramError as error:
        # A contradiction of sizes is seen at the tensors that have them, a tensor by its place in the model.
        known = (
            name,
            name.replace("_", " "),
            *(n for n in tensors if n in str(error)),
            "layers/",
            "embed",
            "final_norm",
            "head",
        )
        return "error" if any(part in str(error) for part in known) else f"{name}: unnamed: {error}"
    except Exception as error:
        return f"{name} = {settings.get(name)!r}: {type(error).__name__}: {error}"
    if found != cfg:
        return f"{name} = {settings.get(name, 'absent')!r}: another model: {found}"
    again = export_hf(target / "again", found, params, dtype=None, tokenizer=None, spec=None)
    written = {n: x.tobytes() for n, x in load_file(again / "model.safetensors").items()}
    return "same" if written == original else f"{name}: other weights"


def run(count: int, seed: int = 0) -> Counter[str]:
    """Outcomes of `count` trials; all keys but "error" and "same" are faults."""
    draw, outcomes = random.Random(seed), Counter[str]()
    one = make_placement({}, devices=jax.devices()[:1])
    with tempfile.TemporaryDirectory() as place:
        folders = [
            make_folder(family, Path(place) / family, one, number)
            for number, family in enumerate(FAMILIES)
        ]
        for number in range(count):
            source, cfg = draw.choice(folders)
            target = Path(place) / f"trial-{number}"
            outcomes[trial(source, cfg, target, one, draw)] += 1
    return outcomes


def main() -> None:
    """Print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes = run(options.count, options.seed)
    for outcome, times in outcomes.most_common():
        print(f"{times:5}  {outcome[:400]}")
    sys.exit(int(bool(outcomes.keys() - {"error", "same"})))


if __name__ == "__main__":
    main()
