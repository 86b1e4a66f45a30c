"""Requests of many threads, scored together: batches, a bounded queue, deadlines, closing."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from server import until

from gram_jax.scoring.request_batcher import (
    BatchedScorer,
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
    RequestBatcher,
)

PAIR = ("q", "a", "b")


@pytest.fixture
def pool():
    with ThreadPoolExecutor(20) as threads:
        yield threads


@contextlib.contextmanager
def batching(judge, **settings):
    batcher = RequestBatcher(judge, **settings)
    yield batcher
    batcher.close()


def ask(batcher, *pairs, seconds: float = 30.0):
    return BatchedScorer(batcher, time.monotonic() + seconds).score_many(pairs)


def test_requests_that_wait_are_scored_together(judge, pool):
    with batching(judge) as batcher:
        judge.go.clear()
        found = [pool.submit(ask, batcher, ("q", "a" * at, "")) for at in range(20)]
        until(lambda: batcher.waiting == 40)
        judge.go.set()
        assert [one.result()[0].margin for one in found] == [at / 2 for at in range(20)]
        assert len(judge.sizes) <= 3 and sum(judge.sizes) == 20
    with pytest.raises(BatcherClosedError):
        ask(batcher, PAIR)


def test_one_bad_request_in_a_batch_fails_alone(judge, pool):
    with batching(judge) as batcher:
        judge.go.clear()
        found = [pool.submit(ask, batcher, ("q", text, "b")) for text in ("a", "broken", "ccc")]
        until(lambda: batcher.waiting == 6)
        judge.go.set()
        assert isinstance(found[1].exception(), RuntimeError)
        assert [found[at].result()[0].margin for at in (0, 2)] == [0.0, 1.0]


def test_a_full_queue_refuses_at_once_and_estimates_when_to_retry(judge, pool):
    with batching(judge, max_queue=10) as batcher:
        judge.go.clear()
        waiting = [pool.submit(ask, batcher, PAIR, PAIR) for _ in range(2)]
        until(lambda: batcher.waiting == 8)
        started = time.monotonic()
        with pytest.raises(QueueFullError) as refused:
            ask(batcher, PAIR, PAIR)
        assert time.monotonic() - started < 0.1 and refused.value.retry_after >= 1
        judge.go.set()
        for one in waiting:
            one.result()
        assert len(ask(batcher, *[PAIR] * 20)) == 20  # larger than the queue, alone


def test_a_deadline_that_passes_in_the_queue_is_an_error_at_once_and_frees_its_place(judge, pool):
    with batching(judge, max_queue=4) as batcher:
        judge.go.clear()
        pool.submit(ask, batcher, PAIR)
        assert judge.asked.wait(10)
        for seconds in (-1, 0.1):
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                ask(batcher, PAIR, seconds=seconds)
            assert time.monotonic() - started < 1
            assert batcher.waiting == 2  # the first is still being scored
        judge.go.set()
    assert judge.sizes == [1]


def test_retry_after_is_whole_seconds_rounded_up_with_limits(judge):
    with batching(judge) as batcher:
        batcher.waiting, batcher.speed = 25, 10.0
        assert batcher.retry_after() == 2
        batcher.speed = 1e-3
        assert batcher.retry_after() == 60


def test_closing_may_finish_the_call_and_refuse_what_waits(judge, pool):
    batcher = RequestBatcher(judge, max_batch=2)
    judge.go.clear()
    found = []
    for number in range(1, 4):
        found.append(pool.submit(ask, batcher, PAIR))
        until(lambda number=number: judge.asked.is_set() and batcher.waiting == 2 * number)
    closing = pool.submit(batcher.close, finish_queued=False)
    until(lambda: batcher.waiting == 2)
    judge.go.set()
    closing.result(10)
    assert len(found[0].result(10)) == 1 and batcher.waiting == 0
    assert all(isinstance(one.exception(10), BatcherClosedError) for one in found[1:])


def test_deadlines_that_pass_while_a_batch_is_collected_leave_the_batcher_alive(judge):
    with batching(judge) as batcher:
        for _ in range(200):
            with contextlib.suppress(DeadlineExceededError):
                ask(batcher, PAIR, seconds=1e-4)
        assert len(ask(batcher, PAIR)) == 1
