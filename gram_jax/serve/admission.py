"""Admission: middleware that refuses requests before their bodies are read."""

import hmac
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio

from gram_jax.serve.errors import RequestError
from gram_jax.serve.middleware import LIGHT_PATHS, PUBLIC_PATHS, Message, Receive, Send


@dataclass(frozen=True)
class Limits:
    """body: bytes; body_seconds: to receive a body; requests: at a time; deadline: largest of a request, seconds.

    bodies: bytes of all bodies at a time. client_share: part of `requests` and `bodies` that one address may use.
    """

    body: int = 8 * 1024 * 1024
    body_seconds: float = 10.0
    requests: int = 512
    deadline: float = 60.0
    bodies: int = 256 * 1024 * 1024
    client_share: float = 0.5


class Admission:
    """Refuses requests without the token, above the limits, or while the queue is full.

    queue_full: seconds after which a client may retry if the queue is full for it, else None. Of a refused request
    nothing is read.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits,
        token: str | None,
        queue_full: Callable[[str], int | None],
    ):
        self.app, self.limits, self.queue_full = app, limits, queue_full
        self._token = None if token is None else token.encode()
        self._requests: Counter[str] = Counter()  # open ones, by client
        self._bytes: Counter[str] = Counter()  # of their bodies

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        light, client = scope["path"] in LIGHT_PATHS, client_of(scope)
        if light:
            refusal = self._unauthorized(scope)
            app = self.app if refusal is None else refusal.response()
            await app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"")
        size = int(stated) if stated.isdigit() else 0
        body = _Body(self.limits, self._bytes, client, size)
        self._requests[client] += 1
        try:
            refusal = self._unauthorized(scope) or self._refusal(scope, body)
            app = self.app if refusal is None else refusal.response()
            await app(scope, body.limited(receive), send)
        finally:
            body.release()
            self._requests[client] -= 1
            if not self._requests[client]:
                del self._requests[client]

    def _unauthorized(self, scope: Message) -> RequestError | None:
        if self._token is None or scope["path"] in PUBLIC_PATHS:
            return None
        kind, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        # Takes the same time wherever the two differ.
        same = hmac.compare_digest(given.strip(), self._token)
        if same and kind.lower() == b"bearer":
            return None
        challenge = {"www-authenticate": "Bearer"}
        return RequestError(401, "unauthorized", "expected the server's bearer token", challenge)

    def _refusal(self, scope: Message, body: "_Body") -> RequestError | None:
        limits, headers = self.limits, dict(scope["headers"])
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # A proxy may have read the other one: what follows could be another client's (RFC 9112, 6.1).
            message = "expected content-length or transfer-encoding, found both"
            return RequestError(400, "ambiguous", message, {"connection": "close"})
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            message = "expected a body without content-encoding"
            return RequestError(415, "encoded", message, {"connection": "close"})
        own, client = self._requests[body.client], body.client
        share = max(1, limits.client_share * limits.requests)
        if own > share or self._requests.total() > limits.requests:
            message = f"{own} requests of this client and {self._requests.total()} of all are open"
            return RequestError(503, "busy", message, {"retry-after": "1"})
        if (seconds := self.queue_full(client)) is not None:
            return RequestError(429, "busy", "the queue is full", {"retry-after": str(seconds)})
        return body.take()


class _Body:
    """The share of one request's body in the limits."""

    def __init__(self, limits: Limits, held: Counter[str], client: str, size: int):
        """held: bytes of the bodies of every client. size: as its head states, or 0."""
        self.limits, self.held = limits, held
        self.client, self.size, self.counted = client, size, 0

    def take(self) -> RequestError | None:
        """Count its present size; an error if it is too large, alone or with the others."""
        limits, held = self.limits, self.held
        if self.size > limits.body:
            message = f"the body is larger than {limits.body} bytes"
            return RequestError(413, "too_large", message, {"connection": "close"})
        held[self.client] += self.size - self.counted
        self.counted = self.size
        share = max(limits.body, limits.client_share * limits.bodies)
        if held[self.client] > share or held.total() > limits.bodies:
            retry = {"connection": "close", "retry-after": "1"}
            return RequestError(503, "busy", "the open requests hold too many bytes", retry)
        return None

    def release(self) -> None:
        """It is gone."""
        self.held[self.client] -= self.counted
        if not self.held[self.client]:
            del self.held[self.client]

    def limited(self, receive: Receive) -> Receive:
        """The client's messages; raises RequestError for a body that is too large or too slow."""
        end = time.monotonic() + self.limits.body_seconds
        received, complete = 0, False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                with anyio.fail_after(max(0.0, end - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                late = f"the body did not arrive within {self.limits.body_seconds:g} s"
                raise RequestError(408, "slow_body", late, {"connection": "close"}) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body")
            if received > self.size:
                self.size = received
                if (refusal := self.take()) is not None:
                    raise refusal
            return message

        return limited


def client_of(scope: Message) -> str:
    """The address of a request's client, or an empty text if it is not known."""
    return scope["client"][0] if scope.get("client") else ""
