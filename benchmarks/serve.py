"""The server under load: python benchmarks/serve.py [--model tiny-random] [--seconds 20] [--clients 64] [--requests 0]

Starts `gram-jax serve` and sends pairs from many connections for --seconds, first from --clients, then from ten times
as many with a small queue. Prints requests per second, latencies of accepted requests, the share of rejected requests
and their latency, and the server's memory before, after a tenth and after all of it. --requests: a number of requests
instead of seconds. --remote: prints pairs per second of --clients RemoteScorer clients that score pair by pair, of one
that scores many pairs, and of a Scorer in this process.
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
from concurrent.futures import ThreadPoolExecutor
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
    parser.add_argument("--remote", action="store_true")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from gram_jax.cli import main; main()"
    sizes = ["--max-length", "512"]
    if not options.remote:  # a queue that ten times the clients fill
        sizes += ["--max-queue", "16384", "--max-requests", "128", "--client-share", "1"]
    words = ["serve", options.model, "--port", str(port), *sizes]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url)
        if options.remote:
            remote_scorers(url, options)
            return
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


def remote_scorers(url: str, options: Any) -> None:
    """Pairs per second through RemoteScorer: of single pairs from many clients, and of many pairs from one."""
    from gram_jax.interop.models import load_tokenizer
    from gram_jax.judge.spec import make_spec
    from gram_jax.scoring.remote import RemoteScorer
    from gram_jax.scoring.scorer import Scorer

    tokenizer = load_tokenizer(options.model)
    spec = make_spec(tokenizer, max_length=512)
    clients = [RemoteScorer(url, spec, tokenizer, concurrency=1) for _ in range(options.clients)]
    end = time.monotonic() + options.seconds

    def one(seed: int) -> list[float]:
        draw, times = random.Random(seed), []
        while time.monotonic() < end:
            sent = time.monotonic()
            clients[seed].score(*pair(draw, options.words))
            times.append(time.monotonic() - sent)
        return times

    with ThreadPoolExecutor(options.clients) as threads:
        times = [second for found in threads.map(one, range(options.clients)) for second in found]
    print(
        f"{options.clients} clients, single pairs: {len(times) / options.seconds:,.0f} pairs/s, ",
        end="",
    )
    print(", ".join(f"P{q} {1000 * np.quantile(times, q / 100):,.0f} ms" for q in (50, 99)))
    draw = random.Random(options.clients)
    pairs = [pair(draw, options.words) for _ in range(max(64, len(times)))]
    local = Scorer.load(options.model, spec=spec)
    whole = RemoteScorer(url, spec, tokenizer)
    for name, scorer in (("1 client", whole), ("Scorer in this process", local)):
        list(scorer.stream(pairs))  # compiles
        start = time.monotonic()
        list(scorer.stream(pairs))
        seconds = time.monotonic() - start
        print(f"{name}, {len(pairs):,} pairs: {len(pairs) / seconds:,.0f} pairs/s", flush=True)


def pair(draw: random.Random, words: int) -> tuple[str, str, str]:
    """A prompt and two random responses."""
    first, second = (" ".join(draw.choices(WORDS, k=words)) for _ in range(2))
    return "Which is better?", first, second


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
            prompt, first, second = pair(draw, options.words)
            body = json.dumps({"prompt": prompt, "first": first, "second": second})
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
