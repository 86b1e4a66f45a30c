"""What the endpoints of a server share: the judge behind its queue, rewards in the server's form, deadlines."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header, Request

from gram_jax.errors import DataError, GramError
from gram_jax.judge.messages import Prompt
from gram_jax.rewards.forms import RewardForm, Rewards
from gram_jax.rewards.group_buffer import GroupBuffer
from gram_jax.rewards.messages import conversation_of, prompt_of
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.request_batcher import BatchedScorer, RequestBatcher
from gram_jax.scoring.scalar import Judge
from gram_jax.serve.errors import unusable
from gram_jax.serve.fields import MessageField, PairRequest
from gram_jax.serve.metrics import ServerMetrics
from gram_jax.serve.middleware import LOG, Limits

# (prompts, seconds) -> references, written within these seconds; raises TimeoutError.
TimedReferenceWriter = Callable[[Sequence[Prompt], float], Sequence[str]]

UNCOMPARED = (
    "a response without another to its prompt and without a reference has the reward 0.5, whatever its text. Send "
    "groups together, references as labels, or start the server with --references or --policy (logged once; see "
    "gram_uncompared_total)"
)


@dataclass
class Service:
    """What the endpoints share.

    form: of rewards, if the protocol leaves it open. write: writes references, for a form without its own. ready:
    programs are compiled; draining: the server is stopping.
    """

    scorer: Judge
    name: str
    form: RewardForm
    batcher: RequestBatcher
    groups: GroupBuffer
    limits: Limits
    metrics: ServerMetrics
    write: TimedReferenceWriter | None = None
    ready: bool = False
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    warned: bool = False  # of a response without another

    def drain(self) -> None:
        """Report not ready, and rate open groups as they are."""
        self.draining = True
        self.groups.close()

    def rewards(
        self,
        client: BatchedScorer,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        labels: Sequence[str | None] = (),
    ) -> list[float]:
        """Rewards in the server's form. labels: references; all responses have one or none has."""
        form, write = self.form, None

        def write_in_time(prompts: Sequence[Prompt]) -> Sequence[str]:
            assert self.write is not None
            try:
                return self.write(prompts, max(0.0, client.deadline - time.monotonic()))
            except DataError as error:
                raise unusable(
                    "a prompt leaves no space for a response of the server's policy: expected a shorter one, or a "
                    "server with a smaller --max-new-tokens"
                ) from error

        if form.compare_with == "reference":
            write = self.write and write_in_time
        elif given := [label for label in labels if label]:
            # Rewards of some against references and of others within groups are not comparable.
            check_length("labels", given, responses)
            form = RewardForm("reference", form.scale, (), form.length_penalty)
        else:
            self.count_uncompared(prompts)
        return Rewards(client, form, write=write).of(prompts, responses, labels or None)

    def count_uncompared(self, prompts: Sequence[Prompt]) -> None:
        """Count responses without another to their prompt, and warn once: their reward means nothing."""
        alone = sum(number == 1 for number in Counter(prompts).values())
        if alone and not self.warned:
            self.warned = True
            LOG.warning({"warning": UNCOMPARED})
        self.metrics.uncompared.inc(alone)


async def _service(request: Request) -> Service:
    return request.app.state.service


TheService = Annotated[Service, Depends(_service)]


async def _client(
    service: TheService, x_deadline_ms: Annotated[int | None, Header(ge=1)] = None
) -> BatchedScorer:
    longest = service.limits.deadline
    seconds = longest if x_deadline_ms is None else min(longest, x_deadline_ms / 1000)
    return BatchedScorer(service.batcher, time.monotonic() + seconds)


# Of an endpoint: the judge until the request's deadline, which a header gives in milliseconds from now.
Client = Annotated[BatchedScorer, Depends(_client)]


def prompt_from(given: str | list[MessageField]) -> Prompt:
    """Text or messages of a request as the judge takes them."""
    return prompt_of(given if isinstance(given, str) else [one.model_dump() for one in given])


def conversation_from(text: str, place: str) -> tuple[Prompt, str]:
    """Prompt and response of a rendered conversation. Raises RequestError that names the place, not the text."""
    try:
        return conversation_of(text)
    except GramError as error:
        raise unusable(
            f"{place}: expected a conversation in the format of ChatML, Llama 3 or Gemma that ends with a response to "
            "a user"
        ) from error


def score_pairs(pairs: Sequence[PairRequest], client: BatchedScorer) -> list[PairScore]:
    """The score of every pair."""
    return client.score_many(
        [(prompt_from(pair.prompt), pair.first, pair.second) for pair in pairs]
    )


def check_length(name: str, given: Sequence[Any], responses: Sequence[Any]) -> None:
    """Raises RequestError unless there is one for each response, or none."""
    if given and len(given) != len(responses):
        raise unusable(
            f"{name}: expected one for each of {len(responses)} responses, or none, found {len(given)}"
        )
