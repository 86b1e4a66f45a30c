"""The server's own protocol: verdicts on pairs, and rankings."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Discriminator, Field, Tag

from gram_jax.ranking.jobs import RankingConfig
from gram_jax.serve.body import JsonRoute
from gram_jax.serve.fields import MAX_ITEMS, PairRequest, PromptField, Responses, StrictRequest
from gram_jax.serve.items import Item, ItemErrors, Items
from gram_jax.serve.service import Client, TheService

router = APIRouter(route_class=JsonRoute)


class PairsRequest(StrictRequest):
    """Several pairs."""

    pairs: Annotated[list[Annotated[PairRequest, Item]], Field(max_length=MAX_ITEMS)]


# Chosen by its keys, so that an error message is about one type alone.
PairOrPairs = Annotated[
    Annotated[PairRequest, Tag("pair")] | Annotated[PairsRequest, Tag("pairs")],
    Discriminator(
        lambda given: "pairs" if isinstance(given, dict) and "pairs" in given else "pair"
    ),
]


class VerdictResponse(BaseModel):
    """first, second: P(this response is better), sum 1; margin: log-odds; position_bias: of the two orders."""

    first: float
    second: float
    margin: float
    position_bias: float
    shortened: bool


class VerdictsResponse(BaseModel):
    """Verdicts in the order of the pairs; null for a pair with an error."""

    verdicts: list[VerdictResponse | None]
    errors: ItemErrors


class RankRequest(StrictRequest):
    """Responses to a prompt; method and order_mode as in docs/ranking.md."""

    prompt: PromptField
    responses: Responses
    method: Literal["groups", "round_robin", "bradley_terry", "knockout", "linear"] | None = None
    order_mode: Literal["both", "one"] = "both"


class RankResponse(BaseModel):
    """ranking: indices, best first; scores: strengths in log-odds."""

    ranking: list[int]
    scores: list[float]
    ties: float
    cycles: float | None
    comparisons: int
    shortened: bool


@router.post("/v1/score_pair")
def score_pair(
    request: PairOrPairs, service: TheService, client: Client
) -> VerdictResponse | VerdictsResponse:
    """Score one pair, or several under `pairs`, in both orders."""
    if isinstance(request, PairRequest):
        return VerdictResponse(**client.score(*service.read_pair(request))._asdict())
    items = Items("pairs", request.pairs, service.read_pair)
    scores = items.results(client.score_many)
    verdicts = [score and VerdictResponse(**score._asdict()) for score in scores]
    return VerdictsResponse(verdicts=verdicts, errors=items.errors)


@router.post("/v1/rank")
def rank(request: RankRequest, service: TheService, client: Client) -> RankResponse:
    """Rank the responses to a prompt from best to worst."""
    config = RankingConfig(request.method, request.order_mode)
    prompt = service.read_prompt(request.prompt)
    (found,) = client.rank_many([(prompt, request.responses)], config)
    return RankResponse(
        ranking=found.order,
        scores=found.strengths.tolist(),
        ties=found.ties,
        cycles=found.cycles,
        comparisons=found.comparisons,
        shortened=found.shortened,
    )
