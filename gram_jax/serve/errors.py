"""Every error of the server as JSON with a code and a message, and without any text of the request."""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from gram_jax.errors import GramError
from gram_jax.scoring.request_batcher import (
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
)
from gram_jax.serve.fields import ErrorResponse

_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
# For the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
    for status in (400, 401, 408, 413, 422, 429, 500, 503, 504)
}


class RequestError(HTTPException):
    """An error of a request, with a code of this server."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ):
        super().__init__(status, message, dict(headers or {}))
        self.code = code


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The body of an error."""
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def describe_failure(error: BaseException) -> dict[str, Any]:
    """Type and place of an exception, for the log; its message may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    at = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "at": at}


def add_error_handlers(app: FastAPI) -> None:
    """Map exceptions to responses."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if "json" not in request.headers.get("content-type", ""):
            message = "expected JSON, and content-type: application/json"
        else:
            problems = [
                f"{_location(one['type'], one['loc'])}: {one['msg']}"
                for one in error.errors()[:8]
                if one["type"] not in ("json_invalid", "value_error")
            ]
            message = "; ".join(problems) or "the body is not valid JSON"
        return error_response(422, "invalid", message)

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = "there is nothing at this path; /openapi.json lists the endpoints"
        code = getattr(error, "code", "unusable" if error.status_code == 422 else "http")
        return error_response(error.status_code, code, message, error.headers)

    @app.exception_handler(GramError)
    async def unusable(request: Request, error: GramError) -> Response:
        # The error's own message may quote a text.
        return error_response(
            422, "unusable", f"{type(error).__name__}: the texts cannot be judged"
        )

    @app.exception_handler(QueueFullError)
    async def busy(request: Request, error: QueueFullError) -> Response:
        retry = {"retry-after": str(error.retry_after)}
        return error_response(429, "busy", "the queue is full", retry)

    @app.exception_handler(BatcherClosedError)
    async def stopping(request: Request, error: BatcherClosedError) -> Response:
        return error_response(503, "stopping", "the server is stopping", {"retry-after": "5"})

    @app.exception_handler(DeadlineExceededError)
    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: Exception) -> Response:
        return error_response(504, "late", "the deadline passed before the request was scored")


def _location(kind: str, where: Sequence[str | int]) -> str:
    """Where in the body; the name of an unknown key is the client's text."""
    known = where[:-1] if kind == "extra_forbidden" else where
    return ".".join(map(str, known))
