"""Parts that several processes wrote, checked and joined to one file."""

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gram_jax.errors import DataError
from gram_jax.files import write_atomic
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.remote import is_remote, open_filesystem
from gram_jax.scoring.part_folder import (
    END,
    MANIFEST,
    PARTIAL,
    PartFolder,
    PartRecord,
    file_of,
    made_from_hash,
    read_end,
    read_manifest,
    read_record,
    rewrite_advice,
)
from gram_jax.scoring.results import (
    META,
    WriteSummary,
    decode_row,
    explain_interruption,
    metadata_path,
    metadata_text,
)

logger = logging.getLogger(__name__)

SHOWN = 8  # missing parts in an error


def merge_parts(
    out: str, *, overwrite: bool = False, progress: ProgressFactory = no_progress
) -> WriteSummary:
    """Check every part of OUT and join them to OUT, with its metadata; the parts stay.

    The bytes are those that one process writes. Raises DataError, which names them, if parts are missing or damaged, or
    if OUT exists with another content.
    """
    folder = PartFolder(out)
    if MANIFEST not in (names := folder.names()):
        raise DataError(f"{folder.name} has no {MANIFEST}: expected parts that --shard wrote")
    manifest = read_manifest(folder)
    if END not in names:
        raise DataError(
            f"no process has read the input of {folder.name} to its end: parts are missing"
        )
    made_from = made_from_hash(manifest)
    count = -(-read_end(folder) // manifest["part_rows"])
    _check_complete(folder, names, count, manifest["part_rows"])
    dropped: Counter[str] = Counter()
    rows = shortened = 0
    code: dict[str, int] = {}
    with explain_interruption(out), folder.lock(Path(out)), _joined(out) as joined:
        with joined.open("wb") as file, progress(count, label="joined", unit="parts") as bar:
            for part in range(count):
                record, content = _check_part(folder, part, made_from)
                file.write(content)
                rows, shortened = rows + record.rows, shortened + record.shortened
                dropped.update(record.dropped)
                code.setdefault(json.dumps(record.code, sort_keys=True), part)
                bar.update(1, units=1)
            file.flush()
            os.fsync(file.fileno())
        _publish(out, joined, manifest["rows"], overwrite)
    if len(code) > 1:
        logger.warning(
            "the parts of %s were computed by %d versions, programs or kinds of device (%s): their scores agree up to "
            "rounding, not bit for bit",
            folder.name,
            len(code),
            "; ".join(f"part {part}: {text}" for text, part in code.items()),
        )
    return WriteSummary(rows, 0, shortened, dict(dropped))


def _check_complete(folder: PartFolder, names: set[str], count: int, part_rows: int) -> None:
    missing = [part for part in range(count) if file_of(part) not in names]
    if not missing:
        return
    shown = ", ".join(
        f"{part} (rows {part * part_rows + 1:,} to {(part + 1) * part_rows:,})"
        for part in missing[:SHOWN]
    )
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    raise DataError(
        f"{len(missing):,} of {count:,} parts of {folder.name} are missing: {shown}{more}. Run the shards "
        "again; shard I of N writes the parts I, I + N, I + 2 N, ..."
    )


def _check_part(folder: PartFolder, part: int, made_from: str) -> tuple[PartRecord, bytes]:
    """A part and its rows. Raises DataError if it is damaged, or not of this manifest."""
    record, content = read_record(folder, part, made_from), folder.read(file_of(part))
    place = f"{folder.name}/{file_of(part)}"
    if hashlib.sha256(content).hexdigest() == record.sha256 and len(content) == record.bytes:
        return record, content
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            decode_row(line)
        except ValueError:
            raise DataError(
                f"{place}, line {number} is damaged: {rewrite_advice(folder, part)}"
            ) from None
    raise DataError(f"{place} is not the file that was written: {rewrite_advice(folder, part)}")


def _publish(out: str, joined: Path, metadata: dict[str, Any], overwrite: bool) -> None:
    text = metadata_text(metadata).encode()
    if is_remote(out):
        files, path = open_filesystem(out)
        files.pipe_file(path + META, text)
        files.put_file(str(joined), path)
        return
    path = Path(out)
    if path.exists() and not overwrite and _digest(path) != _digest(joined):
        raise DataError(
            f"{path} exists and has other rows than its parts: remove it, or --overwrite"
        )
    write_atomic(metadata_path(path), text, error=DataError)
    joined.replace(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _joined(out: str) -> Iterator[Path]:
    """A file on a disk in which the parts of `out` are joined; next to it if that is on a disk."""
    if is_remote(out):
        with tempfile.TemporaryDirectory(prefix="gram-jax-merge-") as place:
            yield Path(place, "joined")
        return
    path = Path(out + PARTIAL)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
