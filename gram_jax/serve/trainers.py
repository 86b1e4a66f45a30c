"""The protocols of RL trainers: OpenRLHF's and LLaMA-Factory's remote rewards, and a judge of groups."""

import uuid
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from gram_jax.judge.messages import Prompt
from gram_jax.rewards.columns import NAME
from gram_jax.rewards.messages import completion_of, prompt_of
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.body import JsonRoute
from gram_jax.serve.fields import MAX_ITEMS, MAX_RESPONSES, Messages, Responses, Text, Texts
from gram_jax.serve.service import (
    Client,
    TheService,
    check_length,
    conversation_from,
    prompt_from,
)

router = APIRouter(route_class=JsonRoute)


class GetRewardRequest(BaseModel):
    """query: prompts with their responses; labels: references."""

    query: Texts
    prompts: Texts = []
    labels: Annotated[list[Text | None], Field(max_length=MAX_ITEMS)] | None = None


class GetRewardResponse(BaseModel):
    """One value for each query."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@router.post("/get_reward")
def get_reward(request: GetRewardRequest, service: TheService, client: Client) -> GetRewardResponse:
    """OpenRLHF: rewards of queries. A label is a reference; without labels the server's form applies."""
    queries, labels = request.query, request.labels or []
    check_length("prompts", request.prompts, queries)
    check_length("labels", labels, queries)
    pairs = []
    for at, query in enumerate(queries):
        given = request.prompts[at] if request.prompts else ""
        if given and query.startswith(given):
            pairs.append((prompt_of(given), completion_of(query[len(given) :])))
        else:
            pairs.append(conversation_from(query, f"query.{at}"))
    found = service.rewards(client, [p for p, _ in pairs], [r for _, r in pairs], labels)
    scores = service.form.to_unit_interval(found)
    return GetRewardResponse(rewards=found, scores=scores, extra_logs={NAME: found})


class ScoreEvaluationRequest(BaseModel):
    """messages: rendered conversations, each ending with its response."""

    model: Text = ""
    messages: Texts
    max_length: int | None = None


class ScoreEvaluationResponse(BaseModel):
    """One score for each conversation."""

    id: str
    object: str = "score.evaluation"
    model: str
    scores: list[float]


@router.post("/v1/score/evaluation")
def score_evaluation(
    request: ScoreEvaluationRequest, service: TheService, client: Client
) -> ScoreEvaluationResponse:
    """LLaMA-Factory: rewards of rendered conversations."""
    pairs = [conversation_from(text, f"messages.{at}") for at, text in enumerate(request.messages)]
    return ScoreEvaluationResponse(
        id=f"scoreval-{uuid.uuid4().hex}",
        model=request.model or service.name,
        scores=service.rewards(client, [p for p, _ in pairs], [r for _, r in pairs]),
    )


class CompareRequest(BaseModel):
    """A prompt's responses; with group_size, a part of that many responses, which waits for the rest."""

    conversation_history: Messages
    responses: Responses
    group_size: Annotated[int, Field(ge=1, le=MAX_RESPONSES)] | None = None


class CompareResponse(BaseModel):
    """rewards: win rates; comparison_results: P(i better than j) of every pair that was compared."""

    rewards: list[float]
    comparison_results: list[dict[str, Any]]


@router.post("/compare")
def compare(request: CompareRequest, service: TheService, client: Client) -> CompareResponse:
    """A group judge: win rates of all responses to a prompt, or of a part of them once its group is complete."""
    prompt, size = prompt_from(request.conversation_history), request.group_size or 1
    if len(request.responses) >= size:
        service.count_uncompared([prompt] * len(request.responses))
        rewards, results = _win_rates(client, prompt, request.responses)
        return CompareResponse(rewards=rewards, comparison_results=results)

    def rate(responses: list[str], deadline: float) -> list[float]:
        service.count_uncompared([prompt] * len(responses))
        batched = BatchedScorer(service.batcher, deadline, client.client)
        return _win_rates(batched, prompt, responses)[0]

    rewards, compared = service.groups.gather(
        prompt, request.responses, size, client.deadline, rate
    )
    return CompareResponse(rewards=rewards, comparison_results=[{"group": compared}])


def _win_rates(
    client: BatchedScorer, prompt: Prompt, responses: Sequence[str]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Win rates, and P(i better than j) of every pair; a response without another has 0.5."""
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
    others = len(responses) - 1
    return [total / others if others else 0.5 for total in totals], results
