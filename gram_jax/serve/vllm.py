"""vLLM's endpoints: /classify, /score, /v1/score and /v1/models."""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, Tag

from gram_jax.rewards.messages import completion_of, prompt_of
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.fields import MAX_ITEMS, PairRequest, Text, TextOrList, by_list
from gram_jax.serve.service import Service, check_length, score_pairs

PairOrList = Annotated[
    Annotated[PairRequest, Tag("pair")]
    | Annotated[list[PairRequest], Tag("list"), Field(max_length=MAX_ITEMS)],
    by_list("pair", "list"),
]


class ClassifyRequest(BaseModel):
    """input: one pair or several; the classes are the judge's two verdicts."""

    model: Text = ""
    input: PairOrList


class ScoreRequest(BaseModel):
    """text_1: one prompt, or one for each response of text_2."""

    model: Text = ""
    text_1: TextOrList
    text_2: TextOrList


class ListResponse(BaseModel):
    """data: a row for each input."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[dict[str, Any]]


class ModelEntry(BaseModel):
    """created: when the server started, seconds since 1970."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "gram_jax"


class ModelsResponse(BaseModel):
    """The one model that is served."""

    object: str = "list"
    data: list[ModelEntry]


def add_vllm(app: APIRouter, service: Service) -> None:
    """/classify, /score, /v1/score and /v1/models."""
    until_deadline = service.until_deadline()

    def answer(kind: str, model: str, data: list[dict[str, Any]]) -> ListResponse:
        return ListResponse(
            id=f"{kind}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model or service.name,
            data=data,
        )

    @app.post("/classify")
    def classify(request: ClassifyRequest, client: BatchedScorer = until_deadline) -> ListResponse:
        """The verdict on each pair as a class; probs are in the order of the judge's labels."""
        pairs = request.input if isinstance(request.input, list) else [request.input]
        labels = [label.strip() for label in service.scorer.spec.labels]
        data = [
            {
                "index": at,
                "label": labels[0] if score.first >= score.second else labels[1],
                "probs": [score.first, score.second],
                "num_classes": 2,
            }
            for at, score in enumerate(score_pairs(pairs, client))
        ]
        return answer("classify", request.model, data)

    @app.get("/v1/models")
    def models() -> ModelsResponse:
        """The one model that is served."""
        return ModelsResponse(data=[ModelEntry(id=service.name, created=service.created)])

    @app.post("/score")
    @app.post("/v1/score")
    def score(request: ScoreRequest, client: BatchedScorer = until_deadline) -> ListResponse:
        """Rewards of responses (text_2) to their prompts (text_1)."""
        responses = request.text_2 if isinstance(request.text_2, list) else [request.text_2]
        prompts = request.text_1 if isinstance(request.text_1, list) else [request.text_1]
        if len(prompts) == 1:
            prompts = prompts * len(responses)
        check_length("text_1", prompts, responses)
        texts = [completion_of(response) for response in responses]
        found = service.rewards(client, [prompt_of(prompt) for prompt in prompts], texts)
        data = [{"index": at, "object": "score", "score": value} for at, value in enumerate(found)]
        return answer("score", request.model, data)
