"""Content hashes of a folder's files: what was written is what is read, or it is refused by name.

Neither Orbax nor safetensors notices a flipped bit in the weights. A manifest beside the files lists
the SHA-256 of each, and a digest of its own text, so that it is covered as well.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError
from gram_jax.files import write_atomic

# Folders of other people hold files of the name manifest.json, so this one has our name in it.
MANIFEST = "gram_jax_manifest.json"
FORMAT = 1
THREADS = 8  # files read at once: hashlib lets go of the interpreter, and network disks have queues


@dataclass(frozen=True)
class FileEntry:
    """Length and SHA-256 (64 hex digits) of one file."""

    size: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The files of a folder by relative path ("a/b"); of: what the folder is, such as "step 4"."""

    files: Mapping[str, FileEntry]
    of: str | None


def write_manifest(folder: Path, *, of: str | None = None) -> Manifest:
    """Hash every file of the folder and write its manifest, whole or not at all."""
    names = list_files(folder)
    manifest = Manifest(dict(zip(names, _hash(folder, names), strict=True)), of)
    _save(folder, manifest)
    return manifest


def renew_entry(folder: Path, name: str) -> None:
    """Take in a file that was changed or added on purpose; nothing where there is no manifest."""
    if has_manifest(folder):
        manifest = read_manifest(folder)
        _save(folder, Manifest({**manifest.files, name: _hash(folder, [name])[0]}, manifest.of))


def has_manifest(folder: Path) -> bool:
    """Whether the folder was written with a manifest that is still there."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder. Raises CheckpointError if it is missing or damaged itself."""
    found = _read(folder / MANIFEST)
    if isinstance(found, str):
        raise CheckpointError(f"{folder}/{found}")
    return found


def _read(path: Path) -> Manifest | str:
    """A manifest, or its name and what is wrong with it."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return f"{path.name}: missing, the others cannot be checked"
    except OSError as error:
        return f"{path.name}: cannot be read: {error.strerror or error}"
    try:
        content = json.loads(raw)
        files = {name: FileEntry(size, digest) for name, (size, digest) in content["files"].items()}
        manifest = Manifest(files, content["of"])
        # Byte for byte: the text must be the one that we would write.
        if content["format"] == FORMAT and raw == _text(manifest):
            return manifest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return f"{path.name}: damaged, or of a newer format: it has not the digest that it states"


def find_damage(
    folder: Path,
    *,
    of: str | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    exact: bool = False,
    index: int = 0,
    count: int = 1,
) -> list[str]:
    """A line for every file that is not as it was written, itself or its manifest; none is good.

    of: what the manifest must say that the folder is. wanted: which files to look at. exact: files
    that the manifest does not list are damage too. Of the files only those number index, index +
    count, ... are read: `count` processes share the work, and all must ask.
    """
    if not folder.is_dir():
        return [f"{folder}: no such folder"]
    manifest = _read(folder / MANIFEST)
    if isinstance(manifest, str):
        return [manifest]
    problems = []
    if of != manifest.of:
        problems.append(f"{MANIFEST}: swapped: it belongs to {manifest.of}, expected {of}")
    if exact:
        extra = sorted(set(filter(wanted, list_files(folder))) - manifest.files.keys())
        problems += [f"{name}: not in the manifest, and nobody's" for name in extra]
    names = [name for name in sorted(manifest.files) if wanted(name)][index::count]
    owners = {entry.digest: name for name, entry in manifest.files.items()}
    sizes = {entry.size for entry in manifest.files.values()}

    def look(name: str) -> str | None:
        return _difference(folder / name, name, manifest.files[name], owners, sizes)

    with ThreadPoolExecutor(THREADS) as threads:
        return problems + [problem for problem in threads.map(look, names) if problem]


def refusal(folder: Path, problems: Sequence[str], advice: str) -> CheckpointError:
    """The error that lists what `find_damage` found."""
    shown = [
        *problems[:50],
        *([f"... and {len(problems) - 50} more"] if len(problems) > 50 else []),
    ]
    lines = "\n  ".join(shown)
    return CheckpointError(f"{folder} is damaged, so it is not used:\n  {lines}\n{advice}")


def verify(folder: Path, *, advice: str = "Restore it from a copy", **asked: Any) -> None:
    """Raises CheckpointError that names every file in which `find_damage(folder, **asked)` finds
    damage.
    """
    if problems := find_damage(folder, **asked):
        raise refusal(folder, problems, advice)


def list_files(folder: Path) -> list[str]:
    """Relative paths of the files that a manifest lists: all but hidden ones and the manifest."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name).relative_to(folder).as_posix() for name in names]
    return sorted(
        name
        for name in found
        if not name.rpartition("/")[2].startswith(".") and not name.startswith(MANIFEST)
    )


def _difference(
    path: Path, name: str, expected: FileEntry, owners: Mapping[str, str], sizes: set[int]
) -> str | None:
    try:
        size = path.stat().st_size
        # Another length says enough, unless it is that of another file.
        found = _digest(path) if size == expected.size or (size and size in sizes) else ""
    except FileNotFoundError:
        return f"{name}: missing, expected {expected.size:,} bytes"
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror or error}"
    if found == expected.digest:
        return None
    if found in owners:
        return f"{name}: swapped: it holds the content of {owners[found]}"
    if size != expected.size:
        change = "truncated" if size < expected.size else "longer"
        return f"{name}: {change}: {size:,} bytes, expected {expected.size:,}"
    return f"{name}: damaged: sha256 {found[:16]}..., expected {expected.digest[:16]}..."


def _hash(folder: Path, names: Sequence[str]) -> list[FileEntry]:
    def entry(name: str) -> FileEntry:
        return FileEntry((folder / name).stat().st_size, _digest(folder / name))

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(entry, names))


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(folder: Path, manifest: Manifest) -> None:
    write_atomic(folder / MANIFEST, _text(manifest))


def _text(manifest: Manifest) -> bytes:
    """The manifest as it is on the disk; its last key is the digest of the text without that key."""
    content: dict[str, Any] = {"format": FORMAT, "of": manifest.of}
    files = sorted(manifest.files.items())
    content["files"] = {name: [entry.size, entry.digest] for name, entry in files}
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps(content, indent=1) + "\n").encode()
