"""Locks of runs, folders and files: two commands that write to the same one would destroy each other's results.

The owner holds a small JSON file and rewrites it every few seconds. After SIGKILL the file remains. It is stale if its
process does not exist, or, for a process on another machine, if the file does not change. `flock` is not used, because
network file systems may ignore it.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import GramError, InUseError
from gram_jax.files import write_atomic

logger = logging.getLogger(__name__)

LOCK = "lock.json"  # of a folder
BEAT_SECONDS = 5.0
# Without a beat for this time the lock is stale. Clocks of machines differ, so time stamps are not compared.
STALE_SECONDS = 60.0
# Two processes may find the same stale lock: after this time the one that wrote last has it.
SETTLE_SECONDS = 0.3


def folder_lock(folder: Path) -> Path:
    """The lock of everything in a folder that exists."""
    return folder / LOCK


def file_lock(path: Path) -> Path:
    """The lock of a file, or of a folder that is replaced as a whole, next to it."""
    return path.with_name(f".{path.name}.{LOCK}")


class _Reserved(threading.local):
    """The locks that this thread holds for the writer that it calls next."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()


_reserved = _Reserved()


@contextmanager
def reserve_lock(path: Path, *, error: type[GramError] = InUseError) -> Iterator[None]:
    """`hold_lock`, which inside the block finds the lock free for one writer of the same thread.

    A command reserves what it writes before it loads a model.
    """
    path = path.absolute()
    with hold_lock(path, error=error):
        _reserved.paths.add(path)
        try:
            yield
        finally:
            _reserved.paths.discard(path)


@contextmanager
def hold_lock(
    path: Path,
    *,
    process: ProcessContext | None = None,
    error: type[GramError] = InUseError,
) -> Iterator[None]:
    """Hold the lock in the file `path` for the block. process: ended if another one takes the lock over.

    Waits up to STALE_SECONDS for a beat of an owner on another machine. Raises InUseError, which names the owner, if
    there is one, and `error` if the file cannot be written.
    """
    if (own := path.absolute()) in _reserved.paths:
        _reserved.paths.discard(own)
        try:
            yield
        finally:
            _reserved.paths.add(own)
        return
    process, mine = process or ProcessContext(), _this_process()
    _take(path, mine, error)
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError):  # the disk may be full or unavailable for a while
                other = _read(path)
                if other and _who(other) != _who(mine):
                    process.abort(f"{_name(other)} has taken over {path.parent}: this one ends", 2)
                write_atomic(path, json.dumps(mine | {"beat": count}))

    thread = threading.Thread(target=beat, name="gram-jax-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEAT_SECONDS)  # with a limit: the disk may hang
        with suppress(OSError):
            if _who(_read(path)) == _who(mine):
                path.unlink()


@contextmanager
def hold_new_file(path: Path, *, overwrite: bool, error: type[GramError]) -> Iterator[None]:
    """Hold the lock of a file that the block writes. Raises `error` if it exists, unless it is to be replaced."""
    with hold_lock(file_lock(path.absolute()), error=error):
        if path.exists() and not overwrite:
            raise error(f"{path} exists: give another name, or --overwrite")
        yield


def _take(path: Path, mine: Mapping[str, Any], error: type[GramError]) -> None:
    try:
        with path.open("x") as file:  # only one of two simultaneous starts succeeds
            json.dump(mine, file)
        return
    except FileExistsError:
        pass
    except OSError as found:
        with suppress(OSError):  # of a full disk; it would look like a lock of another machine
            if path.stat().st_size == 0:
                path.unlink()
        raise error(f"{path} cannot be written: {found.strerror or found}") from found
    found = _read(path)
    known = found.get("machine") is not None and found["machine"] == mine["machine"]
    if known and _started(found.get("pid")) == found.get("started"):
        raise _refusal(path, found)
    if not known:
        logger.warning(
            "%s holds %s: waiting up to %g s for its next beat",
            _name(found),
            path,
            STALE_SECONDS,
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline and path.exists():
            if (now := _read(path)) != found:
                raise _refusal(path, now)
            time.sleep(min(1.0, STALE_SECONDS / 4))
    write_atomic(path, json.dumps(mine), error=error)
    time.sleep(SETTLE_SECONDS)
    if _who(now := _read(path)) != _who(mine):
        raise _refusal(path, now)


def _refusal(path: Path, owner: Mapping[str, Any]) -> InUseError:
    what = path.parent if path.name == LOCK else path.with_name(path.name[1 : -len(LOCK) - 1])
    return InUseError(
        f"{_name(owner)} writes {what} since {owner.get('since')}: two at once would destroy each other's work. Wait "
        "until it ends, stop it (on SIGTERM a run saves), or write to another place"
    )


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "machine": _machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _machine() -> str | None:
    """Boot and process namespace, within which a process number is unique; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: Any) -> str | None:
    """The start of a process in ticks since boot; None if it does not exist."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]  # a zombie has ended


def _who(owner: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(owner.get(key) for key in ("host", "pid", "started", "machine"))


def _name(owner: Mapping[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'another machine')}"


def _read(path: Path) -> dict[str, Any]:
    """Content of the file; {} if it is missing or incomplete."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
