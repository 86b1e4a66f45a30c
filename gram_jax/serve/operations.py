"""Endpoints for operators: the page, health, readiness and metrics."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Literal

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
    """status: ready, starting, stopping, or failing: the judge gives no scores.

    model: its name; judge: hash of its judge specification. reads: comparisons, or responses for a scalar reward
    model, which reads each response alone.
    """

    status: str
    model: str
    judge: str
    reads: Literal["comparisons", "responses"]


@router.get("/", include_in_schema=False)
@cache
def page() -> HTMLResponse:
    """The page that judges a pair. It runs its own script alone, talks to this server alone, and is in no frame."""
    text = files("gram_jax.serve").joinpath("assets/page.html").read_text(encoding="utf-8")
    text = text.replace("MAX_CHARACTERS", str(MAX_CHARACTERS))

    def own(element: str) -> str:
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(
        text, headers={"content-security-policy": policy, "x-frame-options": "DENY"}
    )


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
    status = "stopping" if service.draining else "ready" if service.ready else "starting"
    if status == "ready" and not service.judges():
        status = "failing"
    response.status_code = 200 if status == "ready" else 503
    return ReadinessResponse(
        status=status,
        model=service.name,
        judge=service.scorer.spec.hash,
        reads="comparisons" if service.scorer.reads_comparisons else "responses",
    )


@router.get("/metrics", include_in_schema=False)
def metrics(service: TheService) -> Response:
    """The metrics in Prometheus' text format."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")
