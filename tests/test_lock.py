"""Locks on what a command writes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from gram_jax import lock
from gram_jax.errors import DataError
from gram_jax.lock import LOCK, hold_lock


def hold(place: Path, on_loss=lambda message: None) -> AbstractContextManager:
    return hold_lock(place, "Wait.", error=DataError, on_loss=on_loss)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LOCK


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)


def wait_until(condition, seconds: float = 5) -> None:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    assert condition()


def leave_behind(path: Path, **changes) -> None:
    """The file of an owner that got no chance to remove it."""
    with hold(path):
        text = json.loads(path.read_text())
    path.write_text(json.dumps(text | changes))


def test_the_second_is_refused_with_the_name_of_the_first(path, hasty):
    with hold(path):
        named = rf"process {os.getpid()} on {socket.gethostname()} writes {path.parent} since 20"
        with pytest.raises(DataError, match=named), hold(path):
            pass
        wait_until(lambda: json.loads(path.read_text()).get("beat", 0) >= 1)
    assert not list(path.parent.iterdir())
    with hold(path):
        pass


def test_the_lock_of_a_file_names_the_file(tmp_path):
    place = tmp_path / "out.jsonl.lock"
    with (
        hold(place),
        pytest.raises(DataError, match=rf"writes {tmp_path}/out.jsonl since"),
        hold(place),
    ):
        pass


def test_an_owner_that_was_killed_on_this_machine_is_forgotten_at_once(path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 1000.0)
    dead = subprocess.Popen(["true"])
    wait_until(lambda: ") Z" in Path(f"/proc/{dead.pid}/stat").read_text())
    for changes in ({"pid": dead.pid}, {"started": "1"}, {"pid": 2**30}):
        leave_behind(path, **changes)
        with hold(path):
            pass
    dead.wait()


def test_an_owner_elsewhere_is_forgotten_if_its_file_does_not_change(path, hasty):
    for changes in ({"host": "other", "machine": "other"}, {"machine": None}):
        leave_behind(path, **changes)
        since = time.monotonic()
        with hold(path):
            assert time.monotonic() - since > 0.25
            assert json.loads(path.read_text())["pid"] == os.getpid()
    path.write_text("")  # of one that was killed in the middle of the file
    with hold(path):
        pass
    assert not list(path.parent.iterdir())


def test_an_owner_elsewhere_that_is_alive_is_refused(path, hasty):
    other = {"host": "b", "pid": 1, "machine": "m"}
    path.write_text(json.dumps(other))
    beat = threading.Timer(0.1, path.write_text, [json.dumps(other | {"beat": 1})])
    beat.start()
    with pytest.raises(DataError, match="process 1 on b"), hold(path):
        pass


def test_one_that_was_taken_over_is_told_and_leaves_the_lock_to_the_other(path, hasty):
    told: list[str] = []
    with hold(path, told.append) as check:
        check()
        path.write_text(json.dumps({"host": "b", "pid": 1, "machine": "m"}))
        wait_until(lambda: told)
        assert "process 1 on b" in told[0]
        with pytest.raises(DataError, match="process 1 on b"):
            check()
    assert json.loads(path.read_text())["host"] == "b"


@pytest.mark.slow
def test_of_many_that_find_a_stale_lock_one_gets_it(path):
    """Each holds it until all others were refused."""
    leave_behind(path, pid=2**30)
    code = f"""
import sys, time
from pathlib import Path
from gram_jax.errors import DataError
from gram_jax.lock import hold_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold_lock(Path({str(path)!r}), "", error=DataError):
        print("held", flush=True)
        sys.stdin.readline()
except DataError:
    print("refused", flush=True)
"""
    start = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    several = [subprocess.Popen(start, **pipes) for _ in range(8)]
    assert [one.stdout.readline() for one in several] == ["ready\n"] * 8
    for one in several:
        one.stdin.write("\n")
        one.stdin.flush()
    found = [one.stdout.readline() for one in several]
    for one in several:
        one.communicate("\n")
    assert sorted(found) == ["held\n", *["refused\n"] * 7]
