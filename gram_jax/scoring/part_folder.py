"""The folder OUT.parts of results that several processes write: names, manifest, records (parts.py, merging.py).

OUT.parts/manifest.json              what the rows are made from, the same for all processes
OUT.parts/part-00003.jsonl.partial   a part that is being written, next to its lock; a restart resumes in it
OUT.parts/part-00003.json            its size, SHA-256, dropped rows, and the code and device that computed it
OUT.parts/part-00003.jsonl           the complete part, which is renamed to this last
OUT.parts/end.json                   number of rows of the input, by the first process that reads to its end

OUT may be an address of fsspec (gs://, s3://): parts are written to a temporary folder and uploaded when complete.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.distributed.lock import file_lock, hold_lock
from gram_jax.errors import DataError
from gram_jax.files import write_atomic
from gram_jax.remote import is_remote, open_filesystem
from gram_jax.scoring.results import NAMES, PARTS, without_checksum

FORMAT = 2
MANIFEST, END = "manifest.json", "end.json"
PARTIAL = ".partial"
PART = re.compile(r"part-(\d+)\.jsonl")


class PartRecord(NamedTuple):
    """The record of a complete part.

    made_from: `made_from_hash` of the manifest. code: versions, program and device that computed it.
    """

    made_from: str
    rows: int
    bytes: int
    sha256: str
    shortened: int
    dropped: dict[str, int]
    code: dict[str, str]


class PartFolder:
    """OUT.parts, on a disk or at an address of fsspec."""

    def __init__(self, out: str):
        self.out, self.name = out, out + PARTS
        self._remote = open_filesystem(self.name) if is_remote(out) else None

    def names(self) -> set[str]:
        """Names of the files in the folder."""
        if self._remote is None:
            folder = Path(self.name)
            return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        files, folder = self._remote
        if not files.exists(folder):
            return set()
        return {str(path).rpartition("/")[2] for path in files.ls(folder, detail=False)}

    def make(self) -> None:
        """Make the folder."""
        if self._remote is None:
            Path(self.name).mkdir(exist_ok=True)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        if self._remote is None:
            return Path(self.name, name).read_bytes()
        return self._remote[0].cat_file(f"{self._remote[1]}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, as a whole or not at all."""
        if self._remote is None:
            write_atomic(Path(self.name, name), content)
        else:
            self._remote[0].pipe_file(f"{self._remote[1]}/{name}", content)

    def write_json(self, name: str, content: Any) -> None:
        """Write a value as JSON."""
        self.write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """The folder on a disk in which parts are written."""
        if self._remote is None:
            yield Path(self.name)
        else:
            with tempfile.TemporaryDirectory(prefix="gram-jax-parts-") as place:
                yield Path(place)

    def publish(self, partial: Path, name: str) -> None:
        """Give a part that is whole its name."""
        if self._remote is None:
            partial.replace(Path(self.name, name))
        else:
            self.write(name, partial.read_bytes())
            partial.unlink()

    def lock(self, path: Path) -> AbstractContextManager[None]:
        """The lock of a file that is being written; object stores have none, and the last writer wins."""
        return nullcontext() if self._remote else hold_lock(file_lock(path), error=DataError)


def file_of(part: int) -> str:
    """Name of a part's file."""
    return f"part-{part:05d}.jsonl"


def record_of(part: int) -> str:
    """Name of the file with a part's PartRecord."""
    return f"part-{part:05d}.json"


def parts_in(place: str) -> Sequence[str]:
    """The files whose parts are at `place`: it is such a file, or a folder that has them."""
    place = place.rstrip("/")
    if place.endswith(PARTS) or is_remote(place) or not Path(place).is_dir():
        return [place.removesuffix(PARTS)]
    found = sorted(str(path).removesuffix(PARTS) for path in Path(place).glob(f"*{PARTS}"))
    if not found:
        raise DataError(f"{place} has no {PARTS}: expected a file or folder that --shard wrote")
    return found


def made_from_hash(manifest: dict[str, Any]) -> str:
    """A hash of what the manifest says of the rows, without the names.

    Processes that start at the same time may write different manifests, of which one remains: each part states its own.
    """
    rows = {key: value for key, value in manifest["rows"].items() if key not in NAMES}
    content = json.dumps(manifest | {"rows": rows}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def read_manifest(folder: PartFolder) -> dict[str, Any]:
    try:
        found = without_checksum(_read_json(folder, MANIFEST))
    except ValueError:
        found = {}
    if found.get("format") != FORMAT or not {"part_rows", "input", "rows"} <= found.keys():
        raise DataError(f"{folder.name}/{MANIFEST} is damaged, or of another version of gram_jax")
    return found


def read_record(folder: PartFolder, part: int, made_from: str) -> PartRecord:
    place, again = f"{folder.name}/{record_of(part)}", rewrite_advice(folder, part)
    try:
        record = PartRecord(**_read_json(folder, record_of(part)))
    except (DataError, TypeError):
        raise DataError(f"{place} is missing or damaged: {again}") from None
    if record.made_from != made_from:
        raise DataError(
            f"{place} is not of the results that {MANIFEST} describes: shards with different judges, options or inputs "
            f"started at the same time. To keep {MANIFEST}, {again}"
        )
    return record


def write_end(folder: PartFolder, rows: int) -> None:
    if END not in folder.names():
        folder.write_json(END, {"rows": rows})
    elif (found := read_end(folder)) != rows:
        raise DataError(
            f"the input has {rows:,} rows, another process that wrote to {folder.name} read {found}: the input changed "
            "while it was read"
        )


def read_end(folder: PartFolder) -> int:
    rows = _read_json(folder, END).get("rows")
    if not isinstance(rows, int) or rows < 0:
        raise DataError(f"{folder.name}/{END} is damaged: remove it and run a shard again")
    return rows


def rewrite_advice(folder: PartFolder, part: int) -> str:
    return f"remove {folder.name}/{file_of(part)} and run its shard again"


def _read_json(folder: PartFolder, name: str) -> dict[str, Any]:
    try:
        found = json.loads(folder.read(name))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder.name}/{name} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{folder.name}/{name} holds a {type(found).__name__}, expected an object")
    return found
