"""The server under load: python benchmarks/serve.py [--model tiny-random] [--seconds 20] [--clients 64] [--requests 0]

Starts `gram-jax serve` and sends pairs from many connections for --seconds, first from --clients, then from ten times
as many with a small queue. Prints requests per second, latencies of accepted requests, the share of rejected requests
and their latency, and the server's memory before, after a tenth and after all of it. --requests: a number of requests
instead of seconds.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import httpx
import numpy as np

WORDS = ("the", "judge", "reads", "a", "response", "and", "says", "which", "of", "two", "is")

# A minimal HTTP client: with a tiny model a complete one takes longer over a request than the server.
HEAD = (
    "POST /v1/score_pair HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    "content-length: {length}\r\n\r\n{body}"
)
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def main() -> None:
    """Both loads, one after the other, on one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-random")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--words", type=int, default=20, help="of a response")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from gram_jax.cli import main; main()"
    sizes = [
        "--max-length",
        "512",
        "--max-queue",
        "16384",
        "--max-requests",
        "128",
        "--client-share",
        "1",
    ]
    words = ["serve", options.model, "--port", str(port), *sizes]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url)
        print(
            "| clients | answered | a second | P50 | P99 | refused | P99 of refusals | other | memory, MiB |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for clients in (options.clients, 10 * options.clients):
            before = memory(server.pid)
            found = asyncio.run(load(port, clients, options, server.pid))
            report(clients, found, [before, found["tenth"], memory(server.pid)])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def wait_ready(url: str) -> None:
    """Wait until programs are compiled."""
    for _ in range(1200):
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


async def load(port: int, clients: int, options: Any, server: int) -> dict[str, Any]:
    """(status, seconds) of every request, over a connection for each client; the memory after a tenth of them."""
    found: list[tuple[int, float]] = []
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
    started = time.monotonic()
    end = started + options.seconds

    async def one(seed: int) -> None:
        draw, (reader, writer) = random.Random(seed), connections[seed]
        while (len(found) < options.requests) if options.requests else time.monotonic() < end:
            first, second = (" ".join(draw.choices(WORDS, k=options.words)) for _ in range(2))
            body = json.dumps({"prompt": "Which is better?", "first": first, "second": second})
            sent = time.monotonic()
            writer.write(HEAD.format(length=len(body), body=body).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(LENGTH.search(head).group(1)))
            status = int(head.split(b" ", 2)[1])
            found.append((status, time.monotonic() - sent))
            if status in (429, 503):
                await asyncio.sleep(0.25)  # a quarter of Retry-After
        writer.close()

    async def after_a_tenth() -> float:
        while (
            len(found) < options.requests / 10
            if options.requests
            else time.monotonic() < started + options.seconds / 10
        ):
            await asyncio.sleep(0.1)
        return memory(server)

    tenth, *_ = await asyncio.gather(after_a_tenth(), *(one(at) for at in range(clients)))
    return {"all": found, "seconds": time.monotonic() - started, "tenth": tenth}


def report(clients: int, found: dict[str, Any], held: list[float]) -> None:
    """A row of the table."""
    good = [s for code, s in found["all"] if code == 200]
    refused = [s for code, s in found["all"] if code in (429, 503)]
    other = Counter(code for code, _ in found["all"] if code not in (200, 429, 503))

    def late(times: list[float], q: float) -> str:
        return f"{1000 * float(np.quantile(times, q)):,.0f} ms" if times else "-"

    cells = [
        f"{clients:,}",
        f"{len(good):,}",
        f"{len(good) / found['seconds']:,.0f}",
        late(good, 0.5),
        late(good, 0.99),
        f"{len(refused) / max(1, len(found['all'])):.0%}",
        late(refused, 0.99),
        str(dict(other)) if other else "0",
        " -> ".join(f"{size:,.0f}" for size in held),
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def memory(process: int) -> float:
    """MiB of a process."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
