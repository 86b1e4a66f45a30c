"""Connections: silent ones, unfinished heads, clients that close their side, clients that do not read."""

import json
import resource
import socket
import time

import httpx
from fake_judge import FakeJudge
from server import PAIR, serving, until

from gram_jax.serve.admission import Limits
from gram_jax.serve.connections import ConnectionLimits

BODY = json.dumps(PAIR)
HEAD = f"POST /v1/score_pair HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\ncontent-type: application/json\r\n"
REQUEST = f"{HEAD}\r\n{BODY}".encode()


def judged(address, source: str = "127.0.0.1") -> int:
    """The status of a request over a connection of its own."""
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport, timeout=5) as client:
        return client.post(f"{address.url}/v1/score_pair", json=PAIR).status_code


def connected(address, count: int, sent: bytes, source: str = "127.0.0.1") -> list[socket.socket]:
    found = []
    for _ in range(count):
        sock = socket.create_connection(address, source_address=(source, 0))
        sock.sendall(sent)
        found.append(sock)
    return found


def is_closed(sock: socket.socket) -> bool:
    """Whether the server closed a connection without a response."""
    sock.settimeout(0.05)
    try:
        return sock.recv(100) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def answer(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    found = b""
    while part := sock.recv(65536):
        found += part
    return found


def test_unfinished_heads_and_silent_connections_are_closed_in_time():
    with serving(Limits(), connections=ConnectionLimits(head_seconds=0.3)) as address:
        silent = [*connected(address, 3, b""), *connected(address, 3, HEAD[:30].encode())]
        (used,) = connected(address, 1, REQUEST)  # then a second head that is not finished
        used.settimeout(5)
        assert used.recv(65536).startswith(b"HTTP/1.1 200")
        used.sendall(HEAD[:30].encode())
        until(lambda: all(map(is_closed, [*silent, used])), 5)
        assert judged(address) == 200


def test_a_full_house_of_unfinished_heads_refuses_nobody():
    limits = ConnectionLimits(total=20, of_client=15)
    with serving(Limits(), connections=limits) as address:
        for source in ("127.0.0.2", "127.0.0.3"):
            connected(address, 30, HEAD[:30].encode(), source)
        assert [judged(address) for _ in range(5)] == [200] * 5


def test_a_client_has_its_own_limit_and_open_requests_are_not_closed_for_others():
    judge = FakeJudge()
    with serving(Limits(), judge, ConnectionLimits(total=8, of_client=4)) as address:
        judge.go.clear()
        mine = connected(address, 4, REQUEST)
        time.sleep(0.5)  # they are open
        (refused,) = connected(address, 1, REQUEST)
        until(lambda: is_closed(refused), 5)
        others = connected(address, 1, REQUEST, "127.0.0.2")
        judge.go.set()
        for sock in (*mine, *others):
            sock.settimeout(10)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_client_that_closes_its_side_gets_its_response():
    with serving(Limits(), FakeJudge(seconds=0.3)) as address:
        (sock,) = connected(address, 1, REQUEST)
        sock.shutdown(socket.SHUT_WR)
        found = answer(sock)
        assert found.startswith(b"HTTP/1.1 200") and b'"first"' in found


def test_a_length_beside_chunks_is_refused_and_the_connection_closed():
    with serving(Limits()) as address:
        chunked = f"{HEAD}transfer-encoding: chunked\r\n\r\n{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n"
        (sock,) = connected(address, 1, chunked.encode() + REQUEST)
        found = answer(sock)
        assert found.startswith(b"HTTP/1.1 400") and found.count(b"HTTP/1.1") == 1


def test_no_header_of_a_response_repeats_the_host():
    with serving(Limits()) as address:
        for path in ("/get_reward/", "/v1/score_pair/", "/no/such/"):
            found = httpx.post(f"{address.url}{path}", headers={"host": "evil.example"}, json=PAIR)
            assert "evil" not in str(found.headers) and not found.is_redirect
        slash = httpx.post(f"{address.url}/v1/score_pair/", json=PAIR)
        assert slash.status_code == 200


def test_a_client_that_does_not_read_is_given_up():
    limits = ConnectionLimits(head_seconds=0.3)
    with serving(Limits(), connections=limits) as address:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address)
        get = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
        sock.sendall(get * 400)  # far more than the buffers hold

        def given_up() -> bool:
            try:
                sock.sendall(b"x")
            except ConnectionError:
                return True
            return False

        until(given_up, 10)


def test_connections_leave_descriptors_for_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        found = ConnectionLimits(total=500, of_client=450).within_descriptors()
        now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert found.total < now and found.of_client <= found.total
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
