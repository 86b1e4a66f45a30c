"""Endpoints for operators: the page, health, readiness and metrics."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from gram_jax.serve.fields import MAX_CHARACTERS
from gram_jax.serve.service import TheService

router = APIRouter()


class HealthResponse(BaseModel):
    """status: ok, or dead if the thread that scores has ended."""

    status: str


class ReadinessResponse(BaseModel):
    """status: ready, starting or stopping; model: its name; judge: hash of its judge specification."""

    status: str
    model: str
    judge: str


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
@cache
def page() -> str:
    """The page that judges a pair."""
    text = files("gram_jax.serve").joinpath("assets/page.html").read_text(encoding="utf-8")
    return text.replace("MAX_CHARACTERS", str(MAX_CHARACTERS))


@router.get("/health", responses={500: {"model": HealthResponse}})
@router.get("/healthz", responses={500: {"model": HealthResponse}})
def healthz(response: Response, service: TheService) -> HealthResponse:
    """Whether the process works; /health is vLLM's name."""
    alive = service.batcher.alive or service.draining
    response.status_code = 200 if alive else 500
    return HealthResponse(status="ok" if alive else "dead")


@router.get("/readyz", responses={503: {"model": ReadinessResponse}})
def readyz(response: Response, service: TheService) -> ReadinessResponse:
    """Whether to send requests here."""
    ready = service.ready and not service.draining
    response.status_code = 200 if ready else 503
    return ReadinessResponse(
        status="ready" if ready else "stopping" if service.draining else "starting",
        model=service.name,
        judge=service.scorer.spec.hash,
    )


@router.get("/metrics", include_in_schema=False)
def metrics(service: TheService) -> Response:
    """In Prometheus' text format."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")
