"""Endpoints in the protocols of others: OpenRLHF, LLaMA-Factory, vLLM, and group judges."""

import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException

from gram_jax.data.record_types import Prompt
from gram_jax.errors import DataError, GramError
from gram_jax.rewards.forms import RewardForm, Rewards, WriteReferences, as_scores
from gram_jax.rewards.messages import completion_of, conversation_of, prompt_of
from gram_jax.scoring.request_batcher import BatchedScorer, DeadlineExceededError
from gram_jax.serve.forms import (
    Classified,
    Classify,
    Compare,
    Compared,
    GetReward,
    GotReward,
    Model,
    Models,
    Score,
    Scored,
    ScoredEvaluation,
    ScoreEvaluation,
)
from gram_jax.serve.guard import LOG
from gram_jax.serve.service import Service, Writer, client_of, scores_of

UNCOMPARED = (
    "a response came without another to its prompt and without a reference: its reward is 0.5 whatever it says. Send "
    "groups together, references as labels, or start the server with --references or --policy (said once; "
    "gram_uncompared_total)"
)
NO_ROOM = (
    "a prompt leaves the server's policy no room for its response: expected a shorter one, or a server with a smaller "
    "--new"
)
CONVERSATION = "expected a conversation in the form of ChatML, Llama 3 or Gemma that ends with a response to a user"


def add_rewards(app: APIRouter, service: Service) -> None:
    """/get_reward and /v1/score/evaluation."""
    asking = Depends(client_of(service))

    @app.post("/get_reward")
    def get_reward(asked: GetReward, client: BatchedScorer = asking) -> GotReward:
        """OpenRLHF's remote reward. A label is a reference; without labels the form of the server holds."""
        queries, labels = asked.query, asked.labels or []
        _check_length("prompts", asked.prompts, queries)
        prompts, responses = [], []
        for at, query in enumerate(queries):
            prompt = asked.prompts[at] if asked.prompts else ""
            if prompt and query.startswith(prompt):
                prompts.append(prompt_of(prompt))
                responses.append(completion_of(query[len(prompt) :]))
            else:
                prompt_, response = _conversation(query, f"query.{at}")
                prompts.append(prompt_)
                responses.append(response)
        _check_length("labels", labels, queries)
        found = _rewards(service, client, prompts, responses, labels)
        scores = as_scores(service.form, found)
        return GotReward(rewards=found, scores=scores, extra_logs={"gram_judge": found})

    @app.post("/v1/score/evaluation")
    def score_evaluation(
        asked: ScoreEvaluation, client: BatchedScorer = asking
    ) -> ScoredEvaluation:
        """LLaMA-Factory's reward server: rendered conversations, each with its response at the end."""
        pairs = [_conversation(text, f"messages.{at}") for at, text in enumerate(asked.messages)]
        prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
        found = _rewards(service, client, prompts, responses)
        return ScoredEvaluation(
            id=f"scoreval-{uuid.uuid4().hex}", model=asked.model or service.name, scores=found
        )


