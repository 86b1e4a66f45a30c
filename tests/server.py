"""A judge without a model, and servers of it: over ASGI and over real sockets."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from jobs import free_port

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx")
import uvicorn
from starlette.testclient import TestClient

from gram_jax.ranking.jobs import RankingJob
from gram_jax.scoring.pair import combine_orders
from gram_jax.serve.app import make_app
from gram_jax.serve.middleware import Limits

PAIR = {"prompt": "q", "first": "aa", "second": "b"}
CHAT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
HISTORY = {"conversation_history": [{"role": "user", "content": "q"}]}


class FakeJudge:
    """Log-odds: half the difference of lengths. Each call takes `seconds`; "broken" breaks it."""

    class Spec:
        labels, hash = (" A", " B"), "abc"

    spec = Spec()

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.sizes = seconds, []
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()

    def warm_up(self, *, rankings: bool = False) -> None:
        pass

    def score_many(self, triples):
        self.asked.set()
        self.go.wait(10)
        time.sleep(self.seconds)
        self.sizes.append(len(triples))
        if any(first == "broken" for _, first, _ in triples):
            raise RuntimeError("secret text")
        logit_diffs = [(len(a) - len(b)) / 2 for _, a, b in triples]
        return [combine_orders(diff, -diff, False) for diff in logit_diffs]

    def rank_many(self, items, config=None):
        for prompt, responses in items:
            job = RankingJob(prompt, responses, config)
            while job.ranking is None:
                logit_diffs = [(len(a) - len(b)) / 2 for _, a, b in job.pending_comparisons()]
                job.update(np.array(logit_diffs), shortened=False)
            yield job.ranking


def until(true, seconds: float = 20.0) -> None:
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def client_for(judge, **settings) -> TestClient:
    return TestClient(make_app(judge, "test-judge", **settings), raise_server_exceptions=False)


@contextmanager
def serving(limits: Limits, judge: FakeJudge | None = None, **settings):
    """Host and port of a server in a thread of this process."""
    port = free_port()
    app = make_app(judge or FakeJudge(), "test", limits=limits, group_wait=0.05, **settings)
    config = uvicorn.Config(
        app, "127.0.0.1", port, log_level="error", access_log=False, timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    assert server.started
    try:
        yield "127.0.0.1", port
    finally:
        server.should_exit = True
        thread.join(10)
