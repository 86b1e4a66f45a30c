"""The protocols of RL trainers: remote rewards of OpenRLHF, slime and LLaMA-Factory, and a judge of groups."""

import uuid
from collections.abc import Sequence
from itertools import combinations, zip_longest
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Discriminator, Field, Tag

from gram_jax.judge.messages import Prompt
from gram_jax.rewards.columns import NAME
from gram_jax.rewards.messages import reference_of
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.body import JsonRoute
from gram_jax.serve.fields import (
    MAX_ITEMS,
    MAX_RESPONSES,
    Messages,
    PromptField,
    Responses,
    Text,
    Texts,
)
from gram_jax.serve.items import InvalidItem, Item, ItemErrors, Items
from gram_jax.serve.service import Client, Sample, TheService, check_length

router = APIRouter(route_class=JsonRoute)

# A reference: text, a number, several texts, or the object of a data set of reasoning tasks.
Label = Text | int | float | list[Text] | dict[str, Any] | None


class GetRewardRequest(BaseModel):
    """query: prompts with their responses; labels: references."""

    query: Annotated[Texts, Field(validation_alias=AliasChoices("query", "queries"))]
    prompts: Texts | None = None
    labels: Annotated[list[Annotated[Label, Item]], Field(max_length=MAX_ITEMS)] | None = None


class GetRewardResponse(BaseModel):
    """One value for each query; null for a query with an error."""

    rewards: list[float | None]
    scores: list[float | None]
    extra_logs: dict[str, list[float | None]]
    errors: ItemErrors


class SampleRequest(BaseModel):
    """slime's sample. label: a reference."""

    prompt: PromptField
    response: Text
    label: Label = None


QueriesOrSample = Annotated[
    Annotated[GetRewardRequest, Tag("queries")] | Annotated[SampleRequest, Tag("sample")],
    Discriminator(
        lambda given: "sample" if isinstance(given, dict) and "response" in given else "queries"
    ),
]


@router.post("/get_reward")
def get_reward(
    request: QueriesOrSample, service: TheService, client: Client
) -> GetRewardResponse | float:
    """OpenRLHF: rewards of queries; slime: the reward of a sample. A label is a reference; else the form applies."""
    if isinstance(request, SampleRequest):
        label = reference_of(request.label)
        sample = Sample(service.read_prompt(request.prompt), request.response, label)
        return service.rewards(client, [sample])[0]
    queries, prompts, labels = request.query, request.prompts or [], request.labels or []
    check_length("prompts", prompts, queries)
    check_length("labels", labels, queries)

    def read(item: tuple[str, str | None, Any]) -> Sample:
        query, prompt, label = item
        return Sample(*service.read_query(query, prompt or ""), reference_of(label))

    # An item is as invalid as the first invalid part of it.
    parts = zip_longest(queries, prompts, labels)
    given = [next((x for x in item if isinstance(x, InvalidItem)), item) for item in parts]
    items = Items("query", given, read)
    found = items.results(lambda samples: service.rewards(client, samples), alone=bool(labels))
    scores = [x if x is None else service.form.to_unit_interval([x])[0] for x in found]
    return GetRewardResponse(
        rewards=found, scores=scores, extra_logs={NAME: found}, errors=items.errors
    )


class ScoreEvaluationRequest(BaseModel):
    """messages: rendered conversations, each ending with its response."""

    model: Text | None = None
    messages: Texts
    max_length: int | None = None


class ScoreEvaluationResponse(BaseModel):
    """One score for each conversation; null for one with an error."""

    id: str
    object: str = "score.evaluation"
    model: str
    scores: list[float | None]
    errors: ItemErrors


@router.post("/v1/score/evaluation")
def score_evaluation(
    request: ScoreEvaluationRequest, service: TheService, client: Client
) -> ScoreEvaluationResponse:
    """LLaMA-Factory: rewards of rendered conversations."""
    items = Items("messages", request.messages, lambda text: Sample(*service.read_query(text)))
    return ScoreEvaluationResponse(
        id=f"scoreval-{uuid.uuid4().hex}",
        model=request.model or service.name,
        scores=items.results(lambda samples: service.rewards(client, samples), alone=False),
        errors=items.errors,
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
    prompt, size = service.read_prompt(request.conversation_history), request.group_size or 1
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
