"""Encoded examples on disk, which every process of a host maps into memory.

A cache is a folder named by its key. Its files are the arrays of `Examples`, each shard after the one before, with
figures.json and a manifest of hashes:

tokens, lengths, weights, label, source    raw little-endian arrays
shards.jsonl                               a line for each shard: records and bytes so far, SHA-256
figures.json                               figures that are not arrays
gram_jax_manifest.json                     SHA-256 of every file

While it is built, the folder's name ends in ".partial"; a build that was interrupted resumes after the last shard whose
hash is right. The manifest is written last and then the folder renamed. All hashes are verified when a cache is opened.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from gram_jax.checkpoint.manifest import find_damage, read_manifest, write_manifest
from gram_jax.data.examples import (
    CHUNK,
    Examples,
    Stage,
    adjacent_documents,
    fingerprint_of,
    sources_of,
)
from gram_jax.data.pool import ProcessPool
from gram_jax.data.records import Comparison
from gram_jax.data.report import ReadReport
from gram_jax.errors import DataError
from gram_jax.files import PARTIAL, explain_full_disk, read_json, write_atomic, write_json
from gram_jax.progress import ProgressFactory, no_progress

logger = logging.getLogger(__name__)

FORMAT = 1
COLUMNS = {"tokens": "<i4", "lengths": "<i4", "weights": "<f4", "label": "<i4", "source": "<i4"}
FIGURES, SHARDS = "figures.json", "shards.jsonl"
CODE = ("judge", "data", "attacks")  # the packages that determine the tokens of a row
POLL_SECONDS = 0.5
HASH_BLOCK = 2**26  # bytes that one thread hashes, so that one large file takes several cores

# encode(records, source=...): a chunk of records, with the index of the source of each, as examples.
EncodeChunk = Callable[..., Examples]


@dataclass(frozen=True)
class Build:
    """Settings with which the examples of a cache are made.

    read: reads all records once and returns the report. records: the records in order, called after `read`. encode:
    picklable; workers: number of processes that call it.
    """

    stage: Stage
    per_unit: int
    read: Callable[[], ReadReport]
    records: Callable[[], Iterable[Comparison]]
    encode: EncodeChunk
    workers: int


def default_folder() -> Path:
    """The folder of all caches of this user."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gram_jax" / "examples"


