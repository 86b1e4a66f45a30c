"""The reward server over real sockets and from its OpenAPI document: fuzzing, slow bodies, memory that stays flat."""

import asyncio
import gc
import json
import socket
import time
import tracemalloc
from functools import partial

import httpx
import numpy as np
import pytest
from fake_judge import FakeJudge
from hypothesis import HealthCheck, Phase, given, settings
from server import PAIR, serving, until

from gram_jax.serve.admission import Limits
from gram_jax.serve.app import make_app

pytestmark = pytest.mark.slow

FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def address():
    with serving(Limits(body=20_000, body_seconds=1.0)) as found:
        yield found


def test_requests_drawn_from_the_openapi_document_are_answered_as_it_says():
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    app = make_app(FakeJudge(), "test", group_wait=0.01)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen: set[tuple[str, int]] = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @FUZZ
        @given(case=operation.as_strategy())
        def ask(case) -> None:
            found = case.call()
            seen.add((case.operation.path, found.status_code))
            # 504: a drawn deadline of a millisecond
            assert found.status_code in (200, 422, 504), (case.operation.path, found.text)
            # Excluded: a schema cannot say that a text holds a rendered conversation, or messages a question.
            unsuited = [positive_data_acceptance, not_a_server_error]
            case.validate_response(found, excluded_checks=unsuited)

        ask()
    judged = {path for path, status in seen if status == 200}
    # Without /compare: drawn messages rarely end with a question.
    posts = ("/v1/score_pair", "/v1/rank", "/get_reward", "/classify", "/score")
    assert set(posts) <= judged, set(posts) - judged


def test_a_slow_body_times_out_and_delays_no_other_request(address):
    head = b"POST /v1/score_pair HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    slow = []
    for _ in range(20):
        sock = socket.create_connection(address)
        sock.sendall(head + b"content-length: 5000\r\n\r\n{")
        slow.append(sock)
    started = time.monotonic()
    assert httpx.post(f"{address.url}/v1/score_pair", json=PAIR).status_code == 200
    assert time.monotonic() - started < 0.9  # before the slow ones are given up
    for sock in slow:
        sock.settimeout(5)
        answer = b"".join(iter(partial(sock.recv, 4096), b""))
        assert answer.startswith(b"HTTP/1.1 408") and b"slow_body" in answer
        sock.close()
    assert time.monotonic() - started < 5


def test_a_large_content_length_is_refused_before_the_body_is_sent(address):
    with socket.create_connection(address) as sock:
        sock.settimeout(5)
        sock.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_body_that_no_endpoint_reads_is_not_waited_for(address):
    """Health and the page ask for no token: their callers must not fill the memory with bodies."""
    for path in ("/healthz", "/", "/metrics"):
        with socket.create_connection(address) as sock:
            sock.settimeout(5)
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 19000\r\n\r\n"
            started = time.monotonic()
            sock.sendall(head.encode() + b"x" * 1000)
            assert sock.recv(4096).startswith(b"HTTP/1.1 405")
            assert time.monotonic() - started < 0.9  # and not when the body is given up


def test_a_client_that_disconnects_within_its_body_is_counted_as_499(address):
    head = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"
    with socket.create_connection(address) as sock:
        sock.sendall(head + b'{"prompt"')
    wanted = 'gram_requests_total{path="/v1/rank",status="499"} 1.0'
    until(lambda: wanted in httpx.get(f"{address.url}/metrics").text, 5)


def test_broken_http_and_disconnecting_clients_do_not_affect_others(address):
    broken = (b"\0\1\2\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/rank HTTP/1.1\r\n", b"")
    body = json.dumps(PAIR)
    head = f"POST /v1/score_pair HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    leaving = (head + body).encode()  # without the answer
    for piece in (*broken, *[leaving] * 4) * 5:
        with socket.create_connection(address) as sock:
            sock.sendall(piece)
    assert httpx.post(f"{address.url}/v1/score_pair", json=PAIR).status_code == 200


def test_memory_stays_flat_over_many_requests():
    """The short form of `benchmarks/serve.py --requests 100000`: what is kept for a request is given back."""

    async def send(url: str, count: int) -> None:
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

            async def some(first: int) -> None:
                for at in range(first, count, 16):
                    body = PAIR | {"first": "a" * (at % 50)}
                    assert (await client.post("/v1/score_pair", json=body)).status_code == 200
                    if at % 4 == 0:  # must not become a metric
                        missing = await client.post(f"/no/such/path/{at}")
                        assert missing.status_code == 404

            await asyncio.gather(*(some(first) for first in range(16)))

    with serving(Limits()) as address:
        asyncio.run(send(address.url, 100))
        tracemalloc.start()
        try:
            held = []
            for _ in range(4):
                asyncio.run(send(address.url, 100))
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    # 200 bytes a request: a kept body or future has more. What is made once belongs to one part, a leak to each.
    assert min(np.diff(held)) < 200 * 100, held
