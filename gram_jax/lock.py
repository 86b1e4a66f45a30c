"""Locks on what a command writes, so that two of them cannot write the same file or folder.

The owner writes its host, process number and start time to a lock file, and rewrites it every few seconds. After
SIGKILL the file remains. It is stale if its process does not exist, or, for a process on another machine, if the file
does not change. Only exclusive creation and renaming are used, which are atomic on NFS as well.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gram_jax.errors import GramError
from gram_jax.files import write_atomic

logger = logging.getLogger(__name__)

LOCK = "lock.json"  # of a folder
SUFFIX = ".lock"  # of the lock of a file
BEAT_SECONDS = 5.0
# Without a beat for this time the lock is stale. Clocks of machines differ, so time stamps are not compared.
STALE_SECONDS = 60.0


@contextmanager
def hold_lock(
    path: Path,
    advice: str,
    *,
    error: type[GramError],
    on_loss: Callable[[str], None] = lambda message: None,
) -> Iterator[Callable[[], None]]:
    """Hold the lock file `path` for the block. Yields a function that raises `error` if the lock has been lost.

    Waits up to STALE_SECONDS for a beat of an owner on another machine. Raises `error`, which names the owner and ends
    with `advice`, if the owner is alive. on_loss: called, in a thread, if another process has taken over, because this
    one was silent for STALE_SECONDS.
    """
    mine = _this_process()
    _take(path, mine, advice, error)
    over, lost = threading.Event(), list[str]()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError):  # the disk may be full or unavailable for a while
                other = _read(path)
                if other and _who(other) != _who(mine):
                    message = f"{_name(other)} has taken over {path.parent / _locked(path)}"
                    lost.append(message)
                    on_loss(message)
                    return
                write_atomic(path, json.dumps(mine | {"beat": count}))

    def check() -> None:
        if lost:
            raise error(f"{lost[0]}: this process was silent for too long and stops")

    thread = threading.Thread(target=beat, name="gram-jax-lock", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        over.set()
        thread.join(BEAT_SECONDS)  # with a limit: the disk may hang
        with suppress(OSError):
            if _who(_read(path)) == _who(mine):
                path.unlink()


def _take(path: Path, mine: Mapping[str, Any], advice: str, error: type[GramError]) -> None:
    while True:
        try:
            with path.open("x") as file:  # only one of two simultaneous starts succeeds
                json.dump(mine, file)
            return
        except FileExistsError:
            pass
        except OSError as found:
            raise error(f"{path} cannot be written: {found.strerror or found}") from found
        owner = _read(path)
        if not path.exists():
            continue
        known = owner.get("machine") is not None and owner["machine"] == mine["machine"]
        if known and _started(owner.get("pid")) == owner.get("started"):
            raise error(_refusal(path, owner, advice))
        if not known:
            logger.warning(
                "%s holds %s: waiting up to %g s for its next beat",
                _name(owner),
                path.parent / _locked(path),
                STALE_SECONDS,
            )
            deadline = time.monotonic() + STALE_SECONDS
            while time.monotonic() < deadline and path.exists():
                if (now := _read(path)) != owner:
                    raise error(_refusal(path, now, advice))
                time.sleep(min(1.0, STALE_SECONDS / 4))
        _remove_stale(path, owner)


def _remove_stale(path: Path, owner: Mapping[str, Any]) -> None:
    """Remove a stale lock, unless another process has taken it meanwhile."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        path.rename(aside)  # of several processes one succeeds
        if _read(aside) != owner:
            os.link(aside, path)
        aside.unlink()


def _refusal(path: Path, owner: Mapping[str, Any], advice: str) -> str:
    place = path.parent / _locked(path)
    return f"{_name(owner)} writes {place} since {owner.get('since')}. {advice}"


def _locked(path: Path) -> str:
    """What a lock file locks: a file of its folder, or "" for the folder."""
    return "" if path.name == LOCK else path.name.removesuffix(SUFFIX)


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
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
