"""Limits of connections: their number, and time-outs of idle ones and of incomplete headers, which uvicorn lacks."""

import asyncio
import resource
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 128  # connections that the event loop accepts at once
FILES = 128  # descriptors that are not connections


@dataclass(frozen=True)
class ConnectionLimits:
    """total: at a time; of_client: of one address.

    head_seconds: to receive a head, and to take a response that fills the buffers; idle_seconds: between requests.
    """

    total: int = 2048
    of_client: int = 1024
    head_seconds: float = 10.0
    idle_seconds: float = 30.0

    def within_descriptors(self) -> "ConnectionLimits":
        """Limits for which the process has file descriptors; its soft limit is raised as far as it may be."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = self.total + BACKLOG + FILES
        if soft != resource.RLIM_INFINITY and soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            total = max(1, min(self.total, soft - BACKLOG - FILES))
            return ConnectionLimits(
                total, min(self.of_client, total), self.head_seconds, self.idle_seconds
            )
        return self


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration with limits on connections. settings: as of uvicorn.Config."""

    def __init__(self, app: Any, limits: ConnectionLimits, **settings: Any):
        self.limits = limits
        self.open_of: Counter[str] = Counter()  # connections by address
        # Those of them that wait for a request, the longest first.
        self.waiting_of: defaultdict[str, dict[LimitedConnection, None]] = defaultdict(dict)
        super().__init__(
            app,
            http=LimitedConnection,
            ws="none",
            backlog=BACKLOG,
            timeout_keep_alive=cast(int, limits.idle_seconds),  # passed to asyncio
            **settings,
        )


class LimitedConnection(H11Protocol):
    """A connection that is closed if a head or the reading of a response takes too long, or to make space for another.

    At a limit, the connection that waits for a head the longest is closed: of the same client, or of the client with
    the most that wait. If none waits, the new connection is closed. A client that closes its own side after its
    request gets the response.
    """

    config: ServerConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    head_timer: asyncio.TimerHandle | None = None
    write_timer: asyncio.TimerHandle | None = None
    counted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Count it, and close another one at a limit."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        limits, open_of = self.config.limits, self.config.open_of
        open_of[self.address] += 1
        self.counted = True
        if open_of[self.address] > limits.of_client:
            self._make_space(self.config.waiting_of[self.address])
        elif open_of.total() > limits.total:
            waiting = max(self.config.waiting_of.values(), key=len, default={})
            self._make_space(waiting)
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free its place."""
        super().connection_lost(exc)
        self._forget()
        self._stop_write_timer()

    def data_received(self, data: bytes) -> None:
        """The time of a head begins with its first byte."""
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Wait for the next head, or until the rest is sent."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_write_timer()
        elif self.counted and self.waits:
            self.config.waiting_of[self.address].setdefault(self)

    def timeout_keep_alive_handler(self) -> None:
        """Close, whether the last response was read or not."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._stop_write_timer()

    def eof_received(self) -> bool | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the connection until a complete request is answered."""
        if self.waits or self.cycle.more_body:
            return super().eof_received()
        self.cycle.keep_alive = False
        return True

    @property
    def waits(self) -> bool:
        """Whether no request is open."""
        return self.cycle is None or self.cycle.response_complete

    def _update(self) -> None:
        """After it opened and after data: whether it waits for a head."""
        if not self.counted:
            return
        waiting = self.config.waiting_of[self.address]
        if not self.waits:
            waiting.pop(self, None)
            self._stop_head_timer()
        elif self.head_timer is None:
            waiting.setdefault(self)
            seconds = self.config.limits.head_seconds
            self.head_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _start_write_timer(self) -> None:
        if self.write_timer is None:
            seconds = self.config.limits.head_seconds
            self.write_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self.write_timer is not None:
            self.write_timer.cancel()
            self.write_timer = None

    def _make_space(self, waiting: dict["LimitedConnection", None]) -> None:
        longest = next(iter(waiting), self)
        longest._forget()
        longest.transport.abort()

    def _forget(self) -> None:
        """Before it is closed, or after."""
        self._stop_head_timer()
        if not self.counted:
            return
        self.counted = False
        config, address = self.config, self.address
        config.waiting_of[address].pop(self, None)
        config.open_of[address] -= 1
        if not config.open_of[address]:
            del config.open_of[address]
            config.waiting_of.pop(address, None)
