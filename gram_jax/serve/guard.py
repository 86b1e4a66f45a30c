"""What stands before every endpoint: token, size and speed of the body, room for the request, its log line.

Plain ASGI, so that nothing is read of a request that is refused.
"""

import hmac
import json
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOG = logging.getLogger("gram_jax.serve")
FAILED = "the server failed; its log says where"
# Without a token: they say nothing of anybody's data.
OPEN = ("/", "/health", "/healthz", "/readyz")
# Answered however much is waiting; their bodies stay unread.
LIGHT = (*OPEN, "/metrics", "/openapi.json", "/v1/models")
LEFT = 499  # in the log and the metrics: the client went before its request was whole


@dataclass(frozen=True)
class Limits:
    """body: bytes; body_seconds: in which a body must have come; requests: at a time; deadline: seconds, at most."""

    body: int = 8 * 1024 * 1024
    body_seconds: float = 10.0
    requests: int = 512
    deadline: float = 60.0


class Metrics:
    """What /metrics says, for one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.requests = Counter(
            "gram_requests", "answered requests", ("path", "status"), registry=here
        )
        self.seconds = Histogram(
            "gram_request_seconds", "from first byte to last", ("path",), registry=here
        )
        self.waiting = Gauge("gram_sequences_waiting", "queued or being scored", registry=here)
        self.scored = Gauge("gram_sequences_scored", "since the start", registry=here)
        self.batches = Gauge("gram_batches", "calls of the judge since the start", registry=here)
        self.speed = Gauge("gram_sequences_per_second", "lately", registry=here)
        self.uncompared = Counter(
            "gram_uncompared", "rewards of responses that met no other one", registry=here
        )


class Guard:
    """Wraps an ASGI application.

    known: its paths, by which requests are counted (any other is "other"). full: seconds after which to come again
    where the queue is full, else None; so a refusal costs next to nothing.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        token: str | None,
        metrics: Metrics,
        known: frozenset[str],
        full: Callable[[], int | None],
    ):
        self.app, self.limits, self.metrics, self.known = app, limits, metrics, known
        self.full = full
        self._token = None if token is None else token.encode()
        self.inside = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, from its head to its log line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, name = time.monotonic(), uuid.uuid4().hex[:12]
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        path = scope["path"]
        self.inside += 1
        label = path if path in self.known else "other"
        try:
            await self._let_in(scope, receive, answer, path)
        except Exception as error:
            LOG.error(json.dumps({"request": name, "path": label, **fault(error)}))
            if not status:
                await refuse(answer, 500, "internal", FAILED)
        finally:
            self.inside -= 1
            seconds = time.monotonic() - started
            status = status or LEFT
            self.metrics.requests.labels(label, str(status)).inc()
            self.metrics.seconds.labels(label).observe(seconds)
            if path not in LIGHT:
                line = {
                    "request": name,
                    "path": label,
                    "status": status,
                    "ms": round(1000 * seconds),
                }
                LOG.info(json.dumps(line))

    async def _let_in(self, scope: Message, receive: Receive, send: Send, path: str) -> None:
        """Refuse it, or hand it on with its whole body; without a word where the client has left."""
        if self._token is not None and path not in OPEN and not _is_known(scope, self._token):
            head = [(b"www-authenticate", b"Bearer")]
            await refuse(send, 401, "unauthorized", "expected the server's bearer token", head)
            return
        if path in LIGHT:
            await self.app(scope, receive, send)
            return
        if self.inside > self.limits.requests:
            text = f"{self.limits.requests} requests are being answered already"
            await refuse(send, 503, "busy", text, [(b"retry-after", b"1")])
            return
        if (wait := self.full()) is not None:
            head = [(b"retry-after", str(wait).encode())]
            await refuse(send, 429, "busy", "the queue is full", head)
            return
        try:
            with anyio.fail_after(self.limits.body_seconds):
                body = await self._body(scope, receive)
        except TimeoutError:
            text = f"the body did not come within {self.limits.body_seconds:g} s"
            await refuse(send, 408, "slow_body", text, [(b"connection", b"close")])
            return
        except _TooLargeError:
            text = f"the body is larger than {self.limits.body} bytes"
            await refuse(send, 413, "too_large", text, [(b"connection", b"close")])
            return
        if body is None:
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # the client's leaving
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """All of it; None where the client leaves before. That it is too large is seen before it is read, if told."""
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.limits.body:
            raise _TooLargeError
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body:
                raise _TooLargeError
            if not message.get("more_body"):
                return b"".join(parts)


class _TooLargeError(Exception):
    """A body above the limit."""


def fault(error: BaseException) -> dict[str, Any]:
    """A failure for the log: its type and where, without its message, which may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    at = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "at": at}


def _is_known(scope: Message, token: bytes) -> bool:
    given: bytes = dict(scope["headers"]).get(b"authorization", b"")
    kind, _, told = given.partition(b" ")
    # Compared as bytes, whole, in a time that does not depend on where they differ.
    return hmac.compare_digest(told.strip(), token) and kind.lower() == b"bearer"


async def refuse(
    send: Send,
    status: int,
    code: str,
    text: str,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """An error as JSON."""
    body = json.dumps({"error": {"code": code, "message": text}}).encode()
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
