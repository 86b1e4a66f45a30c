"""What an operator reads: the page, health, readiness and metrics."""

from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from gram_jax.serve.fields import MAX_CHARACTERS
from gram_jax.serve.service import Service


class HealthResponse(BaseModel):
    """status: ok, or dead if the thread that scores has ended."""

    status: str


class ReadinessResponse(BaseModel):
    """status: ready, starting or stopping; model: its name; judge: hash of its judge specification."""

    status: str
    model: str
    judge: str


def add_operations(app: FastAPI, service: Service) -> None:
    """/, /health, /healthz, /readyz and /metrics."""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return _page()

    @app.get("/health", responses={500: {"model": HealthResponse}})
    @app.get("/healthz", responses={500: {"model": HealthResponse}})
    def healthz(response: Response) -> HealthResponse:
        """Whether the process works; /health is vLLM's name."""
        alive = service.batcher.alive or service.draining
        response.status_code = 200 if alive else 500
        return HealthResponse(status="ok" if alive else "dead")

    @app.get("/readyz", responses={503: {"model": ReadinessResponse}})
    def readyz(response: Response) -> ReadinessResponse:
        """Whether to send requests here."""
        ready = service.ready and not service.draining
        response.status_code = 200 if ready else 503
        return ReadinessResponse(
            status="ready" if ready else "stopping" if service.draining else "starting",
            model=service.name,
            judge=service.scorer.spec.hash,
        )

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        text = service.metrics.render(service.batcher)
        return Response(text, media_type="text/plain; version=0.0.4")


@cache
def _page() -> str:
    text = files("gram_jax.serve").joinpath("assets/page.html").read_text(encoding="utf-8")
    return text.replace("MAX_CHARACTERS", str(MAX_CHARACTERS))
