"""Sharded scoring equals that of one process, byte for byte: python benchmarks/shards.py [--pairs N] [--kills N]

Short pairs are scored by one process, and then by 1, 2 and 8 shards with different numbers of tokens per call; the
merged files must be equal byte for byte. The time of two shards is compared with that of one process. Then shards, also
of another number of them, are killed with SIGKILL at random moments and started again until every part is whole; every
row must be there once, unchanged. Exit status 1 if one differs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before the first import of jax
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from forks import Fork

COMMAND = "from gram_jax.cli import main; main()"
WORDS = ["ash", "elm", "fir", "oak", "yew", "bay", "fig", "box", "may", "sloe", "lime", "pine"]
MODEL = "tiny-random"


def write_pairs(path: Path, count: int) -> Path:
    """Pairs of one to twelve words."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))

    with path.open("w") as file:
        for at in range(count):
            row = {"id": f"p{at}", "prompt": text(), "chosen": text(), "rejected": text()}
            file.write(json.dumps(row) + "\n")
    return path


def start(folder: Path, *words: object) -> Fork:
    """A `gram-jax` command on a CPU, in a forked process; its output goes to a file in the folder."""
    settings = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    log = folder / f"log-{time.monotonic_ns()}"
    return Fork(COMMAND, [str(word) for word in words], settings, Path.cwd(), log)


def finish(process: Fork) -> None:
    """Wait for a command. Raises RuntimeError with its output if it fails."""
    if process.wait():
        raise RuntimeError(process.output.read_text()[-3000:])


def run(folder: Path, *words: object) -> float:
    """Seconds that a command takes."""
    begin = time.monotonic()
    finish(start(folder, *words))
    return time.monotonic() - begin


def score(pairs: Path, out: Path, *more: object) -> list[object]:
    """The words of a command."""
    return ["score", pairs, out, "--model", MODEL, "--max-length", 256, *more]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(folder: Path, pairs: Path, whole: Path, counts: list[int]) -> int:
    """Score in shards, two processes at a time; the number of outputs that differ."""
    different = 0
    for count in counts:
        out = folder / f"of-{count}.jsonl"
        shards = [
            score(pairs, out, "--shard", f"{at}/{count}", "--tokens-per-call", 4096 + 2048 * at)
            for at in range(count)
        ]
        begin = time.monotonic()
        for at in range(0, count, 2):
            for process in [start(folder, *words) for words in shards[at : at + 2]]:
                finish(process)
        seconds = time.monotonic() - begin
        merge = run(folder, "merge", out)
        equal = digest(out) == digest(whole)
        different += not equal
        print(
            f"{count} shards, two processes at a time: {seconds:.0f} s, merge {merge:.1f} s, "
            f"{'equal' if equal else 'DIFFERENT'}",
            flush=True,
        )
    return different


def chaos(folder: Path, pairs: Path, whole: Path, kills: int, seconds: float) -> int:
    """Kill shards at random moments; the number of runs that differ. seconds: of a whole shard."""
    draw, done, different, runs = random.Random(1), 0, 0, 0
    while done < kills:
        out, count = folder / f"killed-{runs}.jsonl", draw.choice([1, 2, 3])
        options = ["--part-rows", 50]
        for _ in range(draw.randint(2, 6)):
            if draw.random() < 0.2:
                count = draw.choice([1, 2, 3])
            at = draw.randrange(count)
            process = start(folder, *score(pairs, out, *options, "--shard", f"{at}/{count}"))
            try:
                process.wait(draw.uniform(0.3, 1.1) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
        for at in range(count):
            run(folder, *score(pairs, out, *options, "--shard", f"{at}/{count}"))
        run(folder, "merge", out)
        rows, expected = (
            Counter(path.read_bytes().splitlines(keepends=True)) for path in (out, whole)
        )
        lost, extra = expected - rows, rows - expected
        if lost or extra or digest(out) != digest(whole):
            different += 1
            print(f"DIFFERENT: run {runs}, {lost.total()} lost, {extra.total()} doubled or changed")
        shutil.rmtree(f"{out}.parts")
        runs += 1
    print(f"{done} kills in {runs} runs: {runs - different} are byte-identical to one process")
    return different


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=int, default=100_000, help="default 100,000")
    options.add_argument("--killed-pairs", type=int, default=600, help="scored while being killed")
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--shards", type=int, nargs="*", default=[1, 2, 8])
    chosen = options.parse_args()
    different = 0
    with tempfile.TemporaryDirectory(prefix="shards-") as name:
        folder = Path(name)
        if chosen.shards:
            pairs, whole = write_pairs(folder / "pairs.jsonl", chosen.pairs), folder / "one.jsonl"
            seconds = run(folder, *score(pairs, whole))
            print(f"{chosen.pairs:,} pairs by one process: {seconds:.0f} s", flush=True)
            different += compare(folder, pairs, whole, chosen.shards)
        if chosen.kills:
            pairs = write_pairs(folder / "few.jsonl", chosen.killed_pairs)
            whole = folder / "few-one.jsonl"
            run(folder, *score(pairs, whole))  # compiles
            seconds = run(folder, *score(pairs, folder / "few-two.jsonl"))
            different += chaos(folder, pairs, whole, chosen.kills, seconds)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
