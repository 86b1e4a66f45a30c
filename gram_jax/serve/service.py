"""What the endpoints of a server share: the judge behind its queue, rewards in the server's form, deadlines."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Header, Request

from gram_jax.data.inputs import PairTexts
from gram_jax.errors import DataError, GramError
from gram_jax.judge.encode import Encoded
from gram_jax.judge.messages import Notes, Prompt, read_messages
from gram_jax.rewards.chats import KNOWN_FORMATS
from gram_jax.rewards.forms import RewardForm, Rewards, end_tokens
from gram_jax.rewards.group_buffer import GroupBuffer
from gram_jax.rewards.messages import prompt_of, split_query
from gram_jax.scoring.request_batcher import (
    BatchedScorer,
    DeadlineExceededError,
    QueueFullError,
    RequestBatcher,
)
from gram_jax.scoring.text_scorer import TextScorer
from gram_jax.serve.admission import Limits, client_of
from gram_jax.serve.errors import describe_failure, unusable
from gram_jax.serve.fields import MAX_RESPONSES, MessageField, PairRequest
from gram_jax.serve.metrics import ServerMetrics
from gram_jax.serve.middleware import LOG

# (prompts, seconds) -> references, written within these seconds; raises TimeoutError.
TimedReferenceWriter = Callable[[Sequence[Prompt], float], Sequence[str]]

PROBE, PROBE_SECONDS = ("Name a prime number.", "Seven.", "Nine."), 10.0

UNCOMPARED = (
    "a response without a reference and without another response to its prompt has the reward 0.5, independent of its "
    "text. Send groups together, references as labels, or start the server with --references or --policy (logged once; "
    "see gram_uncompared_total)"
)


class Sample(NamedTuple):
    """A response to a prompt, and what it is compared with; None for the form's own."""

    prompt: Prompt
    response: str
    label: Any = None


@dataclass
class Service:
    """State and functions that all endpoints share.

    form: of rewards, if the protocol leaves it open. write: writes references, for a form without its own. ready:
    programs are compiled; draining: the server is stopping.
    """

    scorer: TextScorer
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
    sound: bool = True  # whether the last probe was scored
    probed: float = -math.inf  # when, by time.monotonic
    probing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.ends = end_tokens(self.form, self.scorer)

    def judges(self) -> bool:
        """Whether the judge scores a pair; it is asked at most every PROBE_SECONDS. True while it is overloaded."""
        with self.probing:
            now = time.monotonic()
            if now - self.probed < PROBE_SECONDS:
                return self.sound
            try:
                BatchedScorer(self.batcher, now + 2).score(*PROBE)
                self.sound = True
            except (DeadlineExceededError, QueueFullError):
                pass
            except Exception as error:
                self.sound = False
                LOG.error({"probe": "failed", **describe_failure(error)})
            self.probed = time.monotonic()
            return self.sound

    def drain(self) -> None:
        """Report not ready, and rate open groups as they are."""
        self.draining = True
        self.groups.close()

    def read_prompt(self, given: str | Sequence[MessageField]) -> Prompt:
        """Text or messages of a request as the judge takes them."""
        messages = given if isinstance(given, str) else [x.model_dump() for x in given]
        with self._noted() as notes:
            return prompt_of(messages, notes)

    def read_chat(self, messages: Sequence[MessageField]) -> Prompt:
        """The turns of a conversation that the assistant continues."""
        with self._noted() as notes:
            return read_messages([x.model_dump() for x in messages], "messages", notes)

    def read_pair(self, pair: PairRequest) -> PairTexts:
        """A pair of a request as the judge takes it."""
        return self.read_prompt(pair.prompt), pair.first, pair.second

    def read_query(self, query: str, prompt: str = "") -> tuple[Prompt, str]:
        """Prompt and response of a rendered conversation. prompt: as it was rendered, or "" if that is not known."""
        try:
            with self._noted() as notes:
                return split_query(query, prompt, notes, self.ends)
        except GramError as error:
            begin = "begins with its prompt" if prompt else f"is in the format of {KNOWN_FORMATS}"
            raise unusable(
                f"expected a conversation that {begin} and ends with a response to a user"
            ) from error

    def rendered_diffs(self, client: BatchedScorer, texts: Sequence[Encoded]) -> list[float]:
        """Label logit differences of comparisons that the client of the server rendered, in one order each."""
        if not client.reads_comparisons:
            raise unusable(
                "expected a prompt and responses as texts, found a rendered comparison: the judge of this server reads "
                "each response alone. Send the texts of pairs, to /v1/score_pair or /classify"
            )
        return client.label_logit_diffs(texts, paired=False).tolist()

    def rewards(self, client: BatchedScorer, samples: Sequence[Sample]) -> list[float]:
        """Rewards in the server's form. All samples have a label or none has."""
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

        prompts = [sample.prompt for sample in samples]
        if form.compare_with == "reference":
            write = self.write and write_in_time
        elif given := [sample.label for sample in samples if sample.label is not None]:
            # Rewards of some against references and of others within groups are not comparable.
            check_length("labels", given, samples)
            form = replace(form, compare_with="reference")
        else:
            self.count_uncompared(prompts)
            most = max(Counter(prompts).values(), default=0)
            if form.compare_with == "group" and most > MAX_RESPONSES:
                raise unusable(
                    f"expected at most {MAX_RESPONSES} responses to one prompt, each compared with all others, found "
                    f"{most}: send labels, or start the server with --compare-with neighbors"
                )
        rewards = Rewards(client, form, write=write)
        return rewards.of(prompts, [x.response for x in samples], [x.label for x in samples])

    @contextmanager
    def _noted(self) -> Iterator[Notes]:
        """Counts what is read and not shown to the judge."""
        notes: Notes = Counter()
        yield notes
        for what, number in notes.items():
            self.metrics.notes.labels(what).inc(number)

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
    request: Request, service: TheService, x_deadline_ms: Annotated[int | None, Header(ge=1)] = None
) -> BatchedScorer:
    longest = service.limits.deadline
    # An integer of any size is compared before it becomes a float.
    seconds = longest if x_deadline_ms is None else min(1000 * longest, x_deadline_ms) / 1000
    return BatchedScorer(service.batcher, time.monotonic() + seconds, client_of(request.scope))


# Of an endpoint: the judge until the request's deadline, which a header gives in milliseconds from now.
Client = Annotated[BatchedScorer, Depends(_client)]


def check_length(name: str, given: Sequence[Any], responses: Sequence[Any]) -> None:
    """Raises RequestError unless there is one for each response, or none."""
    if given and len(given) != len(responses):
        raise unusable(
            f"{name}: expected one for each of {len(responses)} responses, or none, found {len(given)}"
        )
