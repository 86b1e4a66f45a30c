"""The request log: middleware of every endpoint."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gram_jax.serve.errors import describe_failure, request_error
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
        scope["path"] = scope["path"].rstrip("/") or "/"
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
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", name.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
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
