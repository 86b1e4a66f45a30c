"""LLaMA-Factory's reward server: /v1/score/evaluation."""

import uuid

from fastapi import APIRouter
from pydantic import BaseModel

from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.fields import Text, Texts
from gram_jax.serve.service import Service, conversation_from


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


def add_llama_factory(app: APIRouter, service: Service) -> None:
    """/v1/score/evaluation."""
    until_deadline = service.until_deadline()

    @app.post("/v1/score/evaluation")
    def score_evaluation(
        request: ScoreEvaluationRequest, client: BatchedScorer = until_deadline
    ) -> ScoreEvaluationResponse:
        """Rewards of rendered conversations."""
        pairs = [
            conversation_from(text, f"messages.{at}") for at, text in enumerate(request.messages)
        ]
        prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
        return ScoreEvaluationResponse(
            id=f"scoreval-{uuid.uuid4().hex}",
            model=request.model or service.name,
            scores=service.rewards(client, prompts, responses),
        )
