"""Exports of equal weights: every file has equal bytes, in every format and from any process."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from cli_runner import run_cli
from damage import contents
from test_models import write_run

from gram_jax.checkpoint.manifest import MANIFEST
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.model.lora import LoraConfig, init_lora, lora_specs

FORMATS = ("model", "classifier", "margin", "cross-encoder", "adapter")


def convert_all(sources: Path, out: Path) -> None:
    """Write the judge, and the run with a LoRA, in every format of `gram-jax convert`."""
    for kind in FORMATS:
        source = sources / ("run" if kind == "adapter" else "judge")
        done = run_cli("convert", source, out / kind, "--as", kind)
        assert done.status == 0, done.output


@pytest.fixture
def sources(tmp_path, one_device) -> Path:
    """A folder with a judge and a run of it with a LoRA."""
    tokenizer = load_tokenizer("tiny-random")
    cfg, params = load_model("tiny-random", one_device, None)
    spec = make_spec(tokenizer, max_length=256)
    judge = tmp_path / "judge"
    export_hf(judge, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec)
    lora = LoraConfig(4, 6.0, ("q", "o", "down"))
    update = init_lora(lora_specs(cfg, lora), jax.random.key(0), one_device, "float32")
    note = {"base": str(judge), "rank": 4, "alpha": 6.0, "targets": list(lora.targets)}
    write_run(tmp_path / "run", cfg, tokenizer, spec, {5: update}, note)
    return tmp_path


@pytest.mark.slow
def test_equal_weights_give_equal_files_in_every_format_and_process(sources, tmp_path):
    convert_all(sources, tmp_path / "0")
    convert_all(sources, tmp_path / "1")
    code = "import sys, test_reproducible_exports as t; t.convert_all(*map(t.Path, sys.argv[1:]))"
    places = (str(Path(__file__).parent), str(Path(__file__).parents[1]))
    path = os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", code, sources, tmp_path / "2"],
        env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "1"},
        check=True,
    )
    first, *others = (contents(tmp_path / str(at)) for at in range(3))
    assert {name for name in first if name.endswith(MANIFEST)} == {
        f"{x}/{MANIFEST}" for x in FORMATS
    }
    for other in others:
        assert other.keys() == first.keys()
        assert [name for name in first if other[name] != first[name]] == []
