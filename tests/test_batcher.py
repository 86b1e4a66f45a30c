"""What many threads ask, scored together: batches, a bounded queue, deadlines, an end."""

import contextlib
import threading
import time

import pytest
from server import FakeJudge, until

from gram_jax.scoring.request_batcher import (
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
    RequestBatcher,
)


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


def test_what_waits_together_is_scored_together(judge):
    batcher = RequestBatcher(judge)
    judge.go.clear()
    answers: list = []
    end = time.monotonic() + 30
    threads = [
        threading.Thread(
            target=lambda at=at: answers.append((at, batcher.pairs([("q", "a" * at, "")], end)))
        )
        for at in range(20)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    judge.go.set()
    for thread in threads:
        thread.join()
    assert len(judge.sizes) <= 3 and sum(judge.sizes) == 20
    for at, (score,) in answers:
        assert score.margin == at / 2
    batcher.close()
    with pytest.raises(BatcherClosedError):
        batcher.pairs([("q", "a", "b")], end)


def test_one_bad_request_in_a_batch_leaves_the_others_their_answers(judge):
    batcher, found = RequestBatcher(judge), {}
    judge.go.clear()

    def ask(text: str) -> None:
        try:
            found[text] = batcher.pairs([("q", text, "b")], time.monotonic() + 30)
        except RuntimeError as error:
            found[text] = error

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("a", "broken", "ccc")]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    judge.go.set()
    for thread in threads:
        thread.join()
    assert isinstance(found["broken"], RuntimeError)
    assert found["ccc"][0].margin == 1.0 and found["a"][0].margin == 0.0
    batcher.close()


def test_a_full_queue_refuses_quickly_and_says_when_to_come_again(judge):
    batcher = RequestBatcher(judge, max_queue=10)
    judge.go.clear()
    end = time.monotonic() + 30
    waiting = [
        threading.Thread(target=lambda: batcher.pairs([("q", "a", "b")] * 2, end)) for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    with pytest.raises(QueueFullError) as refused:
        batcher.pairs([("q", "a", "b")] * 2, end)
    assert time.monotonic() - started < 0.1 and refused.value.retry_after >= 1
    judge.go.set()
    for thread in waiting:
        thread.join()
    assert len(batcher.pairs([("q", "a", "b")] * 20, end)) == 20  # larger than the queue, alone
    with pytest.raises(DeadlineExceededError):
        batcher.pairs([("q", "a", "b")], time.monotonic() - 1)
    batcher.close()


def test_a_deadline_that_passes_in_the_queue_is_said_at_once_and_gives_its_room_back(judge):
    batcher = RequestBatcher(judge, max_queue=4)
    judge.go.clear()
    end = time.monotonic() + 30
    first = threading.Thread(target=lambda: batcher.pairs([("q", "a", "b")], end))
    first.start()
    assert judge.asked.wait(10)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        batcher.pairs([("q", "a", "b")], started + 0.1)
    assert (
        time.monotonic() - started < 1 and batcher.waiting == 2
    )  # the first is being scored still
    judge.go.set()
    first.join()
    batcher.close()
    assert judge.sizes == [1]


def test_retry_after_is_whole_seconds_rounded_up_and_never_absurd(judge):
    batcher = RequestBatcher(judge)
    batcher.waiting, batcher.speed = 25, 10.0
    assert batcher.retry_after() == 2
    batcher.speed = 1e-3
    assert batcher.retry_after() == 60
    batcher.close()


def test_a_batcher_that_is_stopped_finishes_its_call_and_refuses_what_waits(judge):
    batcher, found = RequestBatcher(judge, max_batch=2), []
    judge.go.clear()

    def ask() -> None:
        try:
            found.append(len(batcher.pairs([("q", "a", "b")], time.monotonic() + 30)))
        except BatcherClosedError:
            found.append("closed")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    started = []
    for thread in threads:
        thread.start()
        started.append(thread)
        until(lambda: judge.asked.is_set() and batcher.waiting == 2 * len(started))
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    until(lambda: batcher.waiting == 2)
    judge.go.set()
    for thread in [*threads, stopping]:
        thread.join(10)
    assert sorted(map(str, found)) == ["1", "closed", "closed"] and batcher.waiting == 0


def test_deadlines_that_pass_while_a_batch_is_collected_leave_the_batcher_alive(judge):
    batcher = RequestBatcher(judge)
    for _ in range(200):
        with contextlib.suppress(DeadlineExceededError):
            batcher.pairs([("q", "a", "b")], time.monotonic() + 1e-4)
    assert len(batcher.pairs([("q", "a", "b")], time.monotonic() + 30)) == 1
    batcher.close()
