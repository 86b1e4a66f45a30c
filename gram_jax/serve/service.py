"""What the endpoints of a server share."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Header

from gram_jax.data.record_types import Prompt
from gram_jax.rewards.forms import RewardForm
from gram_jax.rewards.messages import prompt_of
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.request_batcher import BatchedScorer, RequestBatcher
from gram_jax.scoring.scorer import Scorer
from gram_jax.serve.cohort import Cohorts
from gram_jax.serve.forms import Asked, Pair
from gram_jax.serve.guard import Limits, Metrics

# References of prompts, written within so many seconds, or TimeoutError: generation/greedy.py has one.
Writer = Callable[[Sequence[Prompt], float], Sequence[str]]


@dataclass
class Service:
    """What the endpoints share.

    write: references of what comes without one, for such a form. ready: programs are compiled; draining: the end has
    begun, nobody should come.
    """

    scorer: Scorer
    name: str
    form: RewardForm
    batcher: RequestBatcher
    cohorts: Cohorts
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    write: Writer | None = None
    ready: bool = False
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    said: bool = False  # that a response met no other one

    def drain(self) -> None:
        """The end has begun: nobody should come, and nobody waits for others that could."""
        self.draining = True
        self.cohorts.close()


def client_of(service: Service) -> Callable[[int], Awaitable[BatchedScorer]]:
    """A dependency: the batcher as one request may use it, until its deadline in milliseconds from now."""
    longest = round(1000 * service.limits.deadline)

    async def client(x_deadline_ms: Annotated[int, Header(ge=1)] = longest) -> BatchedScorer:
        return BatchedScorer(service.batcher, time.monotonic() + min(longest, x_deadline_ms) / 1000)

    return client


def asked_prompt(asked: Asked) -> Prompt:
    """Text or messages as the judge takes them."""
    return prompt_of(asked if isinstance(asked, str) else [turn.model_dump() for turn in asked])


def scores_of(pairs: Sequence[Pair], client: BatchedScorer) -> list[PairScore]:
    """Of every pair."""
    return client.score_many(
        [(asked_prompt(pair.prompt), pair.first, pair.second) for pair in pairs]
    )
