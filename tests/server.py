"""Servers of a judge without a model: over ASGI and over real sockets."""

import threading
import time
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from fake_judge import FakeJudge
from jobs import free_port

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx")
import uvicorn
from starlette.testclient import TestClient

from gram_jax.serve.admission import Limits
from gram_jax.serve.app import make_app
from gram_jax.serve.connections import ConnectionLimits
from gram_jax.serve.run import server_config

PAIR = {"prompt": "q", "first": "aa", "second": "b"}
CHAT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
HISTORY = {"conversation_history": [{"role": "user", "content": "q"}]}


def until(true, seconds: float = 20.0) -> None:
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def client_for(judge, **settings) -> TestClient:
    app = make_app(judge, "test-judge", **{"warm_up": False} | settings)
    return TestClient(app, raise_server_exceptions=False)


class Address(NamedTuple):
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def serving(
    limits: Limits,
    judge: FakeJudge | None = None,
    connections: ConnectionLimits | None = None,
    **settings,
):
    """The address of a server in a thread of this process."""
    port = free_port()
    app = make_app(judge or FakeJudge(), "test", limits=limits, group_wait=0.05, **settings)
    server = uvicorn.Server(server_config(app, "127.0.0.1", port, connections))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, 30)
    try:
        yield Address("127.0.0.1", port)
    finally:
        server.should_exit = True
        thread.join(10)
