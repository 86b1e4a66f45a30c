"""A group judge, as trainers call that score a prompt's responses together: /compare."""

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from gram_jax.judge.messages import Prompt
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.fields import MAX_RESPONSES, Messages, Responses
from gram_jax.serve.service import Service, prompt_from


class CompareRequest(BaseModel):
    """A prompt's responses; with group_size, a part of that many responses, which waits for the rest."""

    conversation_history: Messages
    responses: Responses
    group_size: Annotated[int, Field(ge=1, le=MAX_RESPONSES)] | None = None


class CompareResponse(BaseModel):
    """rewards: win rates; comparison_results: P(i better than j) of every pair that was compared."""

    rewards: list[float]
    comparison_results: list[dict[str, Any]]


def add_group_judge(app: APIRouter, service: Service) -> None:
    """/compare."""
    until_deadline = service.until_deadline()

    @app.post("/compare")
    def compare(request: CompareRequest, client: BatchedScorer = until_deadline) -> CompareResponse:
        """Win rates of all responses to a prompt, or of a part of them once its group is complete."""
        prompt, size = prompt_from(request.conversation_history), request.group_size or 1
        if len(request.responses) >= size:
            service.count_uncompared([prompt] * len(request.responses))
            rewards, results = _win_rates(client, prompt, request.responses)
            return CompareResponse(rewards=rewards, comparison_results=results)

        def rate(responses: list[str], deadline: float) -> list[float]:
            service.count_uncompared([prompt] * len(responses))
            return _win_rates(BatchedScorer(service.batcher, deadline), prompt, responses)[0]

        rewards, compared = service.groups.gather(
            prompt, request.responses, size, client.deadline, rate
        )
        return CompareResponse(rewards=rewards, comparison_results=[{"group": compared}])


def _win_rates(
    client: BatchedScorer, prompt: Prompt, responses: Sequence[str]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Win rates, and P(i better than j) of every pair."""
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
    if len(responses) == 1:
        return [0.5], results
    return [total / (len(responses) - 1) for total in totals], results
