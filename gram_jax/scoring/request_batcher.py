"""Request batching: many threads submit, one thread scores, with a bounded queue between them.

Requests that arrive while a batch is scored form the next batch, so batches grow with the load, and no request waits
for another one longer than a batch takes.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from gram_jax.judge.messages import PromptLike
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import Ranking
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.scalar import Judge
from gram_jax.scoring.text_scorer import PairTexts

BATCH_WAIT = 0.002  # seconds that the first request of a batch waits for others
SMOOTHING = 0.9  # of the measured speed, from batch to batch


class QueueFullError(Exception):
    """The queue is full; retry_after: seconds until it is likely to accept requests."""

    def __init__(self, retry_after: int):
        self.retry_after = retry_after
        super().__init__(f"the queue is full: try again in {retry_after} s")


class BatcherClosedError(Exception):
    """The batcher is closed and accepts no requests."""


class DeadlineExceededError(Exception):
    """The request's deadline passed before it was scored."""


@dataclass(eq=False)
class _Request:
    items: list[Any]
    config: RankingConfig | None  # None: the items are pairs
    cost: int  # sequences
    deadline: float
    future: "Future[list[Any]]" = field(default_factory=Future)


class RequestBatcher:
    """Scores for many threads. max_queue: sequences that may wait; max_batch: sequences of a batch."""

    def __init__(self, scorer: Judge, *, max_queue: int = 8192, max_batch: int = 512):
        self.scorer, self.max_queue, self.max_batch = scorer, max_queue, max_batch
        self.waiting = 0  # sequences in the queue or in the batch that is scored
        self.speed = 0.0  # sequences a second, smoothed
        self.batches = self.scored = 0
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are scored."""
        return self._thread.is_alive() and not self._closed

    def submit(
        self, items: list[Any], config: RankingConfig | None, *, cost: int, deadline: float
    ) -> list[Any]:
        """Results as of Scorer.score_many, or with a config as of rank_many. cost: sequences.

        deadline: of time.monotonic, or inf. Raises QueueFullError, BatcherClosedError or DeadlineExceededError.
        """
        if not items:
            return []
        request = _Request(items, config, cost, deadline)
        with self._changed:
            if self._closed:
                raise BatcherClosedError
            # A request that is larger than the queue itself is accepted if nothing else waits.
            if self.waiting and self.waiting + cost > self.max_queue:
                raise QueueFullError(self.retry_after())
            self.waiting += cost
            self._queue.append(request)
            self._changed.notify_all()
        left = deadline - time.monotonic()
        try:
            return request.future.result(None if math.isinf(left) else max(0.0, left))
        except TimeoutError:
            with self._changed:
                if request in self._queue:
                    self._queue.remove(request)
                    self.waiting -= cost
                    raise DeadlineExceededError from None
            return request.future.result()  # it is being scored already

    def close(self, *, finish_queued: bool = True) -> None:
        """Reject new requests and stop. Queued ones are scored, or raise BatcherClosedError."""
        with self._changed:
            self._closed = True
            rejected = [] if finish_queued else list(self._queue)
            for request in rejected:
                self._queue.remove(request)
            self._changed.notify_all()
        self._finish(rejected, BatcherClosedError())
        self._thread.join()

    def full(self) -> int | None:
        """`retry_after` if the queue has no space for a pair, else None."""
        return self.retry_after() if self.waiting and self.waiting + 2 > self.max_queue else None

    def retry_after(self) -> int:
        """Whole seconds until half of the waiting sequences are likely to be scored: 1 to 60."""
        return min(60, max(1, math.ceil(self.waiting / 2 / self.speed))) if self.speed else 1

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            started = time.monotonic()
            late = [request for request in batch if request.deadline < started]
            self._finish(late, DeadlineExceededError())
            by_config: dict[RankingConfig | None, list[_Request]] = {}
            for request in batch:
                if request.deadline >= started:
                    by_config.setdefault(request.config, []).append(request)
            for requests in by_config.values():  # one call of the scorer each
                self._score(requests)
            if cost := sum(request.cost for requests in by_config.values() for request in requests):
                speed = cost / max(time.monotonic() - started, 1e-6)
                smoothed = SMOOTHING * self.speed + (1 - SMOOTHING) * speed
                self.speed = smoothed if self.speed else speed
                self.batches += 1
                self.scored += cost

    def _next(self) -> list[_Request] | None:
        """The next batch: queued requests of up to `max_batch` sequences, but at least one; None when closed."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            if sum(request.cost for request in self._queue) < self.max_batch and not self._closed:
                self._changed.wait(BATCH_WAIT)
            batch, size = [], 0
            # The queue is empty if its request was withdrawn meanwhile.
            while self._queue and (not batch or size + self._queue[0].cost <= self.max_batch):
                batch.append(self._queue.popleft())
                size += batch[-1].cost
            return batch

    def _score(self, requests: list[_Request]) -> None:
        items, config = [item for request in requests for item in request.items], requests[0].config
        try:
            found = iter(
                self.scorer.score_many(items)
                if config is None
                else list(self.scorer.rank_many(items, config))
            )
        except Exception as error:  # perhaps of one request: the others are scored one by one
            if len(requests) == 1:
                self._finish(requests, error)
                return
            for request in requests:
                self._score([request])
            return
        for request in requests:
            self._finish([request], [next(found) for _ in request.items])

    def _finish(self, requests: Sequence[_Request], found: list[Any] | Exception) -> None:
        for request in requests:
            with self._changed:
                self.waiting -= request.cost
            if isinstance(found, Exception):
                request.future.set_exception(found)
            else:
                request.future.set_result(found)


class BatchedScorer:
    """A batcher's client until a deadline, with the methods of a Scorer that rewards use."""

    def __init__(self, batcher: RequestBatcher, deadline: float = math.inf):
        """deadline: of time.monotonic."""
        self.batcher, self.deadline = batcher, deadline
        self.tokenizer = getattr(batcher.scorer, "tokenizer", None)

    def score_many(self, comparisons: Sequence[PairTexts]) -> list[PairScore]:
        """As Scorer.score_many."""
        cost = 2 * len(comparisons)
        return self.batcher.submit(list(comparisons), None, cost=cost, deadline=self.deadline)

    def rank_many(
        self, items: Iterable[tuple[PromptLike, Sequence[str]]], config: RankingConfig | None = None
    ) -> list[Ranking]:
        """As Scorer.rank_many. A ranking counts as a round robin in the queue."""
        items, config = list(items), config or RankingConfig()
        cost = sum(max(1, len(texts) * (len(texts) - 1)) for _, texts in items)
        return self.batcher.submit(items, config, cost=cost, deadline=self.deadline)
