"""A damaged export is refused with the names of its files; `gram-jax verify`."""

import json
import re
import shutil
from pathlib import Path

import pytest
from cli_runner import run_cli
from damage import exported, flip, three_steps, truncate
from test_orbax import assert_same

from gram_jax.checkpoint.manifest import MANIFEST, list_files
from gram_jax.errors import CheckpointError
from gram_jax.interop.hf_files import load_hf
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.run.verify import accept_changes, verify_folder


@pytest.fixture
def export(tmp_path, one_device) -> Path:
    return exported(tmp_path / "x", one_device)


def load_all(folder: Path, placement) -> None:
    """As a scorer does."""
    load_spec(folder)
    load_tokenizer(folder)
    load_model(folder, placement, None)


def test_every_file_of_an_export_is_refused_by_name(export, one_device):
    load_all(export, one_device)
    names = [*list_files(export), MANIFEST]
    assert {"config.json", "judge.json", "tokenizer.json", MANIFEST} < set(names) and len(names) > 8
    for name in names:
        for damage in (flip, truncate, Path.unlink):
            path = export / name
            raw = path.read_bytes()
            damage(path)
            with pytest.raises(CheckpointError, match=re.escape(name)):
                load_all(export, one_device)
            path.write_bytes(raw)
    load_all(export, one_device)


def test_a_process_with_a_mesh_of_its_own_verifies_every_file(export, one_device, monkeypatch):
    names = sorted(export.glob("*.safetensors"))[:2]
    monkeypatch.setattr("jax.process_count", lambda: 2)
    for index in (0, 1):  # of a job whose other process loads nothing
        monkeypatch.setattr("jax.process_index", lambda index=index: index)
        for path in names:
            flip(path)
            with pytest.raises(CheckpointError, match=f"{path.name}: damaged"):
                load_hf(export, one_device, None)
            flip(path)


def test_weights_beside_the_exported_ones_are_refused_and_a_readme_is_accepted(export, one_device):
    (export / "README.md").write_text("mine")
    (export / ".cache").mkdir()
    (export / ".cache" / "x.safetensors").write_text("of the hub's client")
    load_all(export, one_device)
    verify_folder(export)
    shutil.copy(next(export.glob("*.safetensors")), export / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not in the manifest"):
        load_hf(export, one_device, None)


def test_the_message_says_how_to_accept_an_intended_change(tmp_path, one_device):
    export = exported(tmp_path / "model", one_device)  # not part of a run by its name alone
    settings = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(settings | {"note": "edited"}))
    with pytest.raises(CheckpointError, match=rf"gram-jax verify {export} --accept"):
        load_all(export, one_device)
    accept_changes(export)
    load_all(export, one_device)


def test_a_judge_that_our_own_command_replaces_is_accepted(export, one_device):
    before = load_spec(export)
    arguments = ["spec", str(export), "-m", str(export), "--max-length", "150", "--overwrite"]
    assert run_cli(*arguments).status == 0
    load_all(export, one_device)
    assert before.max_length == 200 and load_spec(export).max_length == 150


def test_folders_of_others_load_as_before(export, one_device, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, params = load_hf(export, one_device, None)
    for path in export.glob("*.safetensors"):
        save_file(load_file(path), path, metadata={"format": "pt"})  # as another program does
    (export / MANIFEST).unlink()
    (export / "manifest.json").write_text("[]")  # of another program
    _, found = load_hf(export, one_device, None)
    assert_same(found, params)


def test_verify_tells_good_from_damaged_by_its_status_and_names_the_files(
    export, one_device, tmp_path, capsys, monkeypatch
):
    from gram_jax import cli

    def status(*arguments) -> int:
        monkeypatch.setattr("sys.argv", ["gram-jax", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0

    run = tmp_path / "run"
    run.mkdir()
    three_steps(run / "checkpoints", one_device)
    assert status(export) == 0 and status(run) == 0
    shown = capsys.readouterr().out
    assert all(f"step {step}: good" in shown for step in (2, 4, 6))
    flip(run / "checkpoints" / "4" / "params" / "_METADATA")
    (run / "checkpoints" / "6" / "rest" / "_sharding").unlink()
    flip(export / "judge.json")
    assert status(run) == 2
    shown = capsys.readouterr()
    assert "step 2: good" in shown.out and "step 4: 1 damaged" in shown.out
    assert "checkpoints/4/params/_METADATA: damaged" in shown.err
    assert status(run / "checkpoints" / "2") == 0 and status(run / "checkpoints") == 2
    capsys.readouterr()
    flip(run / "checkpoints" / "2" / MANIFEST)
    assert status(run / "checkpoints" / "2") == 2
    (alone,) = [x for x in capsys.readouterr().err.splitlines() if MANIFEST in x]
    assert alone.strip().startswith(f"{MANIFEST}: damaged")
    flip(run / "checkpoints" / "2" / MANIFEST)
    assert "checkpoints/6/rest/_sharding: missing" in shown.err
    assert status(export) == 2
    assert "judge.json: damaged" in capsys.readouterr().err
    assert status(run, "--accept") == 2  # a checkpoint is never changed on purpose
    assert status(run / "checkpoints", "--accept") == 2
    assert status(export, "--accept") == 0 and status(export) == 0
    assert status(tmp_path) == 2
    assert "nothing to verify" in capsys.readouterr().err
