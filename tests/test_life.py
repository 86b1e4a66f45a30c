"""Grace and the watchdog, in one process."""

import threading
import time

import pytest

from gram_jax.cluster.member import Member
from gram_jax.errors import LOST, RESTART
from gram_jax.train import preemption, watchdog
from gram_jax.train.preemption import StopRequest, Vote
from gram_jax.train.watchdog import Watchdog


@pytest.fixture
def ends(monkeypatch):
    """What would have ended the process: (message, status)."""
    found = []
    for module in (preemption, watchdog):
        monkeypatch.setattr(module, "end_process", lambda *how: found.append(how))
    return found


def wait_for(found: list, seconds: float = 5) -> None:
    limit = time.monotonic() + seconds
    while not found and time.monotonic() < limit:
        time.sleep(0.02)


def test_after_the_grace_period_the_process_ends_and_asks_to_be_started_again(ends, one_device):
    import signal

    with StopRequest(grace=0.3) as stop:
        vote = Vote(stop, one_device)
        assert vote.now() is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # schedulers may repeat it
        assert vote.now() == "SIGTERM"
        assert not ends
        wait_for(ends)
    assert len(ends) == 1
    assert ends[0][1] == RESTART
    assert "not ready within the 0.3 s of grace" in ends[0][0]


def test_who_is_ready_within_the_grace_period_ends_in_peace(ends):
    import signal

    with StopRequest(grace=0.3):
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.6)
    assert not ends


def test_a_process_without_progress_ends_with_the_stacks_of_its_threads(ends, tmp_path, capfd):
    blocked = threading.Event()

    def the_thread_that_hangs():
        blocked.wait(10)

    thread = threading.Thread(target=the_thread_that_hangs)
    thread.start()
    with Watchdog(Member(stuck_after=0.4), tmp_path / "stuck.txt") as dog:
        dog.beat("waiting for the data of step 3")
        wait_for(ends)
    blocked.set()
    thread.join()
    assert ends[0][1] == LOST
    report = (tmp_path / "stuck.txt").read_text()
    assert "no progress for 0.4 s, at: waiting for the data of step 3" in report
    assert "the_thread_that_hangs" in report
    assert "the_thread_that_hangs" in capfd.readouterr().err


def test_beats_keep_the_watchdog_quiet_and_none_is_needed_without_a_limit(ends, tmp_path):
    with Watchdog(Member(stuck_after=0.5), tmp_path / "stuck.txt") as dog:
        for _ in range(10):
            time.sleep(0.1)
            dog.beat("a step")
    with Watchdog(Member(), tmp_path / "stuck.txt"):
        time.sleep(0.7)
    assert not ends
