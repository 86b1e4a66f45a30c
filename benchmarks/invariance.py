"""Is a score independent of batch composition, number of devices and order of the responses, bit for bit?

    python benchmarks/invariance.py [MODEL] [--scores 100000] [--pool 2000]

The pairs of a pool, of mixed lengths, are scored one by one on one device. Then, on each of PLACES, they are scored in
random batches, order and orientation up to the number of scores, and every one is compared with the first bit for bit;
both probabilities must sum to exactly 1, and nothing may be compiled after the warm-up. Finally responses are ranked in
random order together with other rankings. The compiler has its default settings, and every place is a process (or two)
of its own. Exit status 1 if a bit differs.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# name: (processes, devices of each)
PLACES = {"1 device": (1, 1), "8 devices": (1, 8), "2 processes, 4 devices each": (2, 4)}
LARGEST_BATCH = 500
RIVALS = (2, 3, 5, 9)  # responses of a ranking


def pool_of(count: int) -> list[tuple[str, str, str]]:
    """Pairs of a few to a few hundred words."""
    random = np.random.default_rng(0)

    def text() -> str:
        letters = random.choice(list("abcdefgh \n"), int(np.exp(random.normal(3.0, 0.8))))
        return "".join(letters)

    return [(text(), text(), text()) for _ in range(count)]


def bits(scores: list[Any]) -> np.ndarray:
    """The values of scores as integers, so that == compares bits."""
    table = [(s.first, s.second, s.margin, s.position_bias) for s in scores]
    return np.array(table, np.float64).view(np.int64)


def work(model: str, scores: int, pool: int, alone: Path) -> dict[str, Any]:
    """The counts of one place. alone: the bits of the pool, written by the first place and read by the others."""
    import jax
    import jax.monitoring

    from gram_jax.scoring.scorer import Scorer

    judge = Scorer.load(model, compute_dtype="float32", max_length=512)
    judge.warm_up(rankings=True)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    pairs = pool_of(pool)
    if not alone.exists():
        np.save(alone, bits([judge.score(*pair) for pair in pairs]))
    expected = np.load(alone)
    random = np.random.default_rng(1)
    found = {"scores": 0, "differing": 0, "not antisymmetric": 0, "sum is not 1": 0, "calls": 0}
    start = time.monotonic()
    while found["scores"] < scores:
        chosen = random.integers(0, pool, random.integers(1, LARGEST_BATCH))
        turned = random.random(len(chosen)) < 0.5
        given = [
            (p, b, a) if turn else (p, a, b)
            for (p, a, b), turn in zip((pairs[at] for at in chosen), turned, strict=True)
        ]
        results = judge.score_many(given)
        back = [s.swapped() if t else s for s, t in zip(results, turned, strict=True)]
        wrong = (bits(back) != expected[chosen]).any(axis=1)
        found["scores"] += len(results)
        found["differing"] += int((wrong & ~turned).sum())
        found["not antisymmetric"] += int((wrong & turned).sum())
        found["sum is not 1"] += sum(s.first + s.second != 1 for s in results)
    found["seconds"] = round(time.monotonic() - start)
    found["calls"] = judge.engine.counters.calls
    found |= rankings(judge, random)
    found["compiled after the warm-up"] = len(compiled)
    found["hash"] = hashlib.sha256(expected.tobytes()).hexdigest()[:12]
    return found


def rankings(judge: Any, random: np.random.Generator, count: int = 100) -> dict[str, int]:
    """Number of rankings whose margins depend on other rankings or on the order of the responses."""
    texts = [first for _, first, _ in pool_of(count * max(RIVALS))]
    items = [
        (f"Question {at}", list(dict.fromkeys(texts[at * 9 :][: RIVALS[at % len(RIVALS)]])))
        for at in range(count)
    ]
    alone = [judge.rank(prompt, responses).margins for prompt, responses in items]
    differing = 0
    for _ in range(5):
        order = random.permutation(count)
        mixed = [random.permutation(len(items[at][1])) for at in order]
        given = [
            (items[at][0], [items[at][1][k] for k in mix])
            for at, mix in zip(order, mixed, strict=True)
        ]
        for at, mix, ranking in zip(order, mixed, judge.rank_many(given), strict=True):
            same = np.array_equal(ranking.margins, alone[at][np.ix_(mix, mix)], equal_nan=True)
            differing += not same
    return {"rankings": 5 * count, "rankings differing": differing}


def run_place(name: str, options: argparse.Namespace, alone: Path) -> dict[str, Any]:
    """Run the processes of a place; the counts of the first."""
    processes, devices = PLACES[name]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [options.model, "--scores", options.scores, "--pool", options.pool, "--alone", alone]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, given), "--job", f"{port},{processes},{index}"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{name}: status {[process.returncode for process in running]}")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert len({one["hash"] for one in found}) == 1
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny-random")
    parser.add_argument("--scores", type=int, default=100_000)
    parser.add_argument("--pool", type=int, default=2_000)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        port, processes, index = map(int, options.job.split(","))
        if processes > 1:
            import jax

            jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
        print(json.dumps(work(options.model, options.scores, options.pool, options.alone)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run_place(name, options, Path(folder) / "alone.npy") for name in PLACES}
    figures = [name for name in next(iter(found.values())) if name != "hash"]
    print("| | " + " | ".join(figures) + " |")
    print("|---" * (1 + len(figures)) + "|")
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(f"{row[figure]:,}" for figure in figures) + " |")
    wrong = ("differing", "not antisymmetric", "sum is not 1", "rankings differing")
    sys.exit(any(row[name] for row in found.values() for name in wrong))


if __name__ == "__main__":
    main()
