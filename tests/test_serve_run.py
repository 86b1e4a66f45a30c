"""The process of a server: its address, its options, signals, an end that loses nothing."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

import httpx
import pytest
from fake_judge import tokens
from jobs import free_port
from server import PAIR, until

from gram_jax.cli.judging import serve
from gram_jax.errors import DataError, JudgeError
from gram_jax.serve.run import JsonLines, check_address


def test_an_address_in_use_is_an_error_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(DataError, match=f"cannot listen at {host}:{port}"):
                serve("no-such-judge", host=host, port=port)
    check_address("localhost", port)
    for host in ("203.0.113.1", "no-such-host.invalid"):  # of no interface, and of no machine
        with pytest.raises(DataError, match="give another --host or --port"):
            check_address(host, port)


def test_options_of_what_a_response_is_compared_with_exclude_each_other():
    for options in (
        {"compare_with": "group", "policy": "p"},
        {"max_new_tokens": 8},
        {"compare_with": "neighbors", "max_new_tokens": 8},
    ):
        with pytest.raises(DataError, match="exclude each other"):
            serve("no-such-judge", **options)


@pytest.mark.parametrize("error", [JudgeError("no score"), MemoryError("no memory")])
def test_the_log_has_the_message_of_an_error_and_the_traceback_of_a_bug(error):
    try:
        raise error
    except Exception:
        text = traceback.format_exc()
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, text, None, None)
    message = json.loads(JsonLines().format(record))["line"]["message"]
    assert str(error) in message
    assert message.startswith("Traceback") == isinstance(error, MemoryError)


SERVER = """
import sys
sys.path.insert(0, {tests!r})
from fake_judge import FakeJudge
from gram_jax.serve.app import make_app
from gram_jax.serve.run import StartError, serve
class Broken(FakeJudge):
    def warm_up(self, **_):
        raise MemoryError
try:
    serve(make_app({judge}, "judge"), host="127.0.0.1", port={port}, grace={grace})
except StartError:
    sys.exit(7)
"""


@contextlib.contextmanager
def server_process(judge: str, *, grace: int):
    """(process, address) of a server that is about to start."""
    port, tests = free_port(), os.path.dirname(__file__)
    code = SERVER.format(tests=tests, judge=judge, port=port, grace=grace)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def ask(url: str, count: int) -> tuple[list[threading.Thread], list[int]]:
    """Threads that send a request each, and the statuses of their answers."""
    statuses: list[int] = []

    def send() -> None:
        with contextlib.suppress(httpx.TransportError):
            found = httpx.post(f"{url}/v1/score_pair", json=PAIR, timeout=30)
            statuses.append(found.status_code)

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, statuses


def log_lines(process: subprocess.Popen) -> list[dict]:
    assert process.stderr is not None
    return [json.loads(x)["line"] for x in process.stderr.read().splitlines() if x.startswith("{")]


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_and_refuses_the_rest():
    with server_process("FakeJudge(seconds=2.0)", grace=20) as (process, url):
        until(lambda: is_ready(url), 60)
        threads, statuses = ask(url, 12)

        def waiting() -> float:
            text = httpx.get(f"{url}/metrics").text
            return float(text.partition("\ngram_tokens_waiting ")[2].split()[0])

        until(lambda: waiting() == 12 * tokens(tuple(PAIR.values())), 30)  # all twelve are accepted
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert statuses == [200] * 12
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)  # uvicorn ends by the signal itself
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz")
        lines = log_lines(process)
        assert len(lines) == 12 and all(line["status"] == 200 for line in lines)


@pytest.mark.slow
def test_a_judge_that_cannot_be_made_ready_ends_the_server_with_an_error():
    with server_process("Broken()", grace=1) as (process, _):
        assert process.wait(timeout=60) == 7
        assert any("MemoryError" in line["message"] for line in log_lines(process))


@pytest.mark.slow
def test_an_end_longer_than_its_grace_is_cut_short():
    """Ten calls of a second wait at the signal: the running one is finished, and then the process ends."""
    with server_process("FakeJudge(seconds=1.0, call_tokens=1)", grace=1) as (process, url):
        until(lambda: is_ready(url), 60)
        threads, _ = ask(url, 10)
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        assert time.monotonic() - started < 5
        for thread in threads:
            thread.join()
