"""Middleware of every endpoint: the request log, and the limits that refuse a request before its body is read."""

import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import anyio

from gram_jax.serve.errors import RequestError, describe_failure, request_error
from gram_jax.serve.metrics import ServerMetrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOG = logging.getLogger("gram_jax.serve")  # its messages are dicts
# Need no token: they reveal nothing about requests.
PUBLIC_PATHS = ("/", "/health", "/healthz", "/readyz")
# Answered under any load; their bodies are not read.
LIGHT_PATHS = (*PUBLIC_PATHS, "/metrics", "/openapi.json", "/v1/models")
CLIENT_LEFT = 499


@dataclass(frozen=True)
class Limits:
    """body: bytes; body_seconds: to receive a body; requests: at a time; deadline: largest of a request, seconds."""

    body: int = 8 * 1024 * 1024
    body_seconds: float = 10.0
    requests: int = 512
    deadline: float = 60.0


class RequestLog:
    """Counts and logs every request, and answers 500 if an endpoint fails.

    paths: the known ones, by which requests are counted; any other is "other". The status 499 stands for a client that
    disconnected before its request was complete.
    """

    def __init__(self, app: Any, *, metrics: ServerMetrics, paths: set[str]):
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, from its head to its log line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, name, status = time.monotonic(), uuid.uuid4().hex[:12], 0
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def watched_receive() -> Message:
            nonlocal status
            message = await receive()
            if message["type"] == "http.disconnect":
                status = status or CLIENT_LEFT
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = status or message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        except Exception as error:
            LOG.error({"request": name, "path": path, **describe_failure(error)})
            if not status:
                await request_error(error).response()(scope, receive, watched_send)
        finally:
            seconds = time.monotonic() - started
            status = status or CLIENT_LEFT
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            if path not in LIGHT_PATHS:
                line = {"request": name, "path": path, "status": status}
                LOG.info(line | {"ms": round(1000 * seconds)})


class Admission:
    """Refuses requests without the token, above the limits, or while the queue is full.

    queue_full: seconds after which to retry if the queue is full, else None. Of a refused request nothing is read.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits,
        token: str | None,
        queue_full: Callable[[], int | None],
    ):
        self.app, self.limits, self.queue_full = app, limits, queue_full
        self._token = None if token is None else token.encode()
        self._active = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        light = scope["path"] in LIGHT_PATHS
        self._active += not light
        try:
            refusal = self._refusal(scope, light)
            app = self.app if refusal is None else refusal.response()
            await app(scope, receive if light else self._limited(receive), send)
        finally:
            self._active -= not light

    def _refusal(self, scope: Message, light: bool) -> RequestError | None:
        headers, limits = dict(scope["headers"]), self.limits
        if self._token is not None and scope["path"] not in PUBLIC_PATHS:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            # Takes the same time wherever the two differ.
            same = hmac.compare_digest(given.strip(), self._token)
            if not same or kind.lower() != b"bearer":
                challenge = {"www-authenticate": "Bearer"}
                message = "expected the server's bearer token"
                return RequestError(401, "unauthorized", message, challenge)
        if light:
            return None
        if self._active > limits.requests:
            message = f"{limits.requests} requests are being answered already"
            return RequestError(503, "busy", message, {"retry-after": "1"})
        if (seconds := self.queue_full()) is not None:
            return RequestError(429, "busy", "the queue is full", {"retry-after": str(seconds)})
        length = headers.get(b"content-length", b"0")
        return self._too_large() if length.isdigit() and int(length) > limits.body else None

    def _limited(self, receive: Receive) -> Receive:
        """The client's messages; raises RequestError for a body that is too large or too slow."""
        end = time.monotonic() + self.limits.body_seconds
        size, complete = 0, False

        async def limited() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            try:
                with anyio.fail_after(max(0.0, end - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not arrive within {self.limits.body_seconds:g} s"
                raise RequestError(408, "slow_body", late, {"connection": "close"}) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body")
            if size > self.limits.body:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> RequestError:
        message = f"the body is larger than {self.limits.body} bytes"
        return RequestError(413, "too_large", message, {"connection": "close"})
