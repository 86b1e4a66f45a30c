"""vLLM's endpoints: /classify, /score, /rerank and /v1/models."""

import time
import uuid
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Discriminator, Field, Tag
from scipy.special import expit

from gram_jax.judge.encode import Encoded
from gram_jax.rewards.messages import prompt_of
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.body import JsonRoute
from gram_jax.serve.errors import unusable
from gram_jax.serve.fields import MAX_ITEMS, MAX_TOKENS, PairRequest, Text, TextOrList
from gram_jax.serve.items import InvalidItem, Item, ItemErrors, Items
from gram_jax.serve.service import Client, Sample, TheService, check_length

router = APIRouter(route_class=JsonRoute)

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_TOKENS)]


def _kind(given: Any) -> str:
    first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, int):
        return "tokens"
    if isinstance(first, list):
        return "lists of tokens"
    return "pairs" if isinstance(given, list) else "pair"


Input = Annotated[
    Annotated[PairRequest, Tag("pair")]
    | Annotated[list[Annotated[PairRequest, Item]], Tag("pairs"), Field(max_length=MAX_ITEMS)]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Annotated[Tokens, Item]], Tag("lists of tokens"), Field(max_length=MAX_ITEMS)],
    Discriminator(_kind),
]


class ClassifyRequest(BaseModel):
    """input: pairs, or comparisons in one order as token ids; the classes are the judge's two verdicts.

    use_activation: probabilities, or (false) logits with mean 0.
    """

    model: Text | None = None
    input: Input
    use_activation: Annotated[
        bool | None, Field(validation_alias=AliasChoices("use_activation", "activation"))
    ] = True


class ScoreRequest(BaseModel):
    """text_1: one prompt, or one for each response of text_2."""

    model: Text | None = None
    text_1: Annotated[
        TextOrList, Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    ]
    text_2: Annotated[
        TextOrList, Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))
    ]


class DocumentField(BaseModel):
    """A document of /rerank."""

    text: Text


class RerankRequest(BaseModel):
    """Responses (documents) to a prompt (query); top_n: how many of the best are returned, 0 for all."""

    model: Text | None = None
    query: Text
    documents: Annotated[
        list[Annotated[Text | DocumentField, Item]], Field(min_length=1, max_length=MAX_ITEMS)
    ]
    top_n: Annotated[int | None, Field(ge=0)] = 0


class RerankResult(BaseModel):
    """index: of the document in the request."""

    index: int
    document: DocumentField
    relevance_score: float


class RerankResponse(BaseModel):
    """The best first."""

    id: str
    model: str
    results: list[RerankResult]
    errors: ItemErrors


class ListResponse(BaseModel):
    """data: a row for each input without an error; `index` is that of the input."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[dict[str, Any]]
    errors: ItemErrors


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


def _list(
    kind: str, model: str, rows: list[dict[str, Any] | None], items: Items[Any]
) -> ListResponse:
    return ListResponse(
        id=f"{kind}-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        data=[{"index": at, **row} for at, row in enumerate(rows) if row is not None],
        errors=items.errors,
    )


@router.get("/v1/models")
def models(service: TheService) -> ModelsResponse:
    """The one model that is served."""
    return ModelsResponse(data=[ModelEntry(id=service.name, created=service.created)])


@router.post("/classify")
def classify(request: ClassifyRequest, service: TheService, client: Client) -> ListResponse:
    """The verdict on each input as a class; probs are in the order of the judge's labels."""
    given, labels = request.input, [label.strip() for label in service.scorer.spec.labels]

    def row(first: float, margin: float) -> dict[str, Any]:
        shown = (
            [first, 1 - first] if request.use_activation is not False else [margin / 2, -margin / 2]
        )
        return {"label": labels[first < 0.5], "probs": shown, "num_classes": 2}

    if isinstance(given, list) and _kind(given).endswith("tokens"):
        lists = [given] if _kind(given) == "tokens" else given
        items = Items("input", lists, lambda tokens: _checked(tokens, client))
        rows = items.results(
            lambda inputs: [
                row(float(expit(d)), d) for d in service.rendered_diffs(client, _encoded(inputs))
            ]
        )
    else:
        pairs = given if isinstance(given, list) else [given]
        items = Items("input", pairs, service.read_pair)
        rows = items.results(
            lambda pairs: [row(x.first, x.margin) for x in client.score_many(pairs)]
        )
    return _list("classify", request.model or service.name, rows, items)


def _checked(tokens: list[int], client: BatchedScorer) -> np.ndarray:
    longest, known = client.spec.max_length, len(client.tokenizer)
    if len(tokens) > longest or max(tokens) >= known:
        raise unusable(
            f"expected at most {longest} token ids below {known}, found {len(tokens)}, the largest {max(tokens)}"
        )
    return np.array(tokens, np.int32)


def _encoded(inputs: list[np.ndarray]) -> list[Encoded]:
    """Comparisons in one order. Inputs 2i and 2i + 1 share their common beginning: the orders of a pair."""
    shared = [0] * len(inputs)
    for at in range(0, len(inputs) - 1, 2):
        one, other = inputs[at : at + 2]
        size = min(len(one), len(other)) - 1
        differ = np.flatnonzero(one[:size] != other[:size])
        shared[at] = shared[at + 1] = int(differ[0]) if len(differ) else size
    return [
        Encoded(tokens, np.zeros(len(tokens), np.float32), field_starts=(start, start))
        for tokens, start in zip(inputs, shared, strict=True)
    ]


@router.post("/score")
@router.post("/v1/score")
def score(request: ScoreRequest, service: TheService, client: Client) -> ListResponse:
    """Rewards of responses (text_2) to their prompts (text_1)."""
    prompts, responses = (
        given if isinstance(given, list) else [given] for given in (request.text_1, request.text_2)
    )
    if not prompts:
        raise unusable("text_1: expected a prompt, or one for each response, found none")
    if len(prompts) == 1:
        prompts = prompts * len(responses)
    check_length("text_1", prompts, responses)
    pairs = [
        next((x for x in pair if isinstance(x, InvalidItem)), pair)
        for pair in zip(prompts, responses, strict=True)
    ]
    items = Items("text_2", pairs, lambda pair: Sample(prompt_of(pair[0]), pair[1]))
    found = items.results(lambda samples: service.rewards(client, samples), alone=False)
    rows = [x if x is None else {"object": "score", "score": x} for x in found]
    return _list("score", request.model or service.name, rows, items)


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
def rerank(request: RerankRequest, service: TheService, client: Client) -> RerankResponse:
    """Responses (documents) to a prompt (query) by their rewards; also Jina's and Cohere's form."""
    prompt = service.read_prompt(request.query)

    def read(document: str | DocumentField) -> Sample:
        return Sample(prompt, document if isinstance(document, str) else document.text)

    items = Items("documents", request.documents, read)
    found = items.results(lambda samples: service.rewards(client, samples), alone=False)
    results = [
        RerankResult(
            index=at, document=DocumentField(text=items.good[at].response), relevance_score=value
        )
        for at, value in enumerate(found)
        if value is not None
    ]
    results.sort(key=lambda one: -one.relevance_score)  # equals keep their order
    return RerankResponse(
        id=f"rerank-{uuid.uuid4().hex}",
        model=request.model or service.name,
        results=results[: request.top_n or None],
        errors=items.errors,
    )
