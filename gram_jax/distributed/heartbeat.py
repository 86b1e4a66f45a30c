"""How the processes of a job know of each other: who came, who is alive, and what each is doing.

Process 0 listens; every other process holds one connection to it, over which both sides speak once a second, one JSON
object a line. A killed process closes its connection at once, a stopped one or a dead network falls silent. Whoever
notices tells the others, and every process ends with a message that names the one it was.

This exists because `jax.distributed` names nobody: where a process does not come, or is lost, it aborts the others
with a stack of C++ frames after its own time-out.
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
LINE_BYTES = 1 << 20

Ending = Callable[[str, int], None]


def exit_process(message: str, status: int) -> None:
    """Say why, and leave at once: no clean-up may wait for a process that is gone."""
    print(f"\nerror: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


class Heartbeat:
    """One process's end of it, in a thread of its own. Made by `join`.

    activity: what this process does at the moment, for the messages of the others; anybody may set it.
    """

    def __init__(
        self,
        place: ClusterSpec,
        versions: Mapping[str, str],
        *,
        join_timeout: float,
        lost_after: float,
        end: Ending = exit_process,
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
        self._ready: Future[list[str]] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="gram-jax-heartbeat", daemon=True)

    def join(self) -> list[str]:
        """Wait until every process has come; their host names. Raises ClusterError."""
        self._thread.start()
        self.hosts = self._ready.result()
        return self.hosts

    def deregister(self) -> None:
        """This process has ended as it should: nobody is to miss it."""
        self._tell_and_close({"bye": self.place.index})

    def abort(self, message: str, status: int) -> None:
        """This process ends with an error of its own, and the others with the same status."""
        self._tell_and_close({"failed": self.place.index, "message": message, "status": status})

    def activities(self) -> str:
        """What every process was doing when it was last heard of, a line each."""
        doings = {**self._activities, self.place.index: self.activity}
        return "\n".join(f"  {self._name(i)}: {doing}" for i, doing in sorted(doings.items()))

    def _name(self, index: int) -> str:
        hosts = self.hosts or list(self.place.hosts)
        return f"process {index}" + (f" on {hosts[index]}" if index < len(hosts) else "")

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        serve = self._serve if self.place.index == 0 else self._attend
        try:
            try:
                self._loop.run_until_complete(serve())
            finally:
                self._end_tasks()
        except ClusterError as error:
            self._ready.set_exception(error)
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(ClusterError(f"the job could not be joined: {error!r}"))
            elif not self._leaving:
                self._end(f"the connection between the processes broke: {error!r}", LOST)

    def _end_tasks(self) -> None:
        """Cancel what still listens or beats: a loop that is left with tasks complains when the process ends."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def _tell_and_close(self, message: Mapping[str, Any]) -> None:
        if self._leaving or not self._thread.is_alive():
            return
        self._leaving = True

        async def tell() -> None:
            for writer in list(self._writers.values()):
                with suppress(OSError):
                    await _send(writer, message)
                    writer.close()
                    await writer.wait_closed()

        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(tell(), self._loop).result(timeout=2 * BEAT_SECONDS)

    # Process 0.

    async def _serve(self) -> None:
        place = self.place
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
        if place.count == 1:
            self._complete.set()
        try:
            try:
                await asyncio.wait_for(self._complete.wait(), self.join_timeout)
            except TimeoutError:
                missing = ", ".join(
                    self._name(i) for i in range(place.count) if i not in self._came
                )
                came = ", ".join(f"process {i} on {h}" for i, h in sorted(self._came.items()))
                error = ClusterError(
                    f"{missing} did not come within {self.join_timeout:g} s ({place.count} processes are expected; "
                    f"there: {came}). Look at the output of the missing ones, and whether they can reach "
                    f"{place.host}:{place.port}",
                    LOST,
                )
                await self._tell_all({"refused": str(error), "status": LOST})
                raise error from None
            self.hosts = [self._came[i] for i in range(place.count)]
            await self._tell_all({"hosts": self.hosts})
            self._ready.set_result(self.hosts)
            while not self._leaving:
                self._activities[0] = self.activity
                await self._tell_all({"doings": self._activities})
                await asyncio.sleep(BEAT_SECONDS)
            await asyncio.sleep(3 * BEAT_SECONDS)  # for what `_tell_and_close` has to say
        finally:
            # Not `async with server`: from Python 3.12 on that waits for every connection to end, which those that are
            # told of a failure do only when this process does.
            server.close()

    async def _tell_all(self, message: Mapping[str, Any]) -> None:
        line = _line(message)  # once: every process is told what every process does
        for writer in list(self._writers.values()):
            with suppress(OSError):
                writer.write(line)
                await writer.drain()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to process 0, from its first line to its end."""
        try:
            hello = await asyncio.wait_for(_receive(reader), self.join_timeout)
            index, host = int(hello["hello"]), str(hello["host"])
            problem = self._refusal(index, host, hello)
        except (OSError, TimeoutError, ValueError, KeyError, TypeError):
            writer.close()  # not one of ours
            return
        if problem is not None:
            with suppress(OSError):
                await _send(writer, {"refused": problem})
            writer.close()
            return
        self._came[index], self._writers[index] = host, writer
        if len(self._came) == self.place.count:
            self._complete.set()
        await self._listen(index, reader)

    def _refusal(self, index: int, host: str, hello: Mapping[str, Any]) -> str | None:
        """Why a process that introduces itself cannot be one of this job."""
        count, versions = self.place.count, hello["versions"]
        if hello["processes"] != count or not 0 < index < count:
            return f"process {index} of {hello['processes']} came to a job of {count} processes: --processes must agree"
        if index in self._came:
            return f"two processes say that they are number {index}: on {self._came[index]} and on {host}"
        if versions != self.versions:
            return f"process {index} on {host} runs {versions}, process 0 runs {self.versions}: install the same"
        return None

    async def _listen(self, index: int, reader: asyncio.StreamReader) -> None:
        """Everything that process `index` says; its end without a farewell ends the job."""
        while True:
            try:
                message = await asyncio.wait_for(_receive(reader), self.lost_after)
            except TimeoutError:
                why = f"has not been heard of for {self.lost_after:g} s"
            except (OSError, ValueError):
                why = "is gone: its connection is closed"
            else:
                if "doing" in message:
                    self._activities[index] = message["doing"]
                    continue
                if "bye" in message:
                    self._writers.pop(index, None)
                    self._activities.pop(index, None)
                    return
                self._writers.pop(index, None)
                await self._tell_all(message)
                self._failed(message)
                return
            if self._leaving:
                return
            self._writers.pop(index, None)
            if not self._ready.done():  # it may come again
                self._came.pop(index, None)
                return
            await self._tell_all({"lost": index, "why": why})
            self._lost(index, why)
            return

    # The other processes.

    async def _attend(self) -> None:
        place = self.place
        reader, writer = await self._reach()
        hello = {
            "hello": place.index,
            "processes": place.count,
            "host": socket.gethostname(),
            "versions": self.versions,
        }
        await _send(writer, hello)
        beats = asyncio.ensure_future(self._beat(writer))
        try:
            # Process 0 names those that are missing: give it the time to.
            answer = await asyncio.wait_for(_receive(reader), self.join_timeout + 10)
        except (OSError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"process 0 at {place.host}:{place.port} ended before all {place.count} processes were there",
                LOST,
            ) from error
        if "refused" in answer:
            raise ClusterError(answer["refused"], answer.get("status", 2))
        self.hosts, self._writers[0] = answer["hosts"], writer
        self._ready.set_result(self.hosts)
        try:
            await self._follow(reader)
        finally:
            beats.cancel()

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
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

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while not self._leaving:
                await _send(writer, {"doing": self.activity})
                await asyncio.sleep(BEAT_SECONDS)

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                message = await asyncio.wait_for(_receive(reader), self.lost_after)
            except (OSError, ValueError, TimeoutError) as error:
                if self._leaving:
                    return
                silent = isinstance(error, TimeoutError)
                self._lost(
                    0,
                    f"has not been heard of for {self.lost_after:g} s"
                    if silent
                    else "is gone: its connection is closed",
                )
                return
            if "doings" in message:
                self._activities = {int(i): doing for i, doing in message["doings"].items()}
            elif "bye" in message:
                return
            elif "lost" in message:
                self._lost(message["lost"], message["why"])
                return
            elif "failed" in message:
                self._failed(message)
                return

    def _lost(self, index: int, why: str) -> None:
        if self._leaving:
            return
        self._end(
            f"{self._name(index)} {why}; it was last at: {self._activities.get(index, 'the start')}. The job "
            "ends. Run the same command again to resume from the last checkpoint",
            LOST,
        )

    def _failed(self, message: Mapping[str, Any]) -> None:
        if not self._leaving:
            index = message["failed"]
            self._end(f"{self._name(index)} ended: {message['message']}", int(message["status"]))


async def _send(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(_line(message))
    await writer.drain()


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message. Raises ConnectionError if the other side has closed."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("closed")
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
