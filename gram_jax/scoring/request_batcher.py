"""Request batching: many threads submit, one thread scores, with a bounded queue between them.

Sequences that arrive while a batch is scored form the next batch, so batches grow with the load, up to the work of
BATCH_SECONDS. Clients are served in turn, and a turn takes a slice of a request, so a large request delays a small one
by little more than a batch. Texts are tokenized in the threads that submit them, in turns as well, and long ones one
after the other.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gram_jax.data.inputs import PairTexts
from gram_jax.judge.encode import Encoded
from gram_jax.scoring.text_scorer import ComparisonEncoder, TextScorer
from gram_jax.scoring.turns import FairQueue, Turns

BATCH_WAIT = 0.002  # seconds that the first request of a batch waits for others
BATCH_SECONDS = 0.5  # work of a batch, at the measured speed
SLICES = 8  # of a batch, if there are as many requests
SMOOTHING = 0.9  # of the measured speed, from batch to batch
MAX_QUEUE = 1 << 22  # tokens
CLIENT_SHARE = 0.5  # of the queue
ENCODERS = 2  # threads that tokenize short texts at a time; the tokenizer itself uses all cores
SHORT = 20_000  # characters that are tokenized in about 10 ms; more have a thread of their own
ENCODED_TOGETHER = 200_000  # characters that are tokenized in one turn, about 0.1 s


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
    sequences: Sequence[Encoded]
    paired: bool
    client: str
    deadline: float
    tokens: int
    taken: int = 0  # sequences that are in a batch, or were
    diffs: "Future[np.ndarray]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.found = np.zeros(len(self.sequences), np.float32)
        self.scored = 0

    def take(self, tokens: int) -> "_Slice":
        """The next sequences of about that many tokens, pairs whole, and at least one."""
        unit = 2 if self.paired else 1
        start, size = self.taken, 0
        while self.taken < len(self.sequences) and (self.taken == start or size < tokens):
            size += sum(len(x.tokens) for x in self.sequences[self.taken : self.taken + unit])
            self.taken += unit
        return _Slice(self, start, self.taken, size)


class _Slice(NamedTuple):
    """Part of a request."""

    request: _Request
    start: int
    stop: int
    tokens: int

    @property
    def sequences(self) -> Sequence[Encoded]:
        return self.request.sequences[self.start : self.stop]


class RequestBatcher:
    """Label logit differences for many threads.

    max_queue: tokens that may wait. client_share: part of them that one client may have.
    """

    def __init__(
        self, scorer: TextScorer, *, max_queue: int = MAX_QUEUE, client_share: float = CLIENT_SHARE
    ):
        self.scorer, self.max_queue, self.client_share = scorer, max_queue, client_share
        self.waiting = 0  # tokens in the queue or in the batch that is scored
        self.speed = 0.0  # tokens a second, smoothed
        self.batches = self.scored = 0  # calls, and sequences in them
        self.encoding, self.encoding_long = Turns(ENCODERS), Turns(1)
        self._waiting_of: Counter[str] = Counter()
        self._queue: FairQueue[_Request] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are scored."""
        return self._thread.is_alive() and not self._closed

    def submit(
        self, sequences: Sequence[Encoded], *, paired: bool, client: str = "", deadline: float
    ) -> np.ndarray:
        """Logit differences, as TextScorer.label_logit_diffs returns them. deadline: a value of time.monotonic, or inf.

        Raises QueueFullError, BatcherClosedError, or DeadlineExceededError, after which nothing more is scored.
        """
        if not sequences:
            return np.zeros(0, np.float32)
        tokens = sum(len(x.tokens) for x in sequences)
        request = _Request(sequences, paired, client, deadline, tokens)
        with self._changed:
            if self._closed:
                raise BatcherClosedError
            if (seconds := self.full(client, tokens)) is not None:
                raise QueueFullError(seconds)
            self.waiting += tokens
            self._waiting_of[client] += tokens
            self._queue.append(client, request)
            self._changed.notify_all()
        left = deadline - time.monotonic()
        try:
            return request.diffs.result(None if math.isinf(left) else max(0.0, left))
        except TimeoutError:
            self._finish(request, DeadlineExceededError())
            return request.diffs.result()

    def close(self, *, finish_queued: bool = True) -> None:
        """Reject new requests and stop. Queued ones are scored, or raise BatcherClosedError."""
        with self._changed:
            self._closed = True
            rejected = [] if finish_queued else list(self._queue)
            self._changed.notify_all()
        for request in rejected:
            self._finish(request, BatcherClosedError())
        self._thread.join()

    def full(self, client: str = "", tokens: int = 1) -> int | None:
        """`retry_after` if the queue has no space for these tokens of a client, else None.

        A request of any size is accepted if its client has none that waits.
        """
        own = self._waiting_of[client]
        share = own and own + tokens > self.client_share * self.max_queue
        return self.retry_after() if share or self.waiting >= self.max_queue else None

    def retry_after(self) -> int:
        """Whole seconds until half of the waiting tokens are likely to be scored: 1 to 60."""
        return min(60, max(1, math.ceil(self.waiting / 2 / self.speed))) if self.speed else 1

    @property
    def batch_tokens(self) -> int:
        """Number of tokens of the next batch."""
        return int(max(self.scorer.call_tokens, BATCH_SECONDS * self.speed))

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            started, tokens = time.monotonic(), 0
            for paired in (True, False):  # a call of the scorer each
                if slices := [x for x in batch if x.request.paired == paired]:
                    self._score(slices)
                    tokens += sum(x.tokens for x in slices)
                    self.scored += sum(len(x.sequences) for x in slices)
            if tokens:
                speed = tokens / max(time.monotonic() - started, 1e-6)
                smoothed = SMOOTHING * self.speed + (1 - SMOOTHING) * speed
                self.speed = smoothed if self.speed else speed
                self.batches += 1

    def _next(self) -> list[_Slice] | None:
        """The next batch: slices of the requests in turn, at least one; None when closed."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            if self.waiting < self.batch_tokens and not self._closed:
                self._changed.wait(BATCH_WAIT)
            batch: list[_Slice] = []
            space = self.batch_tokens
            while self._queue and space > 0:
                client, request = self._queue.pop()
                batch.append(request.take(min(space, self.batch_tokens // SLICES)))
                self._queue.charge(client, batch[-1].tokens)
                space -= batch[-1].tokens
                if request.taken < len(request.sequences):
                    self._queue.append(client, request)
            return batch

    def _score(self, slices: Sequence[_Slice]) -> None:
        sequences = [text for x in slices for text in x.sequences]
        try:
            found = self.scorer.label_logit_diffs(sequences, paired=slices[0].request.paired)
        except Exception as error:  # perhaps of one request: the others are scored one by one
            if len(slices) == 1:
                self._finish(slices[0].request, error)
                return
            for one in slices:
                self._score([one])
            return
        for one in slices:
            count, request = len(one.sequences), one.request
            request.found[one.start : one.stop], found = found[:count], found[count:]
            request.scored += count
            if request.scored == len(request.sequences):
                self._finish(request, request.found)

    def _finish(self, request: _Request, found: np.ndarray | Exception) -> None:
        """Answer a request once, and free its place in the queue."""
        with self._changed:
            if request.diffs.done():
                return
            self._queue.remove(request.client, request)
            self.waiting -= request.tokens
            self._waiting_of[request.client] -= request.tokens
            self._waiting_of += Counter()  # drops those at zero
            if isinstance(found, Exception):
                request.diffs.set_exception(found)
            else:
                request.diffs.set_result(found)


class BatchedScorer(TextScorer):
    """A batcher's client until a deadline. client: what is served in turn, such as an address."""

    def __init__(self, batcher: RequestBatcher, deadline: float = math.inf, client: str = ""):
        """deadline: of time.monotonic."""
        super().__init__(batcher.scorer.tokenizer, batcher.scorer.spec)
        self.batcher, self.deadline, self.client = batcher, deadline, client
        self.window = batcher.scorer.window
        self.reads_comparisons = batcher.scorer.reads_comparisons

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Logit differences, from RequestBatcher.submit."""
        found = self.batcher.submit(
            sequences, paired=paired, client=self.client, deadline=self.deadline
        )
        progress(len(found))
        return found

    def encoder(self) -> ComparisonEncoder:
        """The encoder of the judge."""
        return self.batcher.scorer.encoder()

    def _encode(
        self, encoder: ComparisonEncoder, comparisons: Sequence[PairTexts]
    ) -> list[Encoded]:
        texts = []
        for part, size in _parts(comparisons):
            turns = self.batcher.encoding if size <= SHORT else self.batcher.encoding_long
            try:
                with turns.turn(self.client, self.deadline):
                    texts += super()._encode(encoder, part)
            except TimeoutError:
                raise DeadlineExceededError from None
        return texts


def _parts(comparisons: Iterable[PairTexts]) -> Iterator[tuple[list[PairTexts], int]]:
    """Comparisons in parts of about ENCODED_TOGETHER characters, and the number of characters of each part."""
    part, size = [], 0
    for one in comparisons:
        part.append(one)
        size += sum(len(x if isinstance(x, str) else str(x)) for x in one)  # of messages about
        if size >= ENCODED_TOGETHER:
            yield part, size
            part, size = [], 0
    if part:
        yield part, size
