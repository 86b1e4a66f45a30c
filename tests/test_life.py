"""Stop requests, the watchdog, devices and the lock of a run's directory, in one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from gram_jax.checkpoint.orbax import SAVE_SECONDS
from gram_jax.cli.options import StopOptions
from gram_jax.distributed import lock, process, watchdog
from gram_jax.distributed.lock import LOCK, folder_lock, hold_lock
from gram_jax.distributed.preemption import StopRequest, StopSync
from gram_jax.distributed.process import ProcessContext, distributed_session
from gram_jax.distributed.watchdog import Watchdog
from gram_jax.errors import LOST, RESTART, ClusterError, InUseError

pytestmark = pytest.mark.slow


@pytest.fixture
def ends(monkeypatch):
    """What would have ended the process: (message, status)."""
    found = []
    for module in (process, watchdog):
        monkeypatch.setattr(module, "exit_process", lambda *how: found.append(how))
    return found


def wait_for(found: list, seconds: float = 5) -> None:
    limit = time.monotonic() + seconds
    while not found and time.monotonic() < limit:
        time.sleep(0.02)


def test_after_the_grace_period_the_process_ends_and_asks_to_be_started_again(ends, one_device):
    with StopRequest(ProcessContext(grace=0.3)) as stop:
        stop.begin()
        sync = StopSync(stop, one_device)
        assert sync.check() is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # schedulers may repeat it
        assert sync.check() == "SIGTERM"
        assert not ends
        wait_for(ends)
    assert [status for _, status in ends] == [RESTART]
    assert "0.3 s" in ends[0][0]


def test_a_process_that_is_ready_within_the_grace_period_is_not_ended(ends):
    with StopRequest(ProcessContext(grace=0.3)) as stop:
        stop.begin()
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.6)
    assert not ends


def test_sigterm_before_there_is_a_state_ends_the_whole_job_even_while_the_main_thread_is_busy(
    ends,
):
    told = []
    heartbeat = SimpleNamespace(abort=lambda *ending: told.append(ending))
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(ProcessContext(heartbeat, grace=100)):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as in a compilation, where no handler runs
        signal.raise_signal(signal.SIGTERM)
        wait_for(ends)
    assert ends == told
    assert ends[0][1] == RESTART
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_before_there_is_a_state_acts_at_once(ends):
    with pytest.raises(KeyboardInterrupt), StopRequest(ProcessContext()):
        signal.raise_signal(signal.SIGINT)
    with StopRequest(ProcessContext()) as stop:
        stop.begin()
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not ends


def test_a_process_without_progress_ends_with_the_stacks_of_its_threads(ends, tmp_path, capfd):
    blocked = threading.Event()

    def the_thread_that_hangs():
        blocked.wait(10)

    thread = threading.Thread(target=the_thread_that_hangs)
    thread.start()
    with Watchdog(ProcessContext(stuck_after=0.4), tmp_path / "stuck.txt") as dog:
        dog.beat("waiting for the data of step 3")
        wait_for(ends)
    blocked.set()
    thread.join()
    assert ends[0][1] == LOST
    report = (tmp_path / "stuck.txt").read_text()
    assert "0.4 s, at: waiting for the data of step 3" in report
    assert "the_thread_that_hangs" in report
    assert "the_thread_that_hangs" in capfd.readouterr().err


def test_beats_keep_the_watchdog_quiet_and_none_is_needed_without_a_limit(ends, tmp_path):
    with Watchdog(ProcessContext(stuck_after=0.5), tmp_path / "stuck.txt") as dog:
        for _ in range(10):
            time.sleep(0.1)
            dog.beat("a step")
    with Watchdog(ProcessContext(), tmp_path / "stuck.txt"):
        time.sleep(0.7)
    assert not ends


def test_a_save_may_take_its_time_before_the_watchdog_ends_it():
    assert StopOptions().stuck_after > SAVE_SECONDS


# --- the GPUs of a job of one process


@pytest.fixture
def platforms():
    """States the platforms for one test."""
    before = jax.config.jax_platforms
    yield lambda value: jax.config.update("jax_platforms", value)
    jax.config.update("jax_platforms", before)


@contextmanager
def alone(devices):
    settings = {"join_timeout": 5, "lost_after": 5, "grace": None, "stuck_after": None}
    with distributed_session(None, devices=devices, **settings) as found:
        yield found


def test_a_job_of_one_process_takes_the_gpus_that_it_was_given(platforms, monkeypatch):
    platforms("cuda")
    gpu = SimpleNamespace(platform="gpu", device_kind="a GPU")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu, gpu])
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    with alone((1, 3)) as found:
        assert found.index == 0
    assert told["jax_cuda_visible_devices"] == told["jax_rocm_visible_devices"] == "1,3"
    with (
        pytest.raises(ClusterError, match=r"--local-devices 7 .*expected 1 GPUs, JAX found 2"),
        alone((7,)),
    ):
        pass


def test_gpus_that_are_not_there_are_refused_unless_the_cpu_was_asked_for(platforms):
    platforms("cpu")
    with alone((7,)):
        pass
    platforms(None)
    with (
        pytest.raises(ClusterError, match=r"--local-devices 7 .*JAX found cpu"),
        alone((7,)),
    ):
        pass


# --- one job in a folder


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.6)


def test_a_second_job_in_a_folder_is_refused_with_the_name_of_the_first(tmp_path, hasty):
    with hold_lock(folder_lock(tmp_path)):
        named = rf"process {os.getpid()} on {socket.gethostname()} writes {tmp_path}"
        with pytest.raises(InUseError, match=named), hold_lock(folder_lock(tmp_path)):
            pass
        time.sleep(0.3)
        assert json.loads((tmp_path / LOCK).read_text())["beat"] >= 1
    assert not list(tmp_path.iterdir())
    with hold_lock(folder_lock(tmp_path)):
        pass


def leave_behind(folder: Path, **changes) -> None:
    """The file of an owner that got no chance to remove it."""
    with hold_lock(folder_lock(folder)):
        text = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(text | changes))


def test_an_owner_that_was_killed_on_this_machine_is_forgotten_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 1000.0)
    dead = subprocess.Popen(["true"])
    while Path(f"/proc/{dead.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    for changes in ({"pid": dead.pid}, {"started": "1"}, {"pid": 2**30}):
        leave_behind(tmp_path, **changes)
        with hold_lock(folder_lock(tmp_path)):
            pass
    dead.wait()


def test_an_owner_elsewhere_is_forgotten_when_it_gives_no_sign_of_life(tmp_path, hasty, ends):
    for changes in ({"host": "other", "machine": "other"}, {"machine": None}):
        leave_behind(tmp_path, **changes)
        since = time.monotonic()
        with hold_lock(folder_lock(tmp_path)):
            assert time.monotonic() - since > 0.5
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (tmp_path / LOCK).write_text("")  # of one that was killed in the middle of the file
    with hold_lock(folder_lock(tmp_path)):
        pass
    assert not ends


def test_an_owner_elsewhere_that_is_alive_is_refused_and_one_that_took_over_ends_the_first(
    tmp_path, hasty, ends
):
    other = {"host": "b", "pid": 1, "machine": "m"}
    (tmp_path / LOCK).write_text(json.dumps(other))
    beat = threading.Timer(0.2, (tmp_path / LOCK).write_text, [json.dumps(other | {"beat": 1})])
    beat.start()
    with (
        pytest.raises(InUseError, match="process 1 on b"),
        hold_lock(folder_lock(tmp_path)),
    ):
        pass
    (tmp_path / LOCK).unlink()
    with hold_lock(folder_lock(tmp_path)):
        assert not ends
        (tmp_path / LOCK).write_text(json.dumps(other))
        wait_for(ends)
    assert "process 1 on b" in ends[0][0] and ends[0][1] == 2


@pytest.mark.parametrize("machine", ["this", "other"])
def test_of_two_that_find_the_same_stale_lock_one_gets_it(tmp_path, hasty, ends, machine):
    """Each with a name of its own, as processes have; in one process they would be the same owner."""
    changes = {"started": "1"} if machine == "this" else {"machine": "other"}
    leave_behind(tmp_path, **changes)
    code = f"""
import time
from pathlib import Path
from gram_jax.distributed import lock
lock.STALE_SECONDS = 0.6
try:
    with lock.hold_lock(Path({str(tmp_path)!r}) / lock.LOCK):
        time.sleep(2)
        print("held")
except lock.InUseError:
    print("refused")
"""
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(process.communicate()[0].strip() for process in both) == ["held", "refused"]
