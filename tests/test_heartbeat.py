"""The heartbeat between the processes of a job: its sides in threads of one process, or a process that is killed."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from jobs import free_port

from gram_jax.distributed.cluster import ClusterSpec
from gram_jax.distributed.heartbeat import Heartbeat
from gram_jax.errors import LOST, ClusterError

pytestmark = pytest.mark.slow

VERSIONS = {"gram_jax": "1"}


class Ends(list):
    """What a heartbeat reported when the job was over for it: (message, status)."""

    def __call__(self, message: str, status: int) -> None:
        self.append((message, status))

    def wait(self, seconds: float = 6) -> tuple[str, int]:
        wait_until(lambda: self, seconds)
        return self[0]


def wait_until(true, seconds: float = 6) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def job(count, *, only=None, lost_after=1.5, join_timeout=5.0, versions=None, port=None):
    """Heartbeats of processes 0.., joining in threads; and for each its Ends or its ClusterError."""
    port, lines, found = port or free_port(), {}, {}
    for index in range(count) if only is None else only:
        found[index] = Ends()
        lines[index] = Heartbeat(
            ClusterSpec(index, count, "127.0.0.1", port),
            VERSIONS if versions is None else versions[index],
            join_timeout=join_timeout,
            lost_after=lost_after,
            end=found[index],
        )

    def join(index):
        try:
            lines[index].join()
        except ClusterError as error:
            found[index] = error

    threads = [threading.Thread(target=join, args=(index,)) for index in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    yield lines, found
    for line in lines.values():
        line.deregister()


@contextmanager
def real_process(index: int, count: int, port: int):
    """A process of the job of its own."""
    code = (
        "import time; from gram_jax.distributed.cluster import ClusterSpec\n"
        "from gram_jax.distributed.heartbeat import Heartbeat\n"
        f"line = Heartbeat(ClusterSpec({index}, {count}, '127.0.0.1', {port}), {VERSIONS},"
        " join_timeout=20, lost_after=20)\n"
        "line.join(); line.activity = 'step 9'; time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    yield process
    process.kill()
    process.wait()


def test_all_join_and_know_the_hosts_and_what_the_others_do():
    with job(3) as (lines, found):
        assert all(line.hosts == [socket.gethostname()] * 3 for line in lines.values())
        lines[2].activity = "step 7"
        wait_until(lambda: "step 7" in lines[1].activities())
        assert "process 2 on" in lines[1].activities()
    assert not any(found.values())


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others_with_its_name(victim):
    port, others = free_port(), [index for index in range(3) if index != victim]
    with (
        real_process(victim, 3, port) as process,
        job(3, only=others, join_timeout=20.0, port=port) as (lines, found),
    ):
        wait_until(lambda: all("step 9" in line.activities() for line in lines.values()))
        process.kill()
        for index in others:
            message, status = found[index].wait()
            assert status == LOST
            assert f"process {victim} on" in message and "step 9" in message


def test_a_farewell_ends_no_other_process():
    with job(3) as (lines, found):
        for index in (1, 0):
            lines[index].deregister()
            time.sleep(2.5)
            assert not any(found.values())


def test_an_error_of_one_process_reaches_all_with_its_status():
    with job(3) as (lines, found):
        lines[1].abort("no such file", 2)
        for index in (0, 2):
            message, status = found[index].wait()
            assert status == 2
            assert "process 1" in message and "no such file" in message


def test_missing_processes_are_named_to_those_that_joined():
    with job(4, only=(0, 2), join_timeout=1.5) as (_, found):
        for index in (0, 2):
            assert isinstance(found[index], ClusterError)
            assert found[index].status == LOST
            assert "process 1, process 3" in str(found[index])


def test_another_version_is_refused():
    with job(2, versions=[VERSIONS, {"gram_jax": "2"}], join_timeout=2.0) as (_, found):
        assert str(VERSIONS) in str(found[1]) and "{'gram_jax': '2'}" in str(found[1])
        assert found[1].status == 2


def test_a_stranger_at_the_port_does_no_harm():
    with job(2) as (lines, found):
        address = ("127.0.0.1", lines[0].place.port)
        for words in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"[1]\n",
            b'{"hello": "x"}\n',
            b"\xff" * 5000,
            b"",
        ):
            with socket.create_connection(address) as stranger:
                stranger.sendall(words)
        hello = {"hello": 1, "processes": 2, "host": "elsewhere", "versions": VERSIONS}
        with socket.create_connection(address) as twin:
            twin.sendall(json.dumps(hello).encode() + b"\n")
            message, status = json.loads(twin.recv(1000))["end"]
            assert status == 2 and "elsewhere" in message
        time.sleep(2.5)
        assert not any(found.values())
