"""OpenRLHF's remote reward: /get_reward."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from gram_jax.rewards.columns import NAME
from gram_jax.rewards.messages import completion_of, prompt_of
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.fields import MAX_ITEMS, Text, Texts
from gram_jax.serve.service import Service, check_length, conversation_from


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


def add_openrlhf(app: APIRouter, service: Service) -> None:
    """/get_reward."""
    until_deadline = service.until_deadline()

    @app.post("/get_reward")
    def get_reward(
        request: GetRewardRequest, client: BatchedScorer = until_deadline
    ) -> GetRewardResponse:
        """Rewards of queries. A label is a reference; without labels the server's form applies."""
        queries, labels = request.query, request.labels or []
        check_length("prompts", request.prompts, queries)
        prompts, responses = [], []
        for at, query in enumerate(queries):
            given = request.prompts[at] if request.prompts else ""
            if given and query.startswith(given):
                prompt, response = prompt_of(given), completion_of(query[len(given) :])
            else:
                prompt, response = conversation_from(query, f"query.{at}")
            prompts.append(prompt)
            responses.append(response)
        check_length("labels", labels, queries)
        found = service.rewards(client, prompts, responses, labels)
        scores = service.form.to_unit_interval(found)
        return GetRewardResponse(rewards=found, scores=scores, extra_logs={NAME: found})
