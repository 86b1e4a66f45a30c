"""A judge without a model."""

import threading
import time

import numpy as np

from gram_jax.ranking.jobs import RankingConfig, RankingJob
from gram_jax.scoring.pair import combine_orders


class FakeJudge:
    """Log-odds: half the difference of lengths, plus `lean` for what is shown first.

    Each call of score_many waits for `go` and takes `seconds`; the text "broken" breaks it. sizes: its numbers of
    pairs. asked: set by the first call. calls, comparisons: numbers of calls, and of comparisons in one order.
    """

    class Spec:
        labels, hash = (" A", " B"), "abc"

    spec = Spec()

    def __init__(self, seconds: float = 0.0, lean: float = 0.0):
        self.seconds, self.lean, self.sizes = seconds, lean, []
        self.calls = self.comparisons = 0
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()

    def warm_up(self, *, rankings: bool = False) -> None:
        pass

    def diff(self, first: str, second: str) -> float:
        self.comparisons += 1
        return (len(first) - len(second)) / 2 + self.lean

    def score_many(self, triples):
        self.asked.set()
        self.go.wait(20)
        time.sleep(self.seconds)
        self.calls += 1
        self.sizes.append(len(triples))
        if any(first == "broken" for _, first, _ in triples):
            raise RuntimeError("secret text")
        return [combine_orders(self.diff(a, b), self.diff(b, a), False) for _, a, b in triples]

    def rank_many(self, items, config=None):
        self.calls += 1
        for prompt, responses in items:
            job = RankingJob(prompt, responses, config or RankingConfig("round_robin"))
            while job.ranking is None:
                diffs = [self.diff(a, b) for _, a, b in job.pending_comparisons()]
                job.update(np.array(diffs), shortened=False)
            yield job.ranking