def add_verdicts(app: APIRouter, service: Service) -> None:
    """/compare, /classify, /score and /v1/score, and the name that clients of these ask for."""
    asking = Depends(client_of(service))

    @app.post("/compare")
    def compare(asked: Compare, client: BatchedScorer = asking) -> Compared:
        """A group judge: all responses of a prompt, or a part that waits for the rest of its group."""
        prompt = prompt_of([turn.model_dump() for turn in asked.conversation_history])
        size = asked.group_size or 1
        if len(asked.responses) >= size:
            rewards, results = _compared(service, client, prompt, asked.responses)
            return Compared(rewards=rewards, comparison_results=results)

        def rate(texts: list[str], deadline: float) -> list[float]:
            return _compared(service, BatchedScorer(service.batcher, deadline), prompt, texts)[0]

        rewards, among = service.cohorts.rewards(
            prompt, asked.responses, size, client.deadline, rate
        )
        return Compared(rewards=rewards, comparison_results=[{"group": among}])

    @app.post("/classify")
    def classify(asked: Classify, client: BatchedScorer = asking) -> Classified:
        """vLLM's form: the verdict on each pair as a class with its probabilities."""
        pairs = asked.input if isinstance(asked.input, list) else [asked.input]
        labels = [label.strip() for label in service.scorer.spec.labels]
        data = [
            {
                "index": at,
                "label": labels[0] if score.first >= score.second else labels[1],
                "probs": [score.first, score.second],
                "num_classes": 2,
            }
            for at, score in enumerate(scores_of(pairs, client))
        ]
        return Classified(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=asked.model or service.name,
            data=data,
        )

    @app.get("/v1/models")
    def models() -> Models:
        """vLLM's form: the one model that is here."""
        return Models(data=[Model(id=service.name, created=service.created)])

    @app.post("/score")
    @app.post("/v1/score")
    def score(asked: Score, client: BatchedScorer = asking) -> Scored:
        """vLLM's form: rewards of responses (text_2) to their prompts (text_1)."""
        responses = asked.text_2 if isinstance(asked.text_2, list) else [asked.text_2]
        prompts = asked.text_1 if isinstance(asked.text_1, list) else [asked.text_1]
        if len(prompts) == 1:
            prompts = prompts * len(responses)
        _check_length("text_1", prompts, responses)
        texts = [completion_of(response) for response in responses]
        found = _rewards(service, client, [prompt_of(x) for x in prompts], texts)
        return Scored(
            id=f"score-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=asked.model or service.name,
            data=[
                {"index": at, "object": "score", "score": value} for at, value in enumerate(found)
            ],
        )


def _check_length(name: str, given: Sequence[Any], responses: Sequence[Any]) -> None:
    if given and len(given) != len(responses):
        text = f"expected one for each of {len(responses)} responses, or none"
        raise HTTPException(422, f"{name}: {text}, found {len(given)}")


def _conversation(text: str, where: str) -> tuple[Prompt, str]:
    """The prompt and the response of a rendered conversation; `where` it stood is all that an error repeats."""
    try:
        return conversation_of(text)
    except GramError as error:
        raise HTTPException(422, f"{where}: {CONVERSATION}") from error


def _rewards(
    service: Service,
    client: BatchedScorer,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    labels: Sequence[str | None] = (),
) -> list[float]:
    """labels: references. Where the server has none of its own, all responses have one or none has."""
    form, write = service.form, None
    if form.against == "reference":
        write = service.write and _writing(service.write, client)
    elif given := [label for label in labels if label]:
        # Some without the others would have another scale.
        _check_length("labels", given, responses)
        form = RewardForm("reference", form.as_, (), form.length_penalty)
    else:
        _count_uncompared(service, prompts)
    return Rewards(client, form, write=write, warn=False).of(prompts, responses, labels or None)


def _writing(write: Writer, client: BatchedScorer) -> WriteReferences:
    """`write` for one request: until its deadline, and with an error that its sender can act on."""

    def within_deadline(prompts: Sequence[Prompt]) -> Sequence[str]:
        try:
            return write(prompts, max(0.0, client.deadline - time.monotonic()))
        except TimeoutError:
            raise DeadlineExceededError from None
        except DataError as error:
            raise HTTPException(422, NO_ROOM) from error

    return within_deadline


def _count_uncompared(service: Service, prompts: Sequence[Prompt]) -> None:
    """Responses without another to their prompt have a reward that says nothing: counted, and said once."""
    alone = sum(number == 1 for number in Counter(prompts).values())
    if alone and not service.said:
        service.said = True
        LOG.warning(json.dumps({"warning": UNCOMPARED}))
    service.metrics.uncompared.inc(alone)


def _compared(
    service: Service, client: BatchedScorer, prompt: Prompt, responses: Sequence[str]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Win rates, and P(i better than j) of every pair."""
    _count_uncompared(service, [prompt] * len(responses))
    pairs = list(combinations(range(len(responses)), 2))
    different = [(i, j) for i, j in pairs if responses[i] != responses[j]]
    scores = client.score_many([(prompt, responses[i], responses[j]) for i, j in different])
    won = {pair: score.first for pair, score in zip(different, scores, strict=True)}
    totals = [0.0] * len(responses)
    results = []
    for i, j in pairs:
        first = won.get((i, j), 0.5)
        totals[i] += first
        totals[j] += 1 - first
        results.append({"first": i, "second": j, "probability": first})
    others = max(1, len(responses) - 1)
    rewards = [total / others for total in totals] if len(responses) > 1 else [0.5]
    return rewards, results
