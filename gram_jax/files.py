"""Small files written whole or not at all, and the error of a full disk."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError, GramError

PARTIAL = ".partial"  # the end of the name of a file that is being written


def write_atomic(
    path: Path, content: str | bytes | Iterable[str], *, error: type[GramError] | None = None
) -> Path:
    """Write a file under another name and rename it; text as UTF-8 with its line ends as they are. Returns `path`.

    Raises `error` in place of OSError if the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                file.writelines([content] if isinstance(content, str) else content)
        return partial.replace(path)
    except OSError as found:
        with suppress(OSError):
            partial.unlink()
        if error is None:
            raise
        raise error(f"{path} cannot be written: {found.strerror or found}") from found


def is_full_disk(error: BaseException) -> bool:
    """Whether this is a full disk or quota, as Python, tokenizers, tensorstore or safetensors report it.

    >>> is_full_disk(OSError(errno.ENOSPC, "No space left on device")), is_full_disk(OSError("no"))
    (True, False)
    """
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or any(words in str(error) for words in ("No space left", "os error 28"))


@contextmanager
def explain_full_disk(
    path: Path, advice: str, *, error: type[GramError] = CheckpointError
) -> Iterator[None]:
    """Raises `error` with `advice` if a disk fills up in the block, whichever library writes to it."""
    try:
        yield
    except GramError:
        raise
    except Exception as found:
        if not is_full_disk(found):
            raise
        raise error(f"the disk of {path} is full ({found}). {advice}") from found


def write_json(path: Path, content: Any, *, error: type[GramError] | None = None) -> Path:
    """`write_atomic` of a value as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return write_atomic(path, text, error=error)
