"""What was written is what is read: every changed byte of any folder is named with its file."""

from pathlib import Path

import pytest
from damage import exchange, flip, truncate

from gram_jax.checkpoint import manifest as integrity
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
