"""The connection between the processes of a job, its ends in threads of one process."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from jobs import free_port

from gram_jax.distributed import heartbeat
from gram_jax.distributed.cluster import (
    ClusterSpec,
    detect_cluster,
    expand_node_list,
    parse_device_ids,
    tpu_vm_variables,
)
from gram_jax.distributed.heartbeat import Heartbeat
from gram_jax.errors import LOST, ClusterError

pytestmark = pytest.mark.slow

VERSIONS = {"gram_jax": "1"}


class Ends(list):
    """What the ends of a heartbeat reported when the job was over for them: (message, status)."""

    def __call__(self, message: str, status: int) -> None:
        self.append((message, status))

    def wait(self, seconds: float = 6) -> tuple[str, int]:
        deadline = time.monotonic() + seconds
        while not self:
            assert time.monotonic() < deadline, "nobody noticed"
            time.sleep(0.02)
        return self[0]


@contextmanager
def job(count: int, *, only=None, lost_after=1.5, join_timeout=5.0, versions=None):
    """Heartbeats of processes 0.., joining in threads; and for each its Ends or its ClusterError."""
    port, lines, found = free_port(), {}, {}
    for index in range(count) if only is None else only:
        ends = Ends()
        own = VERSIONS if versions is None else versions[index]
        lines[index] = Heartbeat(
            ClusterSpec(index, count, "127.0.0.1", port),
            own,
            join_timeout=join_timeout,
            lost_after=lost_after,
            end=ends,
        )
        found[index] = ends

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


def vanish(line: Heartbeat) -> None:
    """What a SIGKILL does to the connection: it is closed without a word."""
    writers = list(line._writers.values())
    line._leaving = True
    for writer in writers:
        line._loop.call_soon_threadsafe(writer.transport.abort)


def test_all_come_and_everybody_knows_the_hosts_and_what_the_others_do():
    with job(3) as (lines, found):
        assert all(line.hosts == [socket.gethostname()] * 3 for line in lines.values())
        lines[2].activity = "step 7"
        deadline = time.monotonic() + 5
        while "process 2 on" not in lines[1].activities() or "step 7" not in lines[1].activities():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not any(found.values())


@pytest.mark.parametrize("victim", [0, 2])
def test_a_connection_that_closes_without_farewell_ends_everybody_else(victim):
    with job(3) as (lines, found):
        lines[victim].activity = "step 9"
        time.sleep(2.2)  # two beats: the others know
        vanish(lines[victim])
        for index in {0, 1, 2} - {victim}:
            message, status = found[index].wait()
            assert status == LOST
            assert f"process {victim} on" in message
            assert "it was last at: step 9" in message


def test_a_farewell_ends_nobody():
    with job(3) as (lines, found):
        lines[1].deregister()
        time.sleep(2.5)
        assert not any(found.values())
        lines[0].deregister()
        time.sleep(2.5)
        assert not any(found.values())


def test_an_error_of_one_reaches_all_with_its_status():
    with job(3) as (lines, found):
        lines[1].abort("no such file", 2)
        for index in (0, 2):
            message, status = found[index].wait()
            assert (status, "ended: no such file" in message) == (2, True)
            assert "process 1" in message


def test_missing_ones_are_named_to_those_who_came():
    with job(4, only=(0, 2), join_timeout=1.5) as (_, found):
        for index in (0, 2):
            assert isinstance(found[index], ClusterError)
            assert found[index].status == LOST
            assert "process 1, process 3 did not come within 1.5 s" in str(found[index])


def test_another_version_is_refused_by_name():
    with job(2, versions=[VERSIONS, {"gram_jax": "2"}], join_timeout=2.0) as (_, found):
        assert "install the same" in str(found[1])
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
            assert b"two processes say that they are number 1" in twin.recv(1000)
        time.sleep(2.5)
        assert not any(found.values())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        # in the batch script itself, outside of any step
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "5"}, None),
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NODELIST": "n[03-04]",
                "SLURM_JOB_ID": "5",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3",
            },
            ClusterSpec(1, 2, "n03", 16394, ("n03", "n04")),
        ),
        (
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_NODELIST": "n[03-04]",
                "SLURM_JOB_ID": "8197",
                "CUDA_VISIBLE_DEVICES": "0,1",
            },
            ClusterSpec(3, 4, "n03", 16394, devices=(1,)),
        ),
        (
            {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
            ClusterSpec(1, 2, "a", 12380, ("a", "b")),
        ),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, None),
        (
            {
                "TPU_WORKER_HOSTNAMES": "c,d",
                "TPU_WORKER_ID": "1",
                "MEGASCALE_NUM_SLICES": "2",
                "MEGASCALE_SLICE_ID": "1",
                "MEGASCALE_COORDINATOR_ADDRESS": "a:8080",
            },
            ClusterSpec(3, 4, "a", 12380),
        ),
    ],
)
def test_the_place_is_found_in_what_slurm_and_tpu_pods_say(environment, expected):
    assert detect_cluster(None, None, None, None, environment) == expected


def test_a_tpu_vm_says_in_its_metadata_what_gke_says_in_variables():
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
        "tpu-env": "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:8080'\n",
    }
    found = tpu_vm_variables(attributes.__getitem__)
    assert detect_cluster(None, None, None, None, found) == ClusterSpec(3, 4, "10.0.0.1", 12380)
    attributes |= {"worker-network-endpoints": "a,b", "tpu-env": "ZONE: 'x'"}
    found = tpu_vm_variables(attributes.__getitem__)
    assert detect_cluster(None, None, None, None, found) == ClusterSpec(
        1, 2, "a", 12380, ("a", "b")
    )

    def no_such_machine(key: str) -> str:
        raise OSError("no route")

    assert tpu_vm_variables(no_such_machine) == {}


def test_a_stated_place_counts_more_than_what_is_found():
    slurm = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_STEP_NODELIST": "n[03-04]",
        "SLURM_JOB_ID": "5",
    }
    assert detect_cluster("[::1]:5", 3, 2, (0,), slurm) == ClusterSpec(2, 3, "::1", 5, devices=(0,))
    assert detect_cluster("h:5", 1, 0, None, slurm) is None


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (("h:1", 2, None), "--coordinator and --processes without --process"),
        (("h", 2, 0), "host:port"),
        (("h:99999", 2, 0), "host:port"),
        (("h:1", 2, 2), "from 0 to 1"),
    ],
)
def test_half_a_place_is_refused(stated, said):
    with pytest.raises(ClusterError, match=said):
        detect_cluster(*stated, None, {})


SLURM = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "n[03-04]",
    "SLURM_JOB_ID": "5",
}
POD = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "lack TPU_WORKER_ID"),
        (POD | {"TPU_WORKER_ID": "z"}, r"TPU_WORKER_ID = 'z': expected a number from 0 to 1"),
        (POD | {"TPU_WORKER_ID": "2"}, "TPU_WORKER_ID = '2': expected a number from 0 to 1"),
        (POD | {"MEGASCALE_NUM_SLICES": "two"}, "MEGASCALE_NUM_SLICES = 'two'"),
        (
            POD | {"MEGASCALE_NUM_SLICES": "2"},
            "MEGASCALE_COORDINATOR_ADDRESS and MEGASCALE_SLICE_ID",
        ),
        ({"MEGASCALE_NUM_SLICES": "2"}, "lack TPU_WORKER_HOSTNAMES"),
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID = 'x'"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS = 'many'"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[a-b]"}, "SLURM_STEP_NODELIST"),
    ],
)
def test_surroundings_that_make_no_place_are_named_with_the_way_out(environment, said):
    with pytest.raises(ClusterError, match=rf"{said}(.|\n)*--cluster none"):
        detect_cluster(None, None, None, None, environment)


def test_devices_are_different_numbers():
    assert parse_device_ids("0, 2") == (0, 2) and parse_device_ids(None) is None
    for text in ("-1", "0,0", "x", ""):
        with pytest.raises(ClusterError, match="expected different numbers"):
            parse_device_ids(text)


def test_what_goes_to_all_is_encoded_once(monkeypatch):
    with job(3) as (lines, _):
        lines[0]._leaving = True  # no further beats
        time.sleep(1.2)
        encoded = []
        monkeypatch.setattr(heartbeat, "_line", lambda message: encoded.append(message) or b"{}\n")
        told = lines[0]._tell_all({"doings": {}})
        asyncio.run_coroutine_threadsafe(told, lines[0]._loop).result(5)
        own = [message for message in encoded if "doings" in message]
        lines[0]._leaving = False
    assert len(own) == 1


def test_node_lists_of_slurm_are_read():
    assert expand_node_list("a1") == ["a1"]
    assert expand_node_list("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]
