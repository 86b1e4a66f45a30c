"""What was written is what is read: every changed byte is refused under the name of its file."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config
from model_cases import random_params
from test_orbax import assert_same, new_state, shape_of
from tiny_runs import compiled_programs, tiny_recipe  # noqa: F401

import gram_jax.train.loop as loop
from gram_jax.checkpoint import integrity, orbax
from gram_jax.checkpoint.audit import accept_changes, audit
from gram_jax.checkpoint.hf_export import export_hf
from gram_jax.checkpoint.hf_files import hf_config, load_hf
from gram_jax.checkpoint.integrity import (
    MANIFEST,
    find_damage,
    list_files,
    read_manifest,
    verify,
    write_manifest,
)
from gram_jax.checkpoint.models import load_model, load_spec, load_tokenizer
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.console import Console
from gram_jax.data.tiny import tiny_tokenizer
from gram_jax.errors import CheckpointError, RecipeError
from gram_jax.judge import make_spec
from gram_jax.plots import read_metrics
from gram_jax.sharding import make_placement


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def flip(path: Path, bit: int | None = None) -> None:
    """One bit of a file, by default in its middle."""
    raw = bytearray(path.read_bytes())
    bit = len(raw) * 4 if bit is None else bit
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def exchange(one: Path, other: Path) -> None:
    a, b = one.read_bytes(), other.read_bytes()
    assert a != b
    one.write_bytes(b)
    other.write_bytes(a)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "f"
    (place / "sub").mkdir(parents=True)
    for name, content in {"a": b"12345", "b": b"54321", "sub/c": b"x" * 999, "e": b""}.items():
        (place / name).write_bytes(content)
    write_manifest(place, of="a test")
    return place


# --- the manifest of any folder


def test_an_untouched_folder_has_no_damage(folder):
    assert find_damage(folder, of="a test", exact=True) == []
    assert sorted(read_manifest(folder).files) == ["a", "b", "e", "sub/c"]


def test_every_bit_and_every_length_of_the_manifest_itself_is_covered(folder):
    path = folder / MANIFEST
    raw = path.read_bytes()
    for bit in range(len(raw) * 8):
        flip(path, bit)
        assert MANIFEST in find_damage(folder, of="a test")[0], bit
        path.write_bytes(raw)
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        assert MANIFEST in find_damage(folder, of="a test")[0], length
    path.write_bytes(raw + b" ")
    assert find_damage(folder, of="a test")
    path.unlink()
    assert find_damage(folder, of="a test") == [
        f"{MANIFEST}: missing, the others cannot be checked"
    ]


def test_each_kind_of_damage_is_named_with_what_was_expected_and_found(folder):
    flip(folder / "sub/c")
    truncate(folder / "a")
    (folder / "b").unlink()
    (folder / "e").write_bytes(b"more")
    (folder / "stranger").write_bytes(b"?")
    with pytest.raises(CheckpointError) as error:
        verify(folder, of="a test", exact=True)
    text = str(error.value)
    assert "sub/c: damaged: sha256 " in text
    assert "a: truncated: 2 bytes, expected 5" in text
    assert "b: missing, expected 5 bytes" in text
    assert "e: longer: 4 bytes, expected 0" in text
    assert "stranger: not in the manifest" in text
    assert len(find_damage(folder, of="a test")) == 4  # without `exact` nobody minds the stranger


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_a_manifest_that_cannot_be_read_is_named(folder, content):
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_manifest(folder)


def test_files_that_changed_places_are_said_to_have(folder):
    exchange(folder / "a", folder / "b")
    assert find_damage(folder, of="a test") == [
        "a: swapped: it holds the content of b",
        "b: swapped: it holds the content of a",
    ]
    exchange(folder / "a", folder / "b")
    exchange(folder / "a", folder / "sub/c")  # of different lengths
    assert find_damage(folder, of="a test") == [
        "a: swapped: it holds the content of sub/c",
        "sub/c: swapped: it holds the content of a",
    ]


def test_the_manifest_of_another_folder_is_noticed(folder):
    assert "it belongs to a test, expected step 3" in find_damage(folder, of="step 3")[0]


def test_processes_share_the_work_and_together_find_everything(folder, monkeypatch):
    read = []
    digest = integrity._digest
    monkeypatch.setattr(integrity, "_digest", lambda path: read.append(path.name) or digest(path))
    for name in ("a", "b", "sub/c"):
        flip(folder / name)
    parts = [find_damage(folder, of="a test", index=i, count=3) for i in range(3)]
    assert sorted(read) == ["a", "b", "c", "e"]  # each once
    found = sorted(line for part in parts for line in part)
    assert found == sorted(find_damage(folder, of="a test")) and len(found) == 3


def test_hashing_needs_no_jax():
    text = Path(integrity.__file__).read_text()
    assert "import jax" not in text and "from jax" not in text


# --- checkpoints


@pytest.fixture
def steps(tmp_path, one_device):
    """Three steps of a small state: (folder, states)."""
    states = {step: new_state(one_device, step) for step in (2, 4, 6)}
    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    return tmp_path / "c", states


def test_every_file_of_a_step_is_refused_by_name_and_the_step_before_is_used(steps, tmp_path):
    folder, _ = steps
    names = [*list_files(folder / "6"), MANIFEST]
    kinds = {"_METADATA", "_sharding", "manifest.ocdbt", "_CHECKPOINT_METADATA", "process_0"}
    assert kinds < {name.rpartition("/")[2] for name in names} and len(names) > 20
    for name in names:
        for damage in (flip, truncate, Path.unlink):
            path = folder / "6" / name
            raw = path.read_bytes()
            damage(path)
            reports = []
            with Checkpoints(folder, keep=None) as checkpoints:
                assert checkpoints.newest_good(reports.append) == 4
            assert len(reports) == 1 and "step 6 is damaged" in reports[0]
            assert name in reports[0], (name, damage, reports)
            path.write_bytes(raw)
    with Checkpoints(folder, keep=None) as checkpoints:
        assert checkpoints.newest_good(reports.append) == 6


def test_two_shards_that_changed_places_are_refused(steps):
    folder, states = steps
    shards = sorted((folder / "6" / "params" / "ocdbt.process_0" / "d").iterdir())
    exchange(*shards[:2])
    reports = []
    with Checkpoints(folder, keep=3) as checkpoints:
        step = checkpoints.newest_good(reports.append)
        assert_same(checkpoints.restore(step, shape_of(states[4])), states[4])
    assert step == 4
    assert all(f"{x.name}: swapped: it holds" in reports[0] for x in shards[:2])


def test_a_step_under_the_number_of_another_is_refused(steps):
    folder, states = steps
    (folder / "6").rename(folder / "x")
    (folder / "4").rename(folder / "6")
    (folder / "x").rename(folder / "4")
    with Checkpoints(folder, keep=None) as checkpoints:
        with pytest.raises(CheckpointError, match=r"belongs to step 4, expected step 6"):
            checkpoints.restore(6, shape_of(states[6]))
        assert checkpoints.newest_good(lambda _: None) == 2


def test_a_damaged_step_is_moved_aside_and_its_number_can_be_saved_again(steps):
    folder, states = steps
    for turn in (1, 2):
        flip(folder / "6" / "params" / "manifest.ocdbt")
        before = contents(folder / "6")
        reports = []
        with Checkpoints(folder, keep=3) as checkpoints:
            assert checkpoints.newest_good(reports.append) == 4
            assert checkpoints.all_steps() == [2, 4]
            assert contents(folder / "damaged" / f"6-{turn}") == before  # not a byte is lost
            assert f"damaged/6-{turn}" in reports[0]
            checkpoints.save(6, states[6], blocking=True)
            assert checkpoints.newest_good(reports.append) == 6
            assert_same(checkpoints.restore(6, shape_of(states[6])), states[6])
    assert len(reports) == 1


def test_a_reader_changes_nothing_on_the_disk(steps):
    folder, states = steps
    flip(folder / "6" / "params" / "_METADATA")
    truncate(folder / "2" / "_CHECKPOINT_METADATA")
    shutil.copytree(folder / "2", folder / "8.orbax-checkpoint-tmp-unhashed")
    before = contents(folder)
    with Checkpoints(folder, keep=None) as checkpoints:
        assert checkpoints.newest_good(lambda _: None) == 4
        checkpoints.restore(4, shape_of(states[4]))
        with pytest.raises(CheckpointError):
            checkpoints.restore_params(6, shape_of(states[6].params))
    assert contents(folder) == before


def test_nothing_saved_is_no_step_and_everything_damaged_is_an_error(steps, tmp_path):
    with Checkpoints(tmp_path / "new", keep=2) as checkpoints:
        assert checkpoints.newest_good(pytest.fail) is None
    folder, _ = steps
    for step in (2, 4, 6):
        flip(folder / str(step) / "rest" / "manifest.ocdbt")
    before = contents(folder)
    with (
        Checkpoints(folder, keep=3) as checkpoints,
        pytest.raises(CheckpointError, match="No good step is left") as error,
    ):
        checkpoints.newest_good(pytest.fail)
    lines = [f"step {step}: rest/manifest.ocdbt: damaged" for step in (2, 4, 6)]
    assert all(line in str(error.value) for line in lines)
    assert contents(folder) == before


def test_orbax_reads_nothing_of_a_damaged_step(steps, monkeypatch):
    folder, states = steps
    flip(folder / "6" / "rest" / "_METADATA")
    with Checkpoints(folder, keep=None) as checkpoints:
        # The optimizer's state is not the model's: its parameters can still be used.
        assert_same(checkpoints.restore_params(6, shape_of(states[6].params)), states[6].params)
        monkeypatch.setattr(checkpoints._manager, "restore", pytest.fail)
        with pytest.raises(CheckpointError, match=r"rest/_METADATA: damaged(.|\n)*steps \[2, 4\]"):
            checkpoints.restore(6, shape_of(states[6]))
        flip(folder / "4" / "params" / "_METADATA")
        for read in (checkpoints.restore_params, lambda *_: checkpoints.params_shapes(4)):
            with pytest.raises(CheckpointError, match=r"params/_METADATA: damaged"):
                read(4, shape_of(states[4].params))


def test_a_step_gets_its_name_with_its_manifest_and_the_older_goes_after_that(
    tmp_path, one_device, monkeypatch
):
    folder, state = tmp_path / "c", new_state(one_device)
    seen = []

    def write(place, *, of):
        seen.append((of, sorted(p.name for p in folder.iterdir() if p.name.isdecimal())))
        return write_manifest(place, of=of)

    monkeypatch.setattr(orbax, "write_manifest", write)
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, blocking=True)
        assert seen == [("step 1", []), ("step 2", ["1"])]
        assert checkpoints.all_steps() == [2]

        def fail(place, *, of):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(orbax, "write_manifest", fail)
        with pytest.raises(CheckpointError, match="Input/output error"):
            checkpoints.save(3, state, blocking=True)
        assert checkpoints.all_steps() == [2] and checkpoints.newest_good(pytest.fail) == 2
        assert [p.name for p in folder.iterdir()] == ["2"]  # nothing of the failed save is left


def test_a_save_that_was_killed_before_its_manifest_is_no_step(tmp_path, one_device, monkeypatch):
    class Killed(BaseException):
        pass

    def die(place, *, of):
        shutil.copytree(place, tmp_path / "torn")
        raise Killed

    folder, state = tmp_path / "c", new_state(one_device)
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(1, state, blocking=True)
        monkeypatch.setattr(orbax, "write_manifest", die)
        with pytest.raises((Killed, CheckpointError)):
            checkpoints.save(2, state, blocking=True)
    monkeypatch.undo()
    left = folder / "2.orbax-checkpoint-tmp-unhashed"
    shutil.rmtree(left, ignore_errors=True)
    (tmp_path / "torn").rename(left)
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest_good(pytest.fail) == 1
        checkpoints.save(2, state, blocking=True)
        assert checkpoints.newest_good(pytest.fail) == 2
    assert not left.exists()


def test_multiples_of_keep_every_are_kept_for_good(tmp_path, one_device):
    state = new_state(one_device)
    with Checkpoints(tmp_path / "c", keep=2, keep_every=3) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, state)
        checkpoints.wait()
        assert checkpoints.all_steps() == [3, 6, 7, 8]


def test_what_a_kill_left_of_a_removed_step_is_no_damage(tmp_path, one_device):
    """Removal takes a while; a kill in the middle of it leaves a part of a step that was to go."""
    state = new_state(one_device)
    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state)
    (tmp_path / "c" / "1" / MANIFEST).unlink()
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.newest_good(pytest.fail) == 3
        checkpoints.save(4, state, blocking=True)
        assert checkpoints.all_steps() == [3, 4]
    assert not (tmp_path / "c" / "damaged").exists()


def test_eight_devices_one_device_four_devices_hold_the_same_bits(tmp_path, cube, one_device):
    four = make_placement({"data": 1, "fsdp": 2, "tensor": 2}, devices=jax.devices()[4:])
    state = saved = new_state(cube, 1)
    for number, following in enumerate((one_device, four, cube)):
        with Checkpoints(tmp_path / str(number), keep=1) as checkpoints:
            checkpoints.save(1, state)
        abstract = shape_of(new_state(following))
        with Checkpoints(tmp_path / str(number), keep=None) as checkpoints:
            assert checkpoints.newest_good(pytest.fail) == 1
            state = checkpoints.restore(1, abstract)
        assert_same(state, saved)
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            assert leaf.sharding == wanted.sharding


# --- runs


class Loud(Console):
    """Keeps the warnings."""

    def __init__(self):
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def train(recipe) -> Loud:
    console = Loud()
    loop.train(recipe, console=console, placement=make_placement({}, devices=jax.devices()[:1]))
    return console


def last_state(run: Path) -> list[bytes]:
    """The arrays of step 6 as Orbax has them, by path."""
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        shapes = checkpoints.params_shapes(6)
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes
        )
        found = checkpoints.restore_params(6, abstract)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(found)]


def test_a_run_with_a_damaged_step_goes_on_from_the_one_before_and_ends_the_same(tmp_path):
    recipe = tiny_recipe("judge", tmp_path / "run", checkpoint__every=2, checkpoint__keep=3)
    run = tmp_path / "run"
    assert not train(recipe).warnings
    expected, figures = last_state(run), read_metrics(run / "metrics.jsonl")
    for damaged in ([6], [6, 4]):
        for step in damaged:
            shards = (run / "checkpoints" / str(step) / "params").rglob("d/*")
            truncate(max(shards, key=lambda path: path.stat().st_size))
        with pytest.raises(CheckpointError, match=r"/6 is damaged.*\n.*truncated: .*\n.*copy"):
            load_model(run, make_placement({}, devices=jax.devices()[:1]), None)
        # The run was complete; it computes again what is damaged.
        warnings = train(recipe).warnings
        assert "was complete, and is not any more" in warnings.pop(0)
        assert len(warnings) == len(damaged)
        assert all("truncated" in text and "moved to" in text for text in warnings)
        assert last_state(run) == expected
        for before, after in zip(figures, read_metrics(run / "metrics.jsonl"), strict=True):
            assert {**before, "tokens_per_second": 0} == {**after, "tokens_per_second": 0}
    names = sorted(p.name for p in (run / "checkpoints" / "damaged").iterdir())
    assert names == ["4-1", "6-1", "6-2"]
    assert not train(recipe).warnings  # complete again

    # What belongs to the model besides its weights is covered, too.
    flip(run / "model" / "config.json")
    for read in (hf_config, load_tokenizer):
        with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
            read(run / "model" if read is hf_config else run)
    flip(run / "model" / "config.json")
    flip(run / "model" / "judge.json")
    with pytest.raises(CheckpointError, match=r"judge\.json: damaged"):
        load_spec(run)
    flip(run / "model" / "judge.json")
    (run / "model" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=rf"{MANIFEST}: missing"):
        load_model(run, make_placement({}, devices=jax.devices()[:1]), None)


def test_a_finished_run_that_lost_something_is_not_complete(tmp_path):
    recipe = tiny_recipe("judge", tmp_path / "run", checkpoint__every=2, checkpoint__keep=3)
    run = tmp_path / "run"
    checkpoints, one = run / "checkpoints", make_placement({}, devices=jax.devices()[:1])
    train(recipe)
    expected = last_state(run)

    def lost(what: str, names: str) -> None:
        """Verify and train name what is missing; after it the run is whole, and the same."""
        with pytest.raises(CheckpointError, match=names) as error:
            audit(run, Console(quiet=True))
        assert "`gram-jax train` command again" in str(error.value), what
        assert re.search(names, train(recipe).warnings[0]), what
        audit(run, Console(quiet=True))
        assert last_state(run) == expected, what

    shutil.rmtree(checkpoints / "6")
    with pytest.raises(CheckpointError, match=r"finished with step 6, .* is step 4"):
        load_model(run, one, None)
    with pytest.warns(UserWarning, match="is not finished: this is step 4 of 6"):
        info = (run / "run.json").read_text()
        (run / "run.json").write_text(info.replace('"finished": true', '"finished": false'))
        load_model(run, one, None)
    (run / "run.json").write_text(info)
    lost("the last step", "checkpoints/6: missing")
    shutil.rmtree(checkpoints)
    lost("all steps", "checkpoints/6: missing|checkpoints/: missing")
    truncate(checkpoints / "6" / "rest" / "_METADATA")
    lost("the optimizer's state", r"checkpoints/6/rest/_METADATA: truncated")
    flip(run / "model" / "judge.json")
    lost("the judge", r"model/judge\.json: damaged")
    (run / "model" / MANIFEST).unlink()
    lost("the manifest of the model", rf"model/{MANIFEST}: missing")
    assert not train(recipe).warnings  # complete again

    for name, text, said in (
        ("run.json", "[]", "run.json is damaged"),
        ("run.json", "{", "run.json cannot be read"),
        ("recipe.toml", "stage =", "recipe.toml is not a TOML file"),
    ):
        before = (run / name).read_text()
        (run / name).write_text(text)
        with pytest.raises(CheckpointError, match=said):
            audit(run, Console(quiet=True))
        with pytest.raises((CheckpointError, RecipeError), match=said):
            train(recipe)
        (run / name).write_text(before)


# --- exported folders


@pytest.fixture
def export(tmp_path, one_device) -> Path:
    """A judge in several files."""
    cfg, tokenizer = tiny_config("qwen3", True), tiny_tokenizer()
    return export_hf(
        tmp_path / "x",
        cfg,
        random_params(cfg, one_device),
        dtype=None,
        tokenizer=tokenizer,
        spec=make_spec(tokenizer, max_length=200),
        shard_bytes=20_000,
    )


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


def test_weights_that_changed_places_are_refused(export, one_device):
    one, other, *_ = sorted(export.glob("*.safetensors"))
    exchange(one, other)
    with pytest.raises(CheckpointError, match=rf"{one.name}: swapped: it holds .* {other.name}"):
        load_hf(export, one_device, None)


def test_weights_beside_the_exported_ones_are_refused_and_a_readme_is_welcome(export, one_device):
    (export / "README.md").write_text("mine")
    (export / ".cache").mkdir()
    (export / ".cache" / "x.safetensors").write_text("of the hub's client")
    load_all(export, one_device)
    audit(export, Console(quiet=True))
    shutil.copy(next(export.glob("*.safetensors")), export / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not in the manifest"):
        load_hf(export, one_device, None)


def test_the_message_says_how_to_accept_an_intended_change(export, one_device):
    settings = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(settings | {"note": "edited"}))
    with pytest.raises(CheckpointError, match=rf"gram-jax verify {export} --accept"):
        load_all(export, one_device)
    accept_changes(export, Console(quiet=True))
    load_all(export, one_device)


def test_a_judge_that_our_own_command_replaces_is_taken_in(export, one_device):
    from typer.testing import CliRunner

    from gram_jax.cli import app

    before = load_spec(export)
    arguments = ["judge", str(export), "-m", str(export), "--max-length", "150", "--overwrite"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    load_all(export, one_device)
    assert before.max_length == 200 and load_spec(export).max_length == 150


def test_folders_of_others_load_as_before(export, one_device, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, params = load_hf(export, one_device, None)
    for path in export.glob("*.safetensors"):
        save_file(load_file(path), path, metadata={"format": "pt"})  # as another program does
    (export / MANIFEST).unlink()
    (export / "manifest.json").write_text("[]")  # theirs, whatever it is
    _, found = load_hf(export, one_device, None)
    assert_same(found, params)


# --- the command


def test_verify_tells_good_from_damaged_by_its_status_and_names_the_files(
    export, steps, tmp_path, capsys, monkeypatch
):
    from gram_jax import cli

    def status(*arguments) -> int:
        monkeypatch.setattr("sys.argv", ["gram-jax", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0

    run = tmp_path / "run"
    run.mkdir()
    steps[0].rename(run / "checkpoints")
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
    assert status(run, "--accept") == 2  # nobody changes a checkpoint on purpose
    assert status(run / "checkpoints", "--accept") == 2
    assert status(export, "--accept") == 0 and status(export) == 0
    assert status(tmp_path) == 2
    assert "nothing to verify" in capsys.readouterr().err
