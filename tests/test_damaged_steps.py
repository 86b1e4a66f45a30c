"""A damaged checkpoint is refused with the names of its files, and the one before is used."""

import shutil
from pathlib import Path

import jax
import pytest
from damage import contents, flip, three_steps, truncate
from test_orbax import assert_same, new_state, shape_of

from gram_jax.checkpoint import orbax
from gram_jax.checkpoint.manifest import MANIFEST, list_files, write_manifest
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.errors import CheckpointError
from gram_jax.sharding import make_placement


@pytest.fixture
def steps(tmp_path, one_device):
    return three_steps(tmp_path / "c", one_device)


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


def test_a_step_under_the_number_of_another_is_refused(steps):
    folder, states = steps
    (folder / "6").rename(folder / "x")
    (folder / "4").rename(folder / "6")
    (folder / "x").rename(folder / "4")
    with Checkpoints(folder, keep=None) as checkpoints:
        with pytest.raises(CheckpointError, match=r"step 4, .* step 6"):
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
    """A kill during the removal of a step leaves a part of it."""
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