def cache_key(values: Mapping[str, Any]) -> str:
    """The name of the cache of examples that `values` determine, with the code that makes them: 32 hex digits."""
    package = Path(__file__).parents[1]
    found = [path for name in CODE for path in (package / name).rglob("*") if path.is_file()]
    code = {str(path.relative_to(package)): path for path in found if path.suffix != ".pyc"}
    content = {**values, "format": FORMAT, "code": hash_files(code)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def hash_files(files: Mapping[str, Path]) -> str:
    """A hash of the contents of files and of their names."""
    blocks = [
        (name, path, start)
        for name, path in sorted(files.items())
        for start in range(0, max(path.stat().st_size, 1), HASH_BLOCK)
    ]
    with ThreadPoolExecutor() as threads:
        digests = threads.map(_hash_block, *zip(*(block[1:] for block in blocks), strict=True))
        found = [(name, digest) for (name, *_), digest in zip(blocks, digests, strict=True)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _hash_block(path: Path, start: int) -> str:
    digest, left = hashlib.sha256(), HASH_BLOCK
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (part := file.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def load_cache(folder: Path, build: Build, *, progress: ProgressFactory = no_progress) -> Examples:
    """The examples of the cache in `folder`, which is built if it is missing, and again if it is damaged.

    One process builds; others that ask for the same folder wait. Raises DataError if the disk is full or the folder
    cannot be written; finished shards are kept.
    """
    if folder.is_dir() and (found := _open(folder)) is not None:
        return found
    unfinished = folder.with_name(folder.name + PARTIAL)
    with _explained(folder), _lock(folder, unfinished, progress):
        if folder.is_dir():
            if (found := _open(folder)) is not None:  # built while this process waited
                return found
            shutil.rmtree(folder)
        unfinished.mkdir(exist_ok=True)
        _build(unfinished, folder.name, build, progress)
        unfinished.rename(folder)
        found = _open(folder)
    if found is None:
        raise DataError(f"{folder} is damaged directly after it was written: check the disk")
    return found


def _open(folder: Path) -> Examples | None:
    """The examples of a cache; None, with a warning that names the damaged files, if it is damaged."""
    if problems := find_damage(folder, of=folder.name, exact=True):
        lines = "\n  ".join(problems)
        logger.warning("the token cache %s is damaged and is built again:\n  %s", folder, lines)
        return None
    figures, files = read_json(folder / FIGURES), read_manifest(folder).files
    arrays = {name: _map(folder / name, dtype) for name, dtype in COLUMNS.items()}
    read = figures["read"]
    return Examples(
        stage=figures["stage"],
        documents=adjacent_documents(arrays["tokens"], arrays["lengths"]),
        weights=arrays["weights"],
        label=arrays["label"],
        source=arrays["source"],
        per_unit=figures["per_unit"],
        read=ReadReport(**read | {name: tuple(read[name]) for name in ("by_source", "unread")}),
        shortened=figures["shortened"],
        stored_fingerprint=fingerprint_of(files[name][1] for name in COLUMNS),
    )


def _map(path: Path, dtype: str) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r"))


# Building


@dataclass(frozen=True)
class _Shard:
    """A line of shards.jsonl. records: so far. ends: size of each file so far. dropped, shortened: of this shard.

    sha256: over the other values and the bytes of this shard in all files.
    """

    records: int
    ends: Mapping[str, int]
    dropped: Mapping[str, int]
    shortened: int
    sha256: str = ""

    def digest(self, parts: Iterable[bytes | memoryview]) -> str:
        """The value of `sha256`. parts: the bytes of this shard in each file."""
        values = {**asdict(self), "sha256": ""}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for part in parts:
            digest.update(part)
        return digest.hexdigest()


def _build(folder: Path, key: str, build: Build, progress: ProgressFactory) -> None:
    shards, read = _whole_shards(folder), build.read()
    done = shards[-1].records if shards else 0
    if done:
        logger.info("%s: %d of %d records are encoded already", folder, done, read.kept)
    left = -(-(read.kept - done) // CHUNK)  # chunks
    encode = partial(_encode, build.encode)
    with ExitStack() as held:
        files = {name: held.enter_context((folder / name).open("ab")) for name in COLUMNS}
        journal = held.enter_context((folder / SHARDS).open("a"))
        bar = held.enter_context(progress(read.kept, done=done, label="encode", unit="pairs"))
        chunks = _chunks(build.records(), done, read)
        encoded = map(encode, chunks)
        if left > 1:
            pool = held.enter_context(ProcessPool(encode, min(build.workers, left)))
            encoded = pool.map(chunks)
        for count, examples in encoded:
            done += count
            shards.append(_append(files, journal, examples, done))
            bar.update(count, units=count)
    if done != read.kept:
        raise DataError(
            f"the data changed while they were encoded: expected {read.kept} records, found {done}"
        )
    dropped = sum((Counter(shard.dropped) for shard in shards), Counter[str]())
    figures = {
        "stage": build.stage,
        "per_unit": build.per_unit,
        "read": asdict(read.without(dropped)),
        "shortened": sum(shard.shortened for shard in shards),
    }
    write_json(folder / FIGURES, figures)
    write_manifest(folder, of=key)


def _chunks(
    records: Iterable[Comparison], done: int, read: ReadReport
) -> Iterator[tuple[list[Comparison], np.ndarray]]:
    """The records after the first `done` in chunks, and the index of the source of each."""
    rest = itertools.islice(records, done, None)
    while chunk := list(itertools.islice(rest, CHUNK)):
        yield chunk, sources_of(read, done, done + len(chunk))
        done += len(chunk)


def _encode(
    encode: EncodeChunk, chunk: tuple[list[Comparison], np.ndarray]
) -> tuple[int, Examples]:
    """(number of records, their examples without ids)."""
    records, source = chunk
    return len(records), replace(encode(records, source=source), ids=())


def _append(
    files: Mapping[str, IO[bytes]], journal: IO[str], examples: Examples, records: int
) -> _Shard:
    """Write a shard, then its line."""
    parts = [
        np.ascontiguousarray(array, COLUMNS[name]).data.cast("B")
        for name, array in examples.columns.items()
    ]
    for file, part in zip(files.values(), parts, strict=True):
        file.write(part)
        file.flush()
    sizes = {name: file.tell() for name, file in files.items()}
    shard = _Shard(records, sizes, examples.read.dropped, examples.shortened)
    shard = replace(shard, sha256=shard.digest(parts))
    journal.write(json.dumps(asdict(shard)) + "\n")
    journal.flush()
    return shard


def _whole_shards(folder: Path) -> list[_Shard]:
    """The shards of an interrupted build up to the first incomplete or damaged one; the rest is cut off."""
    shards: list[_Shard] = []
    sizes: Mapping[str, int] = dict.fromkeys(COLUMNS, 0)
    path = folder / SHARDS
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            shard = _Shard(**json.loads(line))
            parts = [_part(folder / name, sizes[name], shard.ends[name]) for name in COLUMNS]
            if shard.digest(parts) != shard.sha256:
                break
        except (ValueError, TypeError, KeyError, OSError, RecursionError):
            break
        shards.append(shard)
        sizes = shard.ends
    for name in COLUMNS:
        with (folder / name).open("ab") as file:
            file.truncate(sizes[name])
    write_atomic(path, (json.dumps(asdict(shard)) + "\n" for shard in shards))
    return shards


def _part(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


# One builder


@contextmanager
def _lock(folder: Path, unfinished: Path, progress: ProgressFactory) -> Iterator[None]:
    """Hold the lock of a cache for the block. The system releases it when the process ends, however it ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        if not _try_lock(file):
            logger.info("another process encodes the examples of %s: waiting for it", folder)
            with progress(None, label="wait for the token cache", unit="pairs") as bar:
                seen = 0
                while not _try_lock(file):
                    time.sleep(POLL_SECONDS)
                    now = max(seen, _records_so_far(unfinished))
                    bar.update(now - seen, units=now - seen)
                    seen = now
        yield


def _try_lock(file: IO[str]) -> bool:
    import fcntl  # not on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(
            f"{file.name} cannot be locked: {error.strerror or error}. Choose a folder on a disk that has locks "
            "(data.cache_dir), such as a disk of this host"
        ) from error
    return True


def _records_so_far(unfinished: Path) -> int:
    try:
        return json.loads((unfinished / SHARDS).read_bytes().splitlines()[-1])["records"]
    except (OSError, ValueError, IndexError, KeyError, TypeError, RecursionError):
        return 0


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Raises DataError if the folder cannot be written or locked, or the disk is full."""
    elsewhere = "choose a folder on another disk (data.cache_dir)"
    advice = (
        f"Free some space and start again, which resumes after the last whole shard, or {elsewhere}"
    )
    with explain_full_disk(folder, advice, error=DataError):
        try:
            yield
        except OSError as error:
            if error.filename is None or not str(error.filename).startswith(str(folder.parent)):
                raise
            raise DataError(
                f"the token cache {folder} cannot be written: {error.strerror or error}; {elsewhere}"
            ) from error
