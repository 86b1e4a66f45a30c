"""Requests of many threads, scored together: batches, a bounded queue, deadlines, closing."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_judge import FakeJudge, tokens
from server import until

from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring.request_batcher import (
    SHORT,
    BatchedScorer,
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
    RequestBatcher,
)
from gram_jax.scoring.turns import FairQueue, Turns

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


def ask(batcher, *pairs, seconds: float = 30.0, client: str = ""):
    return BatchedScorer(batcher, time.monotonic() + seconds, client).score_many(pairs)


def test_requests_that_wait_are_scored_together(judge, pool):
    with batching(judge) as batcher:
        judge.go.clear()
        pairs = [("q", "a" * at, "") for at in range(20)]
        found = [pool.submit(ask, batcher, pair) for pair in pairs]
        until(lambda: batcher.waiting == tokens(*pairs))
        judge.go.set()
        assert [one.result()[0].margin for one in found] == [at / 2 for at in range(20)]
        assert len(judge.sizes) <= 3 and sum(judge.sizes) == 20
    with pytest.raises(BatcherClosedError):
        ask(batcher, PAIR)


def test_one_bad_request_in_a_batch_fails_alone(judge, pool):
    with batching(judge) as batcher:
        judge.go.clear()
        pairs = [("q", text, "b") for text in ("a", "broken", "ccc")]
        found = [pool.submit(ask, batcher, pair) for pair in pairs]
        until(lambda: batcher.waiting == tokens(*pairs))
        judge.go.set()
        assert isinstance(found[1].exception(), RuntimeError)
        assert [found[at].result()[0].margin for at in (0, 2)] == [0.0, 1.0]


def test_a_full_queue_refuses_at_once_and_estimates_when_to_retry(judge, pool):
    with batching(judge, max_queue=4 * tokens(PAIR)) as batcher:
        judge.go.clear()
        waiting = [pool.submit(ask, batcher, PAIR, client="a") for _ in range(2)]
        until(lambda: batcher.waiting == tokens(PAIR, PAIR))
        started = time.monotonic()
        with pytest.raises(QueueFullError) as refused:
            ask(batcher, PAIR, client="a")  # has half of the queue
        assert time.monotonic() - started < 0.1 and refused.value.retry_after >= 1
        waiting.append(pool.submit(ask, batcher, *[PAIR] * 20, client="b"))
        until(lambda: batcher.waiting == tokens(*[PAIR] * 22))
        with pytest.raises(QueueFullError):
            ask(batcher, PAIR, client="c")
        judge.go.set()
        assert [len(one.result()) for one in waiting] == [1, 1, 20]


def test_a_deadline_that_passes_in_the_queue_is_an_error_at_once_and_frees_its_place(judge, pool):
    with batching(judge) as batcher:
        judge.go.clear()
        pool.submit(ask, batcher, PAIR)
        assert judge.asked.wait(10)
        for seconds in (-1, 0.1):
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                ask(batcher, PAIR, seconds=seconds)
            assert time.monotonic() - started < 1
            assert batcher.waiting == tokens(PAIR)  # the first is still being scored
        judge.go.set()
    assert judge.sizes == [1]


def test_retry_after_is_whole_seconds_rounded_up_with_limits(judge):
    with batching(judge) as batcher:
        batcher.waiting, batcher.speed = 25, 10.0
        assert batcher.retry_after() == 2
        batcher.speed = 1e-3
        assert batcher.retry_after() == 60


def test_closing_may_finish_the_call_and_refuse_what_waits(judge, pool):
    judge.call_tokens = 1
    batcher = RequestBatcher(judge)
    judge.go.clear()
    found = []
    for number in range(1, 4):
        found.append(pool.submit(ask, batcher, PAIR))
        wanted = tokens(*[PAIR] * number)
        until(lambda wanted=wanted: judge.asked.is_set() and batcher.waiting == wanted)
    closing = pool.submit(batcher.close, finish_queued=False)
    until(lambda: batcher.waiting == tokens(PAIR))
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


def test_a_large_request_is_scored_in_slices_and_a_small_one_does_not_wait_for_all_of_it(pool):
    judge = FakeJudge(seconds=0.05, call_tokens=2048)
    with batching(judge) as batcher:
        large = [("q", "a" * (at % 50), "b" * (at % 7)) for at in range(400)]
        found = pool.submit(ask, batcher, *large, client="large")
        assert judge.asked.wait(10)
        for _ in range(3):
            assert ask(batcher, ("q", "aaa", "a"), client="small")[0].margin == 1.0
            assert not found.done()
        assert [x.margin for x in found.result(30)] == [(len(a) - len(b)) / 2 for _, a, b in large]
    assert len(judge.sizes) > 4


def test_the_rest_of_a_request_is_dropped_at_its_deadline(pool):
    judge = FakeJudge(seconds=0.2, call_tokens=2048)
    with batching(judge) as batcher:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            ask(batcher, *[("q", "a" * 100, "b" * 100)] * 500, seconds=0.3)
        assert time.monotonic() - started < 1 and batcher.waiting == 0
        assert len(ask(batcher, PAIR)) == 1
    assert sum(judge.sizes) < 300


def test_rankings_and_pairs_share_the_queue(judge, pool):
    texts = ["a" * at for at in range(9)]
    config = RankingConfig("round_robin")
    with batching(judge) as batcher:
        pairs = pool.submit(ask, batcher, *[PAIR] * 50)
        (ranking,) = BatchedScorer(batcher).rank_many([("q", texts)], config)
        assert ranking.order == list(range(8, -1, -1)) and len(pairs.result(10)) == 50
    assert ranking.logit_diffs[3, 0] == 1.5


class ListingJudge(FakeJudge):
    """small: number of sequences with the response "aaa" in each call."""

    def label_logit_diffs(self, sequences, **options):
        self.small.append(sum("aaa" in self.read(x.tokens) for x in sequences))
        return super().label_logit_diffs(sequences, **options)


def test_many_small_requests_wait_for_one_batch_of_a_large_one_of_another_client(pool):
    """Clients share by tokens: sixteen small requests have less than half of a batch."""
    judge = ListingJudge(seconds=0.4, call_tokens=1 << 14)
    judge.small = []
    large, small = [("q", "b " * 500, "b")] * 60, ("q", "aaa", "a")
    assert tokens(*[small] * 16) < judge.call_tokens / 2 and tokens(*large) > 3 * judge.call_tokens
    with batching(judge) as batcher:
        judge.go.clear()
        first = pool.submit(ask, batcher, *large, client="large")
        assert judge.asked.wait(10)
        waiting = [pool.submit(ask, batcher, small, client="small") for _ in range(16)]
        until(lambda: batcher.waiting == tokens(*large, *[small] * 16))
        judge.go.set()
        assert [one.result(10)[0].margin for one in waiting] == [1.0] * 16
        judge.seconds = 0
        assert len(first.result(30)) == 60
    assert judge.small[:2] == [0, 32]


def test_the_next_turn_is_of_the_client_with_the_least_cost():
    queue, order = FairQueue[str](), []
    for number in range(16):
        queue.append("small", f"s{number}")
    for number in range(3):
        queue.append("large", f"l{number}")
    for _ in range(17):
        client, item = queue.pop()
        queue.charge(client, 100 if client == "large" else 2)
        order.append(item)
    assert order.index("l0") == 1 and "l1" not in order
    queue.append("new", "n0")  # begins where the others are
    assert queue.pop() == ("new", "n0") and queue.pop() == ("large", "l1")


def test_a_client_that_was_idle_gets_no_credit():
    queue = FairQueue[int]()
    queue.append("early", 0)
    queue.charge(queue.pop()[0], 1)
    for number in range(50):
        queue.append("busy", number)
        queue.charge(queue.pop()[0], 10)
    for number in range(4):
        queue.append("busy", number)
        queue.append("early", number)
    served = []
    while queue:
        client, _ = queue.pop()
        queue.charge(client, 10)
        served.append(client)
    assert sorted(served[:2]) == sorted(served[2:4]) == ["busy", "early"]


def test_a_long_text_is_tokenized_beside_short_ones(judge, pool):
    """Its turn is held here; short texts have slots of their own."""
    with batching(judge) as batcher:
        with batcher.encoding_long.turn("large"):
            long = pool.submit(ask, batcher, ("q", "a" * SHORT, "b"), client="large")
            until(lambda: batcher.encoding_long.waiting == 1)
            assert len(ask(batcher, PAIR, client="small")) == 1 and not long.done()
        assert long.result(10)[0].margin == (SHORT - 1) / 2


def test_a_turn_after_the_deadline_is_refused_though_a_slot_is_free():
    with pytest.raises(TimeoutError), Turns(1).turn("a", time.monotonic() - 1):
        pass


def test_turns_that_nobody_waited_for_are_not_held_against_a_client(pool):
    turns, order = Turns(1), []
    for client in ["early"] + [str(number) for number in range(1000)]:
        with turns.turn(client):
            time.sleep(0.3 if client == "early" else 0)

    def take(client: str) -> None:
        with turns.turn(client):
            order.append(client)

    with turns.turn("first"):
        waiting = []
        for number, client in enumerate(["busy", "busy", "early"]):
            waiting.append(pool.submit(take, client))
            until(lambda number=number: turns.waiting == number + 1)
    for one in waiting:
        one.result(10)
    assert order == ["busy", "early", "busy"]


def test_clients_get_turns_one_after_the_other(pool):
    turns, order = Turns(1), []

    def take(client: str) -> None:
        with turns.turn(client):
            order.append(client)

    with turns.turn("first"):
        with pytest.raises(TimeoutError), turns.turn("late", time.monotonic() + 0.05):
            pass
        waiting = []
        for number, client in enumerate("aaab"):
            waiting.append(pool.submit(take, client))
            until(lambda number=number: turns.waiting == number + 1)
    for one in waiting:
        one.result(10)
    assert order == ["a", "b", "a", "a"]
