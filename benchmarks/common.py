"""Shared by the benchmarks: the real model as a folder that every side can load."""

import tempfile
from pathlib import Path

import jax

from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.sharding import make_placement


def exported_judge(name: str = "smollm2-135m") -> str:
    """A float32 export of the model, made once in the machine's temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"gram_jax-benchmark-{name}"
    if not (folder / "judge.json").is_file():
        tokenizer = load_tokenizer(name)
        cfg, params = load_model(name, make_placement({}, devices=jax.devices()[:1]), "float32")
        spec = make_spec(tokenizer, max_length=2048)
        export_hf(folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec, overwrite=True)
    return str(folder)
