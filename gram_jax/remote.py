"""Files at addresses of fsspec: gs://, s3://, memory:// and its other protocols."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from gram_jax.errors import DataError, MissingExtraError

EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}  # protocol -> the extra with its package


def is_remote(place: str | Path) -> bool:
    """Whether a place is an address such as gs://bucket/file.

    >>> is_remote("gs://bucket/pairs.jsonl"), is_remote("runs/judge"), is_remote("C:/data")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(place)) is not None


def open_filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there. Raises an error that names a missing package."""
    import fsspec

    protocol = address.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        if (extra := EXTRAS.get(protocol)) is None:
            raise DataError(f"{address}: {error}") from error
        raise MissingExtraError(
            f'{address}: {error}. It comes with the extra {extra!r}: pip install -e ".[{extra}]"'
        ) from error
    except ValueError as error:  # of an unknown protocol
        raise DataError(f"{address} cannot be opened: {error}") from error


def check_writable(address: str) -> None:
    """Raises an error if nothing can be written to an address: a missing package, or a web server."""
    if address.startswith(("http://", "https://")):
        raise DataError(
            f"{address} cannot be written: expected a file, or an address such as gs://bucket/file"
        )
    open_filesystem(address)


@cache
def local_copies(address: str) -> tuple[Path, ...]:
    """Local copies of the files at an address, which may be a pattern; they are removed when the process ends.

    Raises DataError if there is none, or if it cannot be read.
    """
    import fsspec

    open_filesystem(address)  # names a missing package
    try:
        found = fsspec.open_local(f"simplecache::{address}", simplecache={"same_names": True})
    except Exception as error:  # each protocol raises its own kinds
        raise DataError(f"{address} cannot be read: {type(error).__name__}: {error}") from error
    paths = [found] if isinstance(found, str) else found
    if not paths:
        raise DataError(f"{address}: no file has such a name")
    return tuple(map(Path, paths))
