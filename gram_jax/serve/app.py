"""The application: its endpoints, its errors, its beginning and its end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from gram_jax.errors import GramError
from gram_jax.rewards.forms import RewardForm, check_written
from gram_jax.rewards.messages import prompt_of
from gram_jax.scoring.request_batcher import (
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
    RequestBatcher,
)
from gram_jax.scoring.scorer import Scorer
from gram_jax.serve.cohort import Cohorts
from gram_jax.serve.endpoints import add_judging, add_operation
from gram_jax.serve.forms import Failure
from gram_jax.serve.guard import FAILED, LIGHT, Guard, Limits
from gram_jax.serve.protocols import add_rewards, add_verdicts
from gram_jax.serve.service import Service, Writer
from gram_jax.version import installed_version

STOPPING = "the server is about to stop"
NOWHERE = "there is nothing at this path; /openapi.json lists the endpoints"
_AGAIN = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} | ({"headers": _AGAIN} if status in (429, 503) else {})
    for status in (400, 401, 408, 413, 422, 429, 500, 503, 504)
}


def make_app(
    scorer: Scorer,
    name: str,
    *,
    form: RewardForm | None = None,
    write: Writer | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    queue: int = 8192,
    together: int = 512,
    cohort_wait: float = 2.0,
    warm_up: bool = True,
) -> Guard:
    """The ASGI application; its Service is `app.state.service` of what it wraps.

    form: of rewards, where the protocol leaves it open. write: references, for a form that has none of its own. queue,
    together: sequences that may wait, and that are scored in one call. cohort_wait: seconds that a response sent alone
    waits for the others of its group.
    """
    form = form or RewardForm()
    if write is not None:
        check_written(form)
    service = Service(
        scorer,
        name,
        form,
        RequestBatcher(scorer, max_queue=queue, max_batch=together),
        Cohorts(cohort_wait),
        limits or Limits(),
        write=write,
    )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        # Every request that is let in has a thread to wait in: the queue's limits refuse, not the pool's.
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.limits.requests + 8
        if warm_up:
            await anyio.to_thread.run_sync(lambda: scorer.warm_up(rankings=True))
            if write is not None:
                await anyio.to_thread.run_sync(write, [prompt_of("Hello.")], -1)
        service.ready = True
        yield
        # By now all that was accepted has been answered, or the time for it is over.
        service.drain()
        await anyio.to_thread.run_sync(service.batcher.stop)

    app = FastAPI(
        title="gram_jax",
        version=installed_version(),
        description="A generative reward model: which of two responses is better, and what follows from it.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    _add_handlers(app)
    add_operation(app, service)
    judging = APIRouter(responses=ERRORS, dependencies=[] if token is None else [_bearer()])
    add_judging(judging, service)
    add_rewards(judging, service)
    add_verdicts(judging, service)
    app.include_router(judging)
    known = frozenset((*LIGHT, *(getattr(route, "path", "") for route in judging.routes)))
    return Guard(app, service.limits, token, service.metrics, known, service.batcher.full)


def _bearer() -> Any:
    """Says in the OpenAPI document that a token is asked for; the guard has compared it by then."""
    return Security(HTTPBearer(auto_error=False))


def _add_handlers(app: FastAPI) -> None:
    """Every error as JSON with a code and a message, and with nothing of what was sent."""

    def answer(
        status: int, code: str, text: str, headers: dict[str, str] | None = None
    ) -> JSONResponse:
        return JSONResponse({"error": {"code": code, "message": text}}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if "json" not in request.headers.get("content-type", ""):
            return answer(422, "invalid", "expected JSON, and content-type: application/json")
        problems = [
            _place(one["type"], one["loc"]) + one["msg"]
            for one in error.errors()[:8]
            if one["type"] not in ("json_invalid", "value_error")
        ]
        return answer(422, "invalid", "; ".join(problems) or "the body is not valid JSON")

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        code = "unusable" if error.status_code == 422 else "http"
        message = NOWHERE if error.status_code == 404 else str(error.detail)
        return answer(error.status_code, code, message, dict(error.headers or {}))

    @app.exception_handler(GramError)
    async def refused(request: Request, error: GramError) -> Response:
        # The message may quote a text; its first words name the fault.
        return answer(422, "unusable", f"{type(error).__name__}: the texts cannot be judged so")

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return answer(500, "internal", FAILED)

    @app.exception_handler(QueueFullError)
    async def busy(request: Request, error: QueueFullError) -> Response:
        wait = {"retry-after": str(error.retry_after)}
        return answer(429, "busy", "the queue is full", wait)

    @app.exception_handler(BatcherClosedError)
    async def closed(request: Request, error: BatcherClosedError) -> Response:
        return answer(503, "stopping", STOPPING, {"retry-after": "5"})

    @app.exception_handler(DeadlineExceededError)
    async def late(request: Request, error: DeadlineExceededError) -> Response:
        return answer(504, "late", "the deadline passed before the request was scored")


def _place(kind: str, where: Sequence[str | int]) -> str:
    """Where in the body; the name of a key that is not ours is the client's text."""
    known = where[:-1] if kind == "extra_forbidden" else where
    return ".".join(map(str, known)) + ": "
