"""Membership of the processes of a job: which have joined, which are alive, and the current activity of each.

Process 0 listens; every other process has one connection to it. Messages are JSON objects, one per line. Both sides
send their activities once a second. If a process is killed, its connection closes at once. If it is frozen or the
network is broken, no message arrives before a timeout. The process that detects the loss notifies the others,
and each of them ends with a message that names the lost process.

`jax.distributed` does not name it: if a process does not join or is lost, JAX aborts the others after its own timeout
with a stack of C++ frames.
"""

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from gram_jax.distributed.cluster import ClusterSpec
from gram_jax.errors import LOST, ClusterError

BEAT_SECONDS = 1.0
LINGER_SECONDS = 0.2  # between the last message and the end of a connection
LINE_BYTES = 1 << 20

Ending = tuple[str, int]  # message, exit status


def exit_process(message: str, status: int) -> None:
    """Print the message and end this process without clean-up, which may wait for a lost process."""
    print(f"\nerror: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


class Heartbeat:
    """The connections of this process to the job, in a separate thread that `join` starts.

    activity: the current activity, shown in messages of other processes; may be set from any thread. end: called once
    if the job ends for this process.
    """

    def __init__(
        self,
        place: ClusterSpec,
        versions: Mapping[str, str],
        *,
        join_timeout: float,
        lost_after: float,
        end: Callable[[str, int], None] = exit_process,
    ):
        self.place, self.versions = place, dict(versions)
        self.join_timeout, self.lost_after = join_timeout, lost_after
        self.activity = "joining"
        self.hosts: list[str] = []
        self._activities: dict[int, str] = {}
        self._end = end
        self._leaving = False
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._came: dict[int, str] = {}
        self._complete = asyncio.Event()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name="gram-jax-heartbeat", daemon=True)

    def join(self) -> list[str]:
        """Wait until every process has joined; returns their host names. Raises ClusterError."""
        self._thread.start()
        self._ready.result()
        return self.hosts

    def deregister(self) -> None:
        """Leave the job normally: the others do not report this process as lost."""
        self._leave(None)

    def abort(self, message: str, status: int) -> None:
        """Leave the job with an error; the others end with the same status."""
        self._leave((f"{self._name(self.place.index)} ended: {message}", status))

    def activities(self) -> str:
        """The last known activity of every process, a line each."""
        known = {**self._activities, self.place.index: self.activity}
        return "\n".join(f"  {self._name(i)}: {activity}" for i, activity in sorted(known.items()))

    def _name(self, index: int) -> str:
        hosts = self.hosts or list(self.place.hosts)
        return f"process {index}" + (f" on {hosts[index]}" if index < len(hosts) else "")

    def _work(self) -> None:
        try:
            asyncio.run(self._serve() if self.place.index == 0 else self._attend())
        except ClusterError as error:
            self._ready.set_exception(error)
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(ClusterError(f"the job could not be joined: {error!r}"))
            elif not self._leaving:
                self._end(f"the connection between the processes broke: {error!r}", LOST)

    def _leave(self, ending: Ending | None) -> None:
        if self._leaving or not self._thread.is_alive():
            return
        self._leaving = True

        async def tell() -> None:
            await self._send_all({"end": ending})
            writers = list(self._writers.values())
            for writer in writers:
                with suppress(OSError):
                    writer.write_eof()
            # A message that arrives at a closed connection resets it, and the peer loses what it has not read.
            await asyncio.sleep(LINGER_SECONDS)
            for writer in writers:
                writer.close()

        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(tell(), self._loop).result(timeout=2 * BEAT_SECONDS)

    async def _beat(self) -> None:
        index = self.place.index
        while not self._leaving:
            self._activities[index] = self.activity
            known = self._activities if index == 0 else {index: self.activity}
            await self._send_all({"activities": known})
            await asyncio.sleep(BEAT_SECONDS)

    async def _listen(self, peer: int, reader: asyncio.StreamReader) -> Ending | None:
        """Read a connection to its end. Returns why the job ends, or None if the peer has left normally."""
        while True:
            try:
                message = await asyncio.wait_for(_receive(reader), self.lost_after)
            except TimeoutError:
                return self._lost(peer, f"has not been heard of for {self.lost_after:g} s")
            except (OSError, ValueError):
                return self._lost(peer, "is gone: its connection is closed")
            if "end" in message:
                return message["end"]
            self._activities |= {int(i): found for i, found in message["activities"].items()}

    def _lost(self, peer: int, why: str) -> Ending:
        activity = self._activities.get(peer, "the start")
        return (
            f"{self._name(peer)} {why}; it was last at: {activity}. The job ends. Run the same command again to resume "
            "from the last checkpoint",
            LOST,
        )

    async def _send_all(self, message: Mapping[str, Any]) -> None:
        line = _line(message)  # encoded once for all processes
        for writer in list(self._writers.values()):
            with suppress(OSError):
                writer.write(line)
                await writer.drain()

    # Process 0.

    async def _serve(self) -> None:
        self._loop, place = asyncio.get_running_loop(), self.place
        local = place.host in ("localhost", "127.0.0.1", "::1")
        try:
            server = await asyncio.start_server(
                self._meet, place.host if local else None, place.port, limit=LINE_BYTES
            )
        except OSError as error:
            raise ClusterError(
                f"process 0 cannot listen at {place.host}:{place.port} ({error.strerror or error}): another job may "
                "use the port; give another --coordinator"
            ) from error
        self._came[0] = socket.gethostname()
        try:
            if place.count > 1:
                await self._wait_for_all()
            self.hosts = [self._came[i] for i in range(place.count)]
            await self._send_all({"hosts": self.hosts})
            self._ready.set_result(None)
            await self._beat()
            await asyncio.sleep(3 * BEAT_SECONDS)  # while `_leave` sends its message
        finally:
            # `async with server` would wait, from Python 3.12 on, for connections that end only with this process.
            server.close()

    async def _wait_for_all(self) -> None:
        try:
            await asyncio.wait_for(self._complete.wait(), self.join_timeout)
        except TimeoutError:
            count = self.place.count
            missing = ", ".join(self._name(i) for i in range(count) if i not in self._came)
            came = ", ".join(f"process {i} on {host}" for i, host in sorted(self._came.items()))
            error = ClusterError(
                f"{missing} did not come within {self.join_timeout:g} s ({count} processes are expected; there: "
                f"{came}). Look at the output of the missing ones, and whether they can reach "
                f"{self.place.host}:{self.place.port}",
                LOST,
            )
            await self._send_all({"end": (str(error), LOST)})
            raise error from None

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to process 0, from its first line to its end."""
        try:
            hello = await asyncio.wait_for(_receive(reader), self.join_timeout)
            index, host = int(hello["hello"]), str(hello["host"])
            problem = self._refusal(index, host, hello)
        except (OSError, TimeoutError, ValueError, KeyError, TypeError):
            writer.close()  # not a process of this job
            return
        if problem is not None:
            with suppress(OSError):
                writer.write(_line({"end": (problem, 2)}))
                await writer.drain()
            writer.close()
            return
        self._came[index], self._writers[index] = host, writer
        if len(self._came) == self.place.count:
            self._complete.set()
        ending = await self._listen(index, reader)
        if self._leaving:
            return
        del self._writers[index]
        if not self._ready.done():
            del self._came[index]  # it may connect again
            return
        self._activities[index] = "ended"
        if ending is not None:
            await self._send_all({"end": ending})
            self._end(*ending)

    def _refusal(self, index: int, host: str, hello: Mapping[str, Any]) -> str | None:
        """The reason why this process cannot join, or None."""
        count, versions = self.place.count, hello["versions"]
        if hello["processes"] != count or not 0 < index < count:
            return f"process {index} of {hello['processes']} found a job of {count} processes: --processes must agree"
        if index in self._came:
            return f"two processes have the number {index}: on {self._came[index]} and on {host}"
        if versions != self.versions:
            return f"process {index} on {host} runs {versions}, process 0 runs {self.versions}: install the same"
        return None

    # The other processes.

    async def _attend(self) -> None:
        self._loop, place = asyncio.get_running_loop(), self.place
        reader, self._writers[0] = await self._connect()
        host, versions = socket.gethostname(), self.versions
        hello = {"hello": place.index, "processes": place.count, "host": host, "versions": versions}
        await self._send_all(hello)
        # A task without a reference may be garbage-collected.
        beats = asyncio.create_task(self._beat())
        try:
            # Longer than the timeout of process 0, whose message names the missing processes.
            answer = await asyncio.wait_for(_receive(reader), self.join_timeout + 10)
        except (OSError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"process 0 at {place.host}:{place.port} ended before all {place.count} processes had joined",
                LOST,
            ) from error
        if "end" in answer:
            raise ClusterError(*answer["end"])
        self.hosts = answer["hosts"]
        self._ready.set_result(None)
        ending = await self._listen(0, reader)
        beats.cancel()
        if ending is not None and not self._leaving:
            self._end(*ending)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place, deadline = self.place, time.monotonic() + self.join_timeout
        while True:
            try:
                return await asyncio.open_connection(place.host, place.port, limit=LINE_BYTES)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"process 0 at {place.host}:{place.port} did not answer within {self.join_timeout:g} s "
                        f"({error.strerror or error}): is it running, and is the port open?",
                        LOST,
                    ) from error
            await asyncio.sleep(0.2)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message. Raises ConnectionError if the connection is closed."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("closed")
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
