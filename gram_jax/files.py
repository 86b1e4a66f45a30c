"""Atomic writes of small files, JSON objects, and errors for full disks and for addresses that are not paths."""

import errno
import glob
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError, GramError
from gram_jax.limits import MAX_CONFIG, parse_json

PARTIAL = ".partial"  # suffix of the name of a file that is being written


def expand_user(path: str | Path, *, error: type[GramError] = GramError) -> Path:
    """The path with the home directory for ~ or ~USER. Raises `error` if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as found:
        raise error(f"{path}: expected a user's home directory after ~: {found}") from found


def write_atomic(
    path: Path, content: str | bytes | Iterable[str], *, error: type[GramError] | None = None
) -> Path:
    """Write a file under a temporary name and rename it to `path`, which is returned.

    Text is UTF-8 and keeps its line ends. Raises `error` instead of OSError if the file cannot be written.
    """
    # The host as well: containers that share a file system often have the same process number.
    start = f"{path.name}.{socket.gethostname()}."
    partial = path.with_name(f"{start}{os.getpid()}{PARTIAL}")
    try:
        _remove_abandoned(path.parent, start)
        with partial.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                lines = [content] if isinstance(content, str) else content
                file.writelines(line.encode() for line in lines)
            file.flush()
            os.fsync(
                file.fileno()
            )  # else a crash of the machine may leave an empty file under this name
        return partial.replace(path)
    except OSError as found:
        with suppress(OSError):
            partial.unlink()
        if error is None:
            raise
        raise error(f"{path} cannot be written: {found.strerror or found}") from found


def _remove_abandoned(folder: Path, start: str) -> None:
    """Remove what killed processes of this host left of a file."""
    for left in folder.glob(f"{glob.escape(start)}*{PARTIAL}"):
        number = left.name.removeprefix(start).removesuffix(PARTIAL)
        if number.isdecimal() and not process_exists(int(number)):
            left.unlink(missing_ok=True)


def process_exists(number: int) -> bool:
    """Whether a process of this number exists on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def check_local(path: str | Path, name: str, error: type[GramError]) -> None:
    """Raises `error` for an address such as gs://bucket/run: files are read and written in file systems only."""
    if address := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise error(
            f"{name} = {path}: {address[0]}/ is not a file system of this machine. Give a folder of a local disk or of "
            "NFS, or of a bucket that gcsfuse mounts with hierarchical namespace (docs/reliability.md, Storage)"
        )


def is_full_disk(error: BaseException) -> bool:
    """Whether a disk or quota is full, as Python, tokenizers, tensorstore or safetensors report it.

    >>> is_full_disk(OSError(errno.ENOSPC, "No space left on device")), is_full_disk(OSError("no"))
    (True, False)
    """
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or any(words in str(error) for words in ("No space left", "os error 28"))


def is_read_only(error: BaseException) -> bool:
    """Whether a file system cannot be written, as the same libraries report it."""
    refused = getattr(error, "errno", None) == errno.EROFS
    return refused or any(words in str(error) for words in ("Read-only file", "os error 30"))


@contextmanager
def explain_full_disk(
    path: Path, advice: str, *, error: type[GramError] = CheckpointError
) -> Iterator[None]:
    """Raises `error` with `advice` if the disk fills up, or becomes read-only, inside the block."""
    try:
        yield
    except GramError:
        raise
    except Exception as found:
        if not (is_full_disk(found) or is_read_only(found)):
            raise
        state = "full" if is_full_disk(found) else "read-only"
        raise error(f"the disk of {path} is {state} ({found}). {advice}") from found


def no_space(folder: Path, needed: int, advice: str) -> CheckpointError:
    """The error of a disk that is too full for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    sizes = f"up to {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
    return CheckpointError(f"the disk of {folder} is full: {sizes}. {advice}")


def write_json(path: Path, content: Any, *, error: type[GramError] | None = None) -> Path:
    """`write_atomic` of a value as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return write_atomic(path, text, error=error)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError if the file is missing or holds anything else."""
    try:
        found = parse_json(_start(path, MAX_CONFIG + 1), MAX_CONFIG)
    except FileNotFoundError as error:
        raise CheckpointError(f"no {path.name}: {describe_folder(path.parent)}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected an object")
    return found


def _start(path: Path, size: int) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(size)


def describe_folder(folder: Path) -> str:
    """What a folder holds, as part of an error message."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = sorted(path.name for path in folder.iterdir())
    shown = [*names[:12], *(["..."] if len(names) > 12 else [])]
    return f"{folder} holds {', '.join(shown) or 'nothing'}"
