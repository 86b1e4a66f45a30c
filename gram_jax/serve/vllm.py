"""vLLM's endpoints: /classify, /score, /v1/score and /v1/models."""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, Tag

from gram_jax.rewards.messages import completion_of, prompt_of
from gram_jax.serve.body import JsonRoute
from gram_jax.serve.fields import MAX_ITEMS, PairRequest, Text, TextOrList, by_list
from gram_jax.serve.service import Client, TheService, check_length, score_pairs

router = APIRouter(route_class=JsonRoute)

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


def _list(kind: str, model: str, data: list[dict[str, Any]]) -> ListResponse:
    return ListResponse(
        id=f"{kind}-{uuid.uuid4().hex}", created=int(time.time()), model=model, data=data
    )


@router.get("/v1/models")
def models(service: TheService) -> ModelsResponse:
    """The one model that is served."""
    return ModelsResponse(data=[ModelEntry(id=service.name, created=service.created)])


@router.post("/classify")
def classify(request: ClassifyRequest, service: TheService, client: Client) -> ListResponse:
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
    return _list("classify", request.model or service.name, data)


@router.post("/score")
@router.post("/v1/score")
def score(request: ScoreRequest, service: TheService, client: Client) -> ListResponse:
    """Rewards of responses (text_2) to their prompts (text_1)."""
    prompts, responses = (
        given if isinstance(given, list) else [given] for given in (request.text_1, request.text_2)
    )
    if len(prompts) == 1:
        prompts = prompts * len(responses)
    check_length("text_1", prompts, responses)
    texts = [completion_of(response) for response in responses]
    found = service.rewards(client, [prompt_of(prompt) for prompt in prompts], texts)
    data = [{"index": at, "object": "score", "score": value} for at, value in enumerate(found)]
    return _list("score", request.model or service.name, data)
