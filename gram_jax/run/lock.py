"""The lock of a run's directory. Two jobs in one directory would remove each other's unfinished checkpoints.

Process 0 holds `lock.json` while the run is open and rewrites it every few seconds. After SIGKILL the file remains. It
is stale if its process does not exist, or, for a process on another machine, if the file does not change.
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
from gram_jax.errors import RecipeError
from gram_jax.files import write_atomic

logger = logging.getLogger(__name__)

LOCK = "lock.json"
BEAT_SECONDS = 5.0
# Without a beat for this time the lock is stale. Clocks of machines differ, so time stamps are not compared.
STALE_SECONDS = 60.0


@contextmanager
def run_lock(run: Path, process: ProcessContext) -> Iterator[None]:
    """Lock a run's directory for the block.

    Waits up to STALE_SECONDS for a beat of an owner on another machine. Raises RecipeError if the owner is alive.
    """
    path, mine = run / LOCK, _this_process()
    _take(path, mine)
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError):  # the disk may be full or unavailable for a while
                other = _read(path)
                if other and _who(other) != _who(mine):
                    process.abort(f"{_name(other)} has taken over {run}: this job ends", 2)
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


def _take(path: Path, mine: Mapping[str, Any]) -> None:
    try:
        with path.open("x") as file:  # only one of two simultaneous starts succeeds
            json.dump(mine, file)
        return
    except FileExistsError:
        pass
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror or error}") from error
    found = _read(path)
    known = found.get("machine") is not None and found["machine"] == mine["machine"]
    if known and _started(found.get("pid")) == found.get("started"):
        raise _refusal(path, found)
    if not known:
        logger.warning(
            "%s holds %s: waiting up to %g s for its next beat",
            _name(found),
            path.parent,
            STALE_SECONDS,
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline and path.exists():
            if (now := _read(path)) != found:
                raise _refusal(path, now)
            time.sleep(min(1.0, STALE_SECONDS / 4))
    write_atomic(path, json.dumps(mine))


def _refusal(path: Path, owner: Mapping[str, Any]) -> RecipeError:
    return RecipeError(
        f"{_name(owner)} runs in {path.parent} since {owner.get('since')}: two jobs in one directory would destroy "
        "each other's checkpoints. Wait until it ends, stop it (on SIGTERM it saves), or give this run another "
        "directory (--set run.output_dir=...)"
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
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
