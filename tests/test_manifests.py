"""Every changed byte of a folder is reported with the name of its file."""

import pytest
from damage import exchange, flip, truncate

from gram_jax.checkpoint.manifest import (
    MANIFEST,
    find_damage,
    read_manifest,
    verify,
    write_manifest,
)
from gram_jax.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "f"
    (place / "sub").mkdir(parents=True)
    for name, content in {"a": b"12345", "b": b"54321", "sub/c": b"x" * 999, "e": b""}.items():
        (place / name).write_bytes(content)
    write_manifest(place, of="a test")
    return place


def test_an_untouched_folder_has_no_damage(folder):
    assert find_damage(folder, of="a test", exact=True) == []
    assert sorted(read_manifest(folder).files) == ["a", "b", "e", "sub/c"]


@pytest.mark.slow
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
    assert len(find_damage(folder, of="a test")) == 4  # without `exact`


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_a_manifest_that_cannot_be_read_is_named(folder, content):
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_manifest(folder)
    (line,) = find_damage(folder, of="a test")
    assert line.startswith(MANIFEST)


@pytest.mark.parametrize("other", ["b", "sub/c"])  # of the same and of another length
def test_exchanged_files_are_recognised(folder, other):
    exchange(folder / "a", folder / other)
    lines = find_damage(folder, of="a test")
    found = [(line.split(":")[0], line.split()[1], line.split()[-1]) for line in lines]
    assert found == [("a", "swapped:", other), (other, "swapped:", "a")]


def test_the_manifest_of_another_folder_is_detected(folder):
    (line,) = find_damage(folder, of="step 3")
    assert "a test" in line and "step 3" in line


def test_processes_share_the_work_and_together_find_everything(folder):
    for name in ("a", "b", "sub/c"):
        flip(folder / name)
    parts = [find_damage(folder, of="a test", index=i, count=3) for i in range(3)]
    found = sorted(line for part in parts for line in part)
    assert found == sorted(find_damage(folder, of="a test")) and len(found) == 3
    assert max(map(len, parts)) < 3
