"""Compare two or more programs that do the same work, alternately, each in its own process.

A worker is a script that prints a line of JSON when it is ready, then for every line of its input does the work once
and prints {"seconds", "peak_bytes", ...}. The workers alternate round by round, so that a slow minute of the machine
affects all of them.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# For all workers: with large pages the gigabytes that a step allocates and frees cost 1,000 page faults instead of
# 400,000.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def serve(work: Callable[[], Mapping[str, Any]], **ready: Any) -> None:
    """Of a worker: print `ready`, then work once for every line of input."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = dict(work())
        found["seconds"] = time.perf_counter() - start
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(found), flush=True)


def duel(
    script: str,
    workers: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    warm_up: int = 1,
    settle: bool = True,
) -> dict[str, dict[str, Any]]:
    """Median seconds, peak bytes and the last answer of every worker, by name.

    script: a file beside this one; workers: its arguments. settle: a worker does its work twice in a turn and the
    second time counts, for work of a few seconds: the system may have reclaimed its memory during the others' turns.
    """
    script = str(Path(__file__).with_name(script))
    environment = os.environ | LARGE_PAGES
    running = {
        name: subprocess.Popen(
            [sys.executable, script, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, arguments in workers.items()
    }
    try:
        for process in running.values():
            _answer(process)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
        for _ in range(warm_up + rounds):
            for name, process in running.items():
                for _ in range(1 + settle):
                    process.stdin.write("go\n")
                    process.stdin.flush()
                    answer = _answer(process)
                answers[name].append(answer)
    finally:
        for process in running.values():
            process.kill()
    return {
        name: {
            **found[-1],
            "seconds": statistics.median(answer["seconds"] for answer in found[warm_up:]),
            "all": [answer["seconds"] for answer in found[warm_up:]],
        }
        for name, found in answers.items()
    }


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"the worker {process.args} ended with status {process.wait()}")


def report(title: str, found: Mapping[str, Mapping[str, Any]], first: str) -> list[str]:
    """Lines of a Markdown table: every worker against `first`."""
    ours = found[first]
    lines = [
        f"| {title} | seconds (lowest, highest) | time against {first} | peak memory |",
        "|---|---|---|---|",
    ]
    for name, side in found.items():
        seconds = f"{side['seconds']:.2f} ({min(side['all']):.2f}, {max(side['all']):.2f})"
        ratio = f"{side['seconds'] / ours['seconds']:.2f} x"
        memory = f"{side['peak_bytes'] / 2**30:.2f} GiB"
        lines.append(f"| {name} | {seconds} | {ratio} | {memory} |")
    return lines
