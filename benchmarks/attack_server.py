"""A server under abuse: python benchmarks/attack_server.py [--model tiny-random] [--seconds 60]

Starts `gram-jax serve`. Sixteen honest clients score pairs from 127.0.0.1 while hostile ones at 127.0.0.2 leave heads
unfinished, stay silent, send bodies of unknown keys and of nested lists, rank 64 responses of 100,000 characters, state
two lengths, close their half of the connection and send random bytes. Prints the latencies of the honest clients,
before, beside and after the hostile ones, and the answers by kind of client. Exit status 1 if a request of an honest
client has no answer, or another one than before.
"""

import argparse
import asyncio
import functools
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress

import numpy as np
from serve import HEAD, LENGTH, WORDS, memory, wait_ready

CLIENTS = 16
PAUSE = 0.1  # of an honest client between two requests
HONEST, HOSTILE = "127.0.0.1", "127.0.0.2"
Answers = Counter[str]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> int:
    """Honest clients alone, then beside hostile ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-random")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", nargs="+", default=list(HOSTILES), help="of the hostile clients")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind((HONEST, 0))
        port = free.getsockname()[1]
    code = "from gram_jax.cli import main; main()"
    words = ["serve", options.model, "--port", str(port), "--max-length", "512"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen([sys.executable, "-c", code, *words], stdout=log, stderr=log)
        try:
            wait_ready(f"http://{HONEST}:{port}")
            return asyncio.run(compare(port, options.seconds, server.pid, options.only))
        finally:
            server.send_signal(signal.SIGTERM)
            print(f"exit status of the server: {server.wait(90)}")
            log.seek(0)
            print(f"tracebacks in its log: {log.read().count('Traceback')}")


async def compare(port: int, seconds: float, server: int, only: list[str]) -> int:
    """The exit status."""
    bodies = [pair(seed) for seed in range(CLIENTS)]
    expected = [(await ask(port, body))[1] for body in bodies]
    alone = await honest(port, seconds / 6, bodies, expected)
    show("alone", alone)
    with ProcessPoolExecutor(
        1
    ) as pool:  # hostile clients take no time of the honest ones' event loop
        hostile = pool.submit(attack, port, seconds, only)
        beside = await honest(port, seconds, bodies, expected)
        show("beside hostile clients", beside)
        for name, answers in hostile.result().items():
            print(f"{name}: {dict(answers.most_common())}")
    print(f"memory of the server {memory(server):,.0f} MiB")
    after = await honest(port, seconds / 6, bodies, expected)
    show("afterwards", after)
    return int(any(one.keys() - {"200", "429", "503"} for one, _ in (alone, beside, after)))


def pair(seed: int) -> str:
    """A request of an honest client."""
    draw = random.Random(seed)
    first, second = (" ".join(draw.choices(WORDS, k=20)) for _ in range(2))
    return json.dumps({"prompt": "Which is better?", "first": first, "second": second})


async def ask(port: int, body: str, streams: Streams | None = None) -> tuple[int, bytes]:
    """(status, body) of the answer."""
    reader, writer = streams or await connect(port, HONEST)
    writer.write(HEAD.format(length=len(body), body=body).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    assert length is not None
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length.group(1)))


async def connect(port: int, source: str) -> Streams:
    """A connection from an address of this machine."""
    return await asyncio.open_connection(HONEST, port, local_addr=(source, 0))


async def honest(
    port: int, seconds: float, bodies: list[str], expected: list[bytes]
) -> tuple[Answers, list[float]]:
    """Statuses, "unanswered" and "differs" of all clients, and the latencies of what was answered with 200."""
    answers: Answers = Counter()
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        streams = await connect(port, HONEST)
        while time.monotonic() < end:
            sent = time.monotonic()
            try:
                status, content = await asyncio.wait_for(ask(port, bodies[number], streams), 120)
            except (OSError, EOFError, TimeoutError):
                answers["unanswered"] += 1
                streams = await connect(port, HONEST)
                continue
            latencies.append(time.monotonic() - sent)
            same = status != 200 or json.loads(content) == json.loads(expected[number])
            answers[str(status) if same else "differs"] += 1
            await asyncio.sleep(PAUSE if status == 200 else 1)
        streams[1].close()

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return answers, latencies


def show(when: str, found: tuple[Answers, list[float]]) -> None:
    """Print the answers and latencies of the honest clients."""
    answers, latencies = found
    low, high, most = np.quantile(latencies, (0.5, 0.99, 1))
    print(
        f"honest, {when}: {dict(answers)}, P50 {low:.3f} s, P99 {high:.3f} s, longest {most:.3f} s"
    )


# Hostile clients


def attack(port: int, seconds: float, only: list[str]) -> dict[str, Answers]:
    """The answers to each kind of hostile client; in a process of its own."""
    kinds: dict[str, Answers] = {name: Counter() for name in only}

    async def run() -> None:
        end = time.monotonic() + seconds
        clients = [
            again(client, port, end, kinds[name], number)
            for name, (client, count) in HOSTILES.items()
            for number in range(count)
            if name in kinds
        ]
        await asyncio.gather(*clients)

    asyncio.run(run())
    return kinds


async def again(
    client: Callable[[Streams, int], Awaitable[str]],
    port: int,
    end: float,
    answers: Answers,
    seed: int,
) -> None:
    """Be this client until the end, on a new connection each time."""
    while (left := end - time.monotonic()) > 0:
        streams = None
        try:
            streams = await connect(port, HOSTILE)
            answers[await asyncio.wait_for(client(streams, seed), left)] += 1
        except TimeoutError:
            answers["open at the end"] += 1
        except (OSError, EOFError):
            answers["closed"] += 1
        finally:
            if streams is not None:
                streams[1].close()
        await asyncio.sleep(0.5)


async def status(reader: asyncio.StreamReader) -> str:
    """The status of an answer, or "closed"."""
    line = await reader.readline()
    return found[1].decode() if (found := re.match(rb"HTTP/1.1 (\d+)", line)) else "closed"


def sending(make: Callable[[int], bytes]) -> Callable[[Streams, int], Awaitable[str]]:
    """A client that sends these bytes, made once for each seed, and reads the answer."""
    make = functools.cache(make)

    async def client(streams: Streams, seed: int) -> str:
        reader, writer = streams
        writer.write(make(seed))
        with suppress(OSError):  # refused before all was sent
            await writer.drain()
        return await status(reader)

    return client


def post(path: str, body: bytes, more: tuple[str, ...] = ()) -> bytes:
    """A request."""
    kind = "content-type: application/json"
    lines = (
        f"POST {path} HTTP/1.1",
        "host: x",
        kind,
        *more,
        f"content-length: {len(body)}",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + body


async def unfinished(streams: Streams, seed: int) -> str:
    """A head without an end, one byte a second."""
    reader, writer = streams
    writer.write(b"POST /v1/score_pair HTTP/1.1\r\nhost: x\r\nx-")
    answer = asyncio.create_task(status(reader))
    while not answer.done():
        writer.write(b"a")
        await asyncio.wait([answer], timeout=1)
    return answer.result()


async def silent(streams: Streams, seed: int) -> str:
    """A connection on which nothing is sent."""
    return await status(streams[0])


async def half_closed(streams: Streams, seed: int) -> str:
    """A request of a client that can receive but not send any more."""
    streams[1].write(post("/v1/score_pair", pair(seed).encode()))
    streams[1].write_eof()
    return await status(streams[0])


def unknown_keys(seed: int) -> bytes:
    """7.7 MB of unknown keys."""
    return post("/v1/score_pair", json.dumps({f"k{n:07}": n for n in range(370_000)}).encode())


def long_rank(seed: int) -> bytes:
    """64 responses of 100,000 characters."""
    words = random.Random(seed)
    responses = [" ".join(words.choices(WORDS, k=22_000))[:100_000] for _ in range(64)]
    return post("/v1/rank", json.dumps({"prompt": "p", "responses": responses}).encode())


# Client and number of them at once.
HOSTILES: dict[str, tuple[Callable[[Streams, int], Awaitable[str]], int]] = {
    "unfinished heads": (unfinished, 1100),
    "silent connections": (silent, 200),
    "half-closed": (half_closed, 4),
    "unknown keys": (sending(unknown_keys), 2),
    "nested lists": (sending(lambda seed: post("/v1/score_pair", b"[" * 2_000_000)), 2),
    "a long rank": (sending(long_rank), 2),
    "two lengths": (
        sending(lambda seed: post("/v1/rank", b"{}", ("transfer-encoding: chunked",))),
        2,
    ),
    "random bytes": (sending(lambda seed: random.Random(seed).randbytes(10_000) + b"\r\n" * 4), 2),
    "a head of 1 MB": (sending(lambda seed: b"GET / HTTP/1.1\r\nx: " + b"a" * 1_000_000), 2),
}


if __name__ == "__main__":
    sys.exit(main())
