"""Shared by the benchmarks: the real model as a folder that every side can load, and settings of a training step."""

import tempfile
from pathlib import Path
from typing import Any

import jax

from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.sharding import make_placement

CHUNK = 512  # rows of logits of a device


def exported_judge(name: str = "smollm2-135m") -> str:
    """A float32 export of the model, made once in the machine's temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"gram_jax-benchmark-{name}"
    if not (folder / "judge.json").is_file():
        tokenizer = load_tokenizer(name)
        cfg, params = load_model(name, make_placement({}, devices=jax.devices()[:1]), "float32")
        spec = make_spec(tokenizer, max_length=2048)
        export_hf(folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec, overwrite=True)
    return str(folder)


def training_settings(stage: str, rows: int, length: int, devices: int) -> dict[str, Any]:
    """Keys of a recipe for a step of `rows` rows of `length` tokens without accumulation, for measuring and planning.

    stage: of the recipe ("pretrain" has a product with the vocabulary, in pieces of 512 rows a device).
    """
    settings: dict[str, Any] = {
        "batch.batch_size": rows,
        "batch.max_length": length,
        "judge.max_length": length,
        "batch.gradient_accumulation_steps": 1,
    }
    if stage == "pretrain":
        settings["loss.loss_chunk_size"] = min(length, CHUNK) * devices
    return settings
