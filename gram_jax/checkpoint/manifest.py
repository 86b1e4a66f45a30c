"""Content hashes of a folder's files, which are verified before the files are used.

Neither Orbax nor safetensors detects a flipped bit in the weights. The manifest of a folder lists the SHA-256 of each
file and a digest of its own text.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.errors import CheckpointError
from gram_jax.files import write_atomic

MANIFEST = "gram_jax_manifest.json"  # other programs use the name manifest.json
FORMAT = 1
# Number of files read at once: hashlib releases the GIL, and network disks serve several requests.
THREADS = 8

FileEntry = tuple[int, str]  # length and SHA-256 (64 hex digits) of one file


class Manifest(NamedTuple):
    """The files of a folder by relative path ("a/b"); of: what the folder is, such as "step 4"."""

    files: Mapping[str, FileEntry]
    of: str | None


def write_manifest(folder: Path, *, of: str | None = None) -> Manifest:
    """Hash every file of the folder and write its manifest atomically."""
    names = list_files(folder)
    manifest = Manifest(dict(zip(names, _hash(folder, names), strict=True)), of)
    write_atomic(folder / MANIFEST, _text(manifest))
    return manifest


def renew_entry(folder: Path, name: str) -> None:
    """Record a file that was changed or added on purpose. Does nothing if there is no manifest."""
    if has_manifest(folder):
        files, of = read_manifest(folder)
        manifest = Manifest({**files, name: _hash(folder, [name])[0]}, of)
        write_atomic(folder / MANIFEST, _text(manifest), error=CheckpointError)


def has_manifest(folder: Path) -> bool:
    """Whether the folder has a manifest."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder. Raises CheckpointError, naming it, if it is missing or damaged."""
    try:
        raw = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST}: missing, so no file can be verified") from error
    except OSError as error:
        raise CheckpointError(f"{MANIFEST}: cannot be read: {error.strerror or error}") from error
    try:
        content = json.loads(raw)
        files = {name: (size, digest) for name, (size, digest) in content["files"].items()}
        manifest = Manifest(files, content["of"])
        # The text must equal the output of `write_manifest` byte for byte.
        if content["format"] == FORMAT and raw == _text(manifest):
            return manifest
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise CheckpointError(f"{MANIFEST}: damaged, or of a newer format: its digest does not match")


def find_damage(
    folder: Path,
    *,
    of: str | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    exact: bool = False,
    index: int = 0,
    count: int = 1,
) -> list[str]:
    """A line for every file that differs from the manifest, or for the manifest if that is missing or damaged.

    of: what the manifest must state about the folder. wanted: which files to check. exact: files that are not in the
    manifest are damage, too. Only files index, index + count, ... are read: `count` processes share the work.
    """
    if not folder.is_dir():
        return [f"{folder}: no such folder"]
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    problems = []
    if of != manifest.of:
        problems.append(f"{MANIFEST}: swapped: it belongs to {manifest.of}, expected {of}")
    if exact:
        extra = sorted(set(filter(wanted, list_files(folder))) - manifest.files.keys())
        problems += [f"{name}: not in the manifest" for name in extra]
    names = [name for name in sorted(manifest.files) if wanted(name)][index::count]
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda name: _difference(folder, name, manifest.files), names)
        return problems + [problem for problem in found if problem]


def refusal(folder: Path, problems: Sequence[str], advice: str) -> CheckpointError:
    """The error that lists what `find_damage` found."""
    shown = list(problems[:50])
    if len(problems) > 50:
        shown.append(f"... and {len(problems) - 50} more")
    lines = "\n  ".join(shown)
    return CheckpointError(f"{folder} is damaged and is not used:\n  {lines}\n{advice}")


def verify(folder: Path, *, advice: str = "Restore it from a copy", **options: Any) -> None:
    """Raises CheckpointError that lists what `find_damage(folder, **options)` finds."""
    if problems := find_damage(folder, **options):
        raise refusal(folder, problems, advice)


def list_files(folder: Path) -> list[str]:
    """Relative paths of the files that a manifest lists: all but hidden ones and the manifest."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name).relative_to(folder).as_posix()
            for name in names
            if not name.startswith(".")
        ]
    return sorted(name for name in found if not name.startswith(MANIFEST))


def _difference(folder: Path, name: str, files: Mapping[str, FileEntry]) -> str | None:
    path, (expected, digest) = folder / name, files[name]
    try:
        size = path.stat().st_size
        # A file of another length is hashed only if it may be swapped with another file of the manifest.
        possible = size == expected or (size and any(size == other for other, _ in files.values()))
        found = _digest(path) if possible else ""
    except FileNotFoundError:
        return f"{name}: missing, expected {expected:,} bytes"
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror or error}"
    if found == digest:
        return None
    for other, entry in files.items():
        if entry[1] == found:
            return f"{name}: swapped: it holds the content of {other}"
    if size != expected:
        change = "truncated" if size < expected else "longer"
        return f"{name}: {change}: {size:,} bytes, expected {expected:,}"
    return f"{name}: damaged: sha256 {found[:16]}..., expected {digest[:16]}..."


def _hash(folder: Path, names: Sequence[str]) -> list[FileEntry]:
    with ThreadPoolExecutor(THREADS) as threads:
        digests = threads.map(lambda name: _digest(folder / name), names)
        return [((folder / n).stat().st_size, d) for n, d in zip(names, digests, strict=True)]


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(manifest: Manifest) -> bytes:
    """The manifest as stored; its last key is the digest of the text without that key."""
    content: dict[str, Any] = {"format": FORMAT, "of": manifest.of}
    content["files"] = dict(sorted(manifest.files.items()))
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps(content, indent=1) + "\n").encode()
