"""What many threads ask, scored together: one thread works for the device, a bounded queue before it.

While a call runs, what arrives waits and becomes the next call; so batches grow with the load, and no request waits for
another one longer than a call takes.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from gram_jax.judge.encode import Prompt
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import Ranking
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.scorer import PairTexts, Scorer

PATIENCE = 0.002  # seconds that the first of a batch waits for others
SMOOTH = 0.9  # of the measured speed, from batch to batch


class QueueFullError(Exception):
    """The queue is full; retry_after: seconds until it is likely to have room."""

    def __init__(self, retry_after: int):
        self.retry_after = retry_after
        super().__init__(f"the queue is full: try again in {retry_after} s")


class BatcherClosedError(Exception):
    """The server is about to stop and takes nothing more."""


class DeadlineExceededError(Exception):
    """The request's deadline passed before it was scored."""


@dataclass(eq=False)
class _Job:
    kind: Literal["pairs", "rank"]
    items: list[Any]
    config: RankingConfig | None
    cost: int  # sequences
    deadline: float
    answer: "Future[list[Any]]" = field(default_factory=Future)


class RequestBatcher:
    """Scores for many threads. most: sequences that may wait; together: so many are scored in one call."""

    def __init__(self, scorer: Scorer, *, most: int = 8192, together: int = 512):
        self.scorer, self.most, self.together = scorer, most, together
        self.waiting = 0  # sequences in the queue or being scored
        self.speed = 0.0  # sequences a second, lately
        self.batches = self.scored = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that scores is there."""
        return self._thread.is_alive() and not self._closed

    def pairs(self, triples: Sequence[tuple[Prompt, str, str]], deadline: float) -> list[PairScore]:
        """As Scorer.score_many. deadline: of time.monotonic, or inf.

        Raises QueueFullError, BatcherClosedError or DeadlineExceededError.
        """
        return self._ask(_Job("pairs", list(triples), None, 2 * len(triples), deadline))

    def rank(
        self, items: Iterable[tuple[Prompt, Sequence[str]]], config: RankingConfig, deadline: float
    ) -> list[Ranking]:
        """As Scorer.rank_many. Counted as if every response met every other one."""
        items = list(items)
        cost = sum(max(1, len(texts) * (len(texts) - 1)) for _, texts in items)
        return self._ask(_Job("rank", items, config, cost, deadline))

    def close(self, timeout: float | None = None) -> None:
        """Take nothing more, score what is waiting, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def stop(self) -> None:
        """As close, but what still waits is refused: only the call that runs is finished."""
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
        self._finish(left, BatcherClosedError())
        self.close()

    def full(self) -> int | None:
        """`retry_after` where not even a pair has room, else None."""
        return self.retry_after() if self.waiting and self.waiting + 2 > self.most else None

    def retry_after(self) -> int:
        """Whole seconds after which half of what is waiting is likely to be done: 1 to 60."""
        return min(60, max(1, math.ceil(self.waiting / 2 / self.speed))) if self.speed else 1

    def _ask(self, job: _Job) -> list[Any]:
        if not job.items:
            return []
        with self._changed:
            if self._closed:
                raise BatcherClosedError
            # A job that is larger than the queue itself is taken when nothing else waits.
            if self.waiting and self.waiting + job.cost > self.most:
                raise QueueFullError(self.retry_after())
            self.waiting += job.cost
            self._jobs.append(job)
            self._changed.notify_all()
        left = job.deadline - time.monotonic()
        try:
            return job.answer.result(None if math.isinf(left) else max(0.0, left))
        except TimeoutError:
            if self._forgotten(job):
                raise DeadlineExceededError from None
            return job.answer.result()  # it is being scored already

    def _forgotten(self, job: _Job) -> bool:
        """Take a job out of the queue, whose room others can use; False where it is not there any more."""
        with self._changed:
            if job not in self._jobs:
                return False
            self._jobs.remove(job)
            self.waiting -= job.cost
            return True

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            started = time.monotonic()
            late = [job for job in batch if job.deadline < started]
            batch = [job for job in batch if job.deadline >= started]
            self._finish(late, DeadlineExceededError())
            for jobs in _alike(batch):
                self._score(jobs)
            if cost := sum(job.cost for job in batch):
                speed = cost / max(time.monotonic() - started, 1e-6)
                self.speed = speed if not self.speed else SMOOTH * self.speed + (1 - SMOOTH) * speed
                self.batches += 1
                self.scored += cost

    def _next(self) -> list[_Job] | None:
        """What is waiting, up to `together` sequences but one job at least; None after the end."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            if sum(job.cost for job in self._jobs) < self.together and not self._closed:
                self._changed.wait(PATIENCE)
            batch, size = [self._jobs.popleft()], 0
            size = batch[0].cost
            while self._jobs and size + self._jobs[0].cost <= self.together:
                size += self._jobs[0].cost
                batch.append(self._jobs.popleft())
            return batch

    def _score(self, jobs: list[_Job]) -> None:
        items = [item for job in jobs for item in job.items]
        try:
            if jobs[0].kind == "pairs":
                found = self.scorer.score_many(items)
            else:
                found = list(self.scorer.rank_many(items, jobs[0].config))
        except Exception as error:  # of one request, perhaps: the others are asked by themselves
            if len(jobs) == 1:
                self._finish(jobs, error)
                return
            for job in jobs:
                self._score([job])
            return
        answers = iter(found)
        for job in jobs:
            self._finish([job], [next(answers) for _ in job.items])

    def _finish(self, jobs: Sequence[_Job], found: Any) -> None:
        for job in jobs:
            with self._changed:
                self.waiting -= job.cost
            if isinstance(found, Exception):
                job.answer.set_exception(found)
            else:
                job.answer.set_result(found)


def _alike(batch: Sequence[_Job]) -> list[list[_Job]]:
    """Jobs that one call can answer."""
    groups: dict[Any, list[_Job]] = {}
    for job in batch:
        groups.setdefault((job.kind, job.config), []).append(job)
    return list(groups.values())


class BatchedScorer:
    """A view of the batcher until a deadline, with the methods of a Scorer that rewards are made from."""

    def __init__(self, batcher: RequestBatcher, deadline: float = math.inf):
        self.batcher, self.deadline = batcher, deadline

    def score_many(self, comparisons: Sequence[PairTexts]) -> list[PairScore]:
        """As Scorer.score_many."""
        return self.batcher.pairs(comparisons, self.deadline)

    def rank_many(
        self, items: Iterable[tuple[Prompt, Sequence[str]]], config: RankingConfig | None = None
    ) -> list[Ranking]:
        """As Scorer.rank_many."""
        return self.batcher.rank(items, config or RankingConfig(), self.deadline)
