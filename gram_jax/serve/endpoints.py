"""Our own endpoints: verdicts, rankings, and what an operator asks."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import HTMLResponse
from prometheus_client import generate_latest

from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.forms import (
    MOST_CHARACTERS,
    Health,
    OneOrMore,
    Pairs,
    Ranked,
    Readiness,
    ToRank,
    Verdict,
    Verdicts,
)
from gram_jax.serve.service import Service, asked_prompt, client_of, scores_of


def add_operation(app: FastAPI, service: Service) -> None:
    """The page, health, readiness and metrics."""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return _page()

    @app.get("/health", responses={500: {"model": Health}})
    @app.get("/healthz", responses={500: {"model": Health}})
    def healthz(response: Response) -> Health:
        """Whether the process works; /health is vLLM's name for it."""
        alive = service.batcher.alive or service.draining
        response.status_code = 200 if alive else 500
        return Health(status="ok" if alive else "dead")

    @app.get("/readyz", responses={503: {"model": Readiness}})
    def readyz(response: Response) -> Readiness:
        """Whether requests should be sent here."""
        ready = service.ready and not service.draining
        response.status_code = 200 if ready else 503
        return Readiness(
            status="ready" if ready else "stopping" if service.draining else "starting",
            model=service.name,
            judge=service.scorer.spec.hash,
        )

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        shown, batcher = service.metrics, service.batcher
        shown.waiting.set(batcher.waiting)
        shown.scored.set(batcher.scored)
        shown.batches.set(batcher.batches)
        shown.speed.set(batcher.speed)
        return Response(generate_latest(shown.registry), media_type="text/plain; version=0.0.4")


def add_judging(app: APIRouter, service: Service) -> None:
    """/v1/score_pair and /v1/rank."""
    asking = Depends(client_of(service))

    @app.post("/v1/score_pair")
    def score_pair(asked: OneOrMore, client: BatchedScorer = asking) -> Verdict | Verdicts:
        """Which of two responses is better, both orders read: one pair, or several under `pairs`."""
        pairs = asked.pairs if isinstance(asked, Pairs) else [asked]
        verdicts = [Verdict(**score._asdict()) for score in scores_of(pairs, client)]
        return Verdicts(verdicts=verdicts) if isinstance(asked, Pairs) else verdicts[0]

    @app.post("/v1/rank")
    def rank(asked: ToRank, client: BatchedScorer = asking) -> Ranked:
        """Responses to a prompt from best to worst."""
        config = RankingConfig(asked.method, asked.order_mode)
        (found,) = client.rank_many([(asked_prompt(asked.prompt), asked.responses)], config)
        return Ranked(
            ranking=found.order,
            scores=found.strengths.tolist(),
            ties=found.ties,
            cycles=found.cycles,
            comparisons=found.comparisons,
            shortened=found.shortened,
        )


@cache
def _page() -> str:
    text = files("gram_jax.serve").joinpath("assets/page.html").read_text(encoding="utf-8")
    return text.replace("MOST_CHARACTERS", str(MOST_CHARACTERS))
