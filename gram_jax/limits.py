"""Limits of untrusted files: a hostile or damaged file is an error before it exhausts the machine's memory.

Each limit has an environment variable, such as GRAM_JAX_MAX_LINE_MB=200, which raises it.
"""

import gzip
import io
import json
import os
from pathlib import Path
from typing import IO, Any, cast

from gram_jax.errors import DataError

MIB = 2**20


def _limit(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name) or default)
    except ValueError:
        raise DataError(f"{name} = {os.environ[name]!r}: expected a whole number") from None


# Bytes of one line of JSON, and of one row of CSV. Parsed JSON takes up to 35 times its size.
MAX_LINE = MIB * _limit("GRAM_JAX_MAX_LINE_MB", 32)
# Characters of a text. Tokenizers need 500 bytes of memory for each byte of it, before it is truncated.
MAX_TEXT = 1_000_000 * _limit("GRAM_JAX_MAX_TEXT_MILLION_CHARACTERS", 2)
# Bytes of a file that is one JSON value: a list of rows, and a config or index.
MAX_LIST = MIB * _limit("GRAM_JAX_MAX_JSON_MB", 1024)
MAX_CONFIG = 64 * MIB
# Commas and opening brackets of one JSON value: 100 to 200 bytes of memory each.
MAX_VALUES = 1_000_000 * _limit("GRAM_JAX_MAX_JSON_MILLION_VALUES", 20)
# Decompressed bytes for each byte of a gzip file above FREE_GZIP; text has 3 to 20.
MAX_GZIP_RATIO = _limit("GRAM_JAX_MAX_GZIP_RATIO", 100)
FREE_GZIP = 64 * MIB


def parse_json(data: bytes, largest: int) -> Any:
    """The value of UTF-8 JSON of at most `largest` bytes. Raises ValueError, which states what is wrong.

    NaN and Infinity, which Python writes, are accepted: the field that reads them rejects them with its name.

    >>> parse_json(b"[1, 2]", 6)
    [1, 2]
    >>> parse_json(b"[1, 2]", 5)
    Traceback (most recent call last):
    ValueError: the JSON has more than 5 bytes
    """
    if len(data) > largest:
        raise ValueError(f"the JSON has more than {largest:,} bytes")
    # Those inside texts count too; to distinguish them would take as long as parsing.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise ValueError(
            f"the JSON has more than {MAX_VALUES:,} commas and brackets "
            "(GRAM_JAX_MAX_JSON_MILLION_VALUES); write one row per line instead, as .jsonl"
        )
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text, found {error}") from error
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"expected JSON, found {data[:60]!r}: {error}") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def open_limited(path: Path, *, lines: bool = True) -> IO[bytes]:
    """The bytes of a file, decompressed if its name ends in .gz. lines: no line may be longer than MAX_LINE.

    Reading raises DataError for a longer line, and for a gzip file that decompresses beyond MAX_GZIP_RATIO.
    """
    return cast(IO[bytes], io.BufferedReader(_LimitedFile(path, lines), MIB))


class _LimitedFile(io.RawIOBase):
    """A file that counts what is read from it."""

    def __init__(self, path: Path, lines: bool):
        self._path, self._lines = path, lines
        self._read = self._since_break = 0
        self._most = float("inf")
        if path.name.lower().endswith(".gz"):
            self._most = max(FREE_GZIP, MAX_GZIP_RATIO * path.stat().st_size)
            self._file = cast(IO[bytes], gzip.GzipFile(path, "rb"))
        else:
            self._file = path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, origin: int = io.SEEK_SET) -> int:
        self._read = self._since_break = 0
        return self._file.seek(offset, origin)

    def readinto(self, buffer: Any) -> int:
        chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._read += len(chunk)
        if self._read > self._most:
            raise DataError(
                f"{self._path} decompresses to more than {MAX_GZIP_RATIO} times its size: expected text. "
                "GRAM_JAX_MAX_GZIP_RATIO allows more"
            )
        last = chunk.rfind(b"\n")
        self._since_break = len(chunk) - 1 - last if last >= 0 else self._since_break + len(chunk)
        if self._lines and self._since_break > MAX_LINE:
            raise DataError(
                f"{self._path} has a line of more than {MAX_LINE // MIB:,} MiB: expected one row per line. "
                "GRAM_JAX_MAX_LINE_MB allows more"
            )
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
