"""Every error of the server as JSON with a code and a message, and without any text of the request."""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from gram_jax.errors import GramError, NonFiniteError
from gram_jax.judge.messages import BadField
from gram_jax.scoring.request_batcher import (
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
)


class ErrorDetail(BaseModel):
    """Description of an error, without any text of the request."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """Body of every error."""

    error: ErrorDetail


_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
# For the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
    for status in (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
}


class RequestError(HTTPException):
    """An error of a request, with a code of this server."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(status, message, headers)
        self.code = code

    def response(self) -> JSONResponse:
        """The HTTP response."""
        content = {"error": {"code": self.code, "message": self.detail}}
        return JSONResponse(content, self.status_code, self.headers)


def unusable(message: str) -> RequestError:
    """The error of a well-formed request whose texts or numbers cannot be used."""
    return RequestError(422, "unusable", message)


def request_error(error: Exception) -> RequestError:
    """The response to an exception, without its message, which may quote a text."""
    match error:
        case RequestError():
            return error
        case RequestValidationError():
            return RequestError(422, "invalid", _problems(error))
        case StarletteHTTPException():
            message = error.detail
            if error.status_code == 404:
                message = "there is nothing at this path; /openapi.json lists the endpoints"
            return RequestError(error.status_code, "http", message, dict(error.headers or {}))
        case QueueFullError():
            retry = {"retry-after": str(error.retry_after)}
            return RequestError(429, "busy", "the queue is full", retry)
        case BatcherClosedError():
            return RequestError(503, "stopping", "the server is stopping", {"retry-after": "5"})
        case DeadlineExceededError() | TimeoutError():
            return RequestError(504, "late", "the deadline passed before the request was scored")
        case BadField():
            return unusable(f"{error.field}: expected {error.expected}")
        case NonFiniteError():
            return RequestError(500, "not_finite", "the judge gave no finite score")
        case GramError():
            return unusable(f"{type(error).__name__}: the texts cannot be judged")
    return RequestError(500, "internal", "the server failed; see its log")


async def _handle(request: Request, error: Exception) -> Response:
    return request_error(error).response()


# Of the application. Any other exception reaches the RequestLog, which logs it.
HANDLERS: dict[Any, Any] = dict.fromkeys(
    (
        RequestValidationError,
        StarletteHTTPException,
        GramError,
        QueueFullError,
        BatcherClosedError,
        DeadlineExceededError,
        TimeoutError,
    ),
    _handle,
)


def describe_failure(error: BaseException) -> dict[str, Any]:
    """Type and place of an exception, for the log; its message may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    at = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "at": at}


def _problems(error: RequestValidationError) -> str:
    if isinstance(error.body, bytes):
        return "expected JSON, and content-type: application/json"
    problems = [
        {**one, "loc": one["loc"][1:]}
        for one in error.errors()
        if one["type"] not in ("json_invalid", "value_error")
    ]
    start = error.errors()[0]["loc"][:1]
    return describe_problems(problems, error.body, start) or "the body is not valid JSON"


def describe_problems(
    problems: Sequence[Mapping[str, Any]], value: Any, start: Sequence[str | int]
) -> str:
    """The first problems that pydantic found in a value, which lies at `start` of the request."""
    return "; ".join(f"{_place(one, value, start)}: {one['msg']}" for one in problems[:8])


def _place(problem: Mapping[str, Any], value: Any, start: Sequence[str | int]) -> str:
    """The path of a problem in the request, without the tags of unions, which the client did not send."""
    steps, place, here = problem["loc"], list(start), value
    for at, step in enumerate(steps):
        if (isinstance(here, list) and isinstance(step, int)) or (
            isinstance(here, dict) and step in here
        ):
            place.append(step)
            here = here[step]
        elif problem["type"] == "missing" and at == len(steps) - 1:
            place.append(step)
    return ".".join(map(str, place))
