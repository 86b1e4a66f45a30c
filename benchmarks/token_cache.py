"""The token cache on generated pairs: python benchmarks/token_cache.py {scale,start,kills,damage,full} [options]

scale   Writes pairs of about 700 tokens, and measures in fresh processes: building the cache, a resumed start up to the
        first batch, packing an epoch, memory. The pairs are deleted afterwards unless --keep.
start   The resumed start of `scale` with less encoding: the build is interrupted after --encoded pairs, and their
        examples are repeated.
kills   Kills processes that build a cache at random moments and restarts them, two at a time. The cache must equal one
        that was built undisturbed, byte for byte.
damage  Changes bytes of whole caches at random. Every change must be rejected with the name of a changed file, and the
        cache built again must equal the first one.
full    Builds caches in file systems of random sizes that are too small for them (needs root). Every build must end
        with an error that says so and leave nothing that looks whole; on the enlarged file system it must resume and
        equal the undisturbed one.

Exit status 1 if a property does not hold.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
from gram_jax.checkpoint.manifest import write_manifest
from gram_jax.data.cache import COLUMNS, FIGURES, SHARDS
from gram_jax.data.examples import CHUNK
from gram_jax.data.reading import read_records
from gram_jax.data.report import ReadReport
from gram_jax.demo.demo import PREFERENCES
from gram_jax.errors import DataError
from gram_jax.files import write_json
from gram_jax.recipes.reading import make_recipe
from gram_jax.recipes.tables import Recipe
from gram_jax.training.setup import prepare_data

MIB = 2**20


def write_pairs(path: Path, count: int, words: tuple[int, int, int] = (60, 200, 200)) -> None:
    """Pairs of words of the demo's texts. words: mean numbers of (prompt, chosen, rejected)."""
    records, _ = read_records(str(PREFERENCES))
    known = " ".join(f"{r.prompt[-1].content} {r.first} {r.second}" for r in records).split()
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            row = {"id": str(number)}
            for field, mean in zip(("prompt", "chosen", "rejected"), words, strict=True):
                size = max(3, round(draw.gauss(mean, mean / 4)))
                start = draw.randrange(len(known) - size)
                row[field] = " ".join(known[start : start + size])
            file.write(json.dumps(row) + "\n")


def recipe_for(source: Path, cache: Path, model: str, workers: int | None) -> Recipe:
    """A recipe of stage 2 with both packing and one order."""
    return make_recipe(
        {
            "stage": "finetune",
            "run": {"output_dir": str(cache / "run"), "seed": 0, "num_train_epochs": 1},
            "model": {"name_or_path": model, "param_dtype": "float32"},
            "judge": {
                "template": "default",
                "labels": ["A", "B"],
                "max_length": 1024,
                "thinking": False,
            },
            "data": {
                "train": [str(source)],
                "overlong": "truncate",
                "on_bad": "error",
                "position_augmentation": "hash",
                "cache_dir": str(cache),
                "num_workers": workers,
            },
            "batch": {
                "batch_size": 64,
                "max_length": 2048,
                "packing": True,
                "gradient_accumulation_steps": 1,
            },
            "optimizer": {
                "learning_rate": 1e-4,
                "warmup_steps": 0,
                "lr_scheduler_type": "constant",
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
            },
            "loss": {"label_smoothing": 0.1},
            "execution": {"compute_dtype": "float32", "attention": "auto", "remat": "none"},
        }
    )


def anonymous_mib() -> float:
    """Memory of this process that is not backed by a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024 / MIB


def measure(recipe: Recipe) -> dict[str, float]:
    """Seconds and memory of one start: the examples, the first batch, the second epoch."""
    before, clocks = anonymous_mib(), [(time.perf_counter(), time.process_time())]

    def lap() -> None:
        clocks.append((time.perf_counter(), time.process_time()))

    plan = prepare_data(recipe)
    lap()
    plan.batch(0)
    lap()
    plan.prepare(1)
    lap()
    (start, ready, first, packed), used = zip(*clocks, strict=True)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "pairs": plan.examples.units,
        "tokens": int(plan.examples.documents.lengths.sum()),
        "examples": ready - start,
        "first batch": first - ready,
        "second epoch": packed - first,
        "start to first batch": first - start,
        "cpu to first batch": used[2] - used[0],
        "cpu of second epoch": used[3] - used[2],
        "cpu of workers": children.ru_utime + children.ru_stime,
        "cpu": time.process_time(),
        "MiB beyond the start": anonymous_mib() - before,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def scale(options: argparse.Namespace, folder: Path) -> bool:
    source = options.source or folder / "pairs.jsonl"
    if not source.exists():
        write_pairs(source, options.pairs)
    print(f"{source}: {source.stat().st_size / MIB:,.0f} MiB", flush=True)
    for workers in options.workers:
        cache = folder / f"cache-{workers}"
        for what in ("build", "resumed start"):
            if not report(
                start_of(source, cache, options.model, workers), f"{workers} workers, {what}"
            ):
                return False
        if not options.keep:
            shutil.rmtree(cache)
    return True


def start_of(source: Path, cache: Path, model: str, workers: int) -> subprocess.Popen:
    """A process that prints `measure`."""
    words = ["one", "--source", source, "--cache", cache, "--model", model, "--workers", workers]
    return in_a_process(*map(str, words))


def report(process: subprocess.Popen, what: str) -> bool:
    """Print the figures of a process, or its errors."""
    output, errors = process.communicate()
    if process.returncode:
        print(errors)
        return False
    found = json.loads(output.splitlines()[-1])
    figures = ", ".join(f"{name} {value:,.1f}" for name, value in found.items())
    print(f"{what}: {figures}", flush=True)
    return True


def start(options: argparse.Namespace, folder: Path) -> bool:
    """A start with a cache of `pairs` examples, those of `encoded` pairs repeated."""
    source, cache, workers = folder / "pairs.jsonl", folder / "cache", options.workers[0]
    write_pairs(source, options.pairs)
    building = start_of(source, cache, options.model, workers)
    while building.poll() is None:
        journals = list(cache.glob("*.partial/shards.jsonl"))
        if journals and len(journals[0].read_bytes().splitlines()) * CHUNK >= options.encoded:
            break
        time.sleep(0.2)
    building.kill()
    building.communicate()
    repeat_examples(next(cache.glob("*.partial")), options.pairs)
    return report(start_of(source, cache, options.model, workers), "resumed start")


def repeat_examples(partial: Path, count: int) -> None:
    """Make the cache of an interrupted build whole with `count` examples."""
    done = json.loads((partial / SHARDS).read_text().splitlines()[-1])
    times, rest = divmod(count, done["records"])
    lengths = np.fromfile(partial / "lengths", "<i4", done["records"])
    cut = {name: rest for name in COLUMNS} | {"tokens": int(lengths[:rest].sum())}
    for name in COLUMNS:
        values = np.fromfile(partial / name, "<i4", done["ends"][name] // 4)  # all have 4 bytes
        with (partial / name).open("wb") as file:
            for part in [values] * times + [values[: cut[name]]]:
                part.tofile(file)
    read = asdict(ReadReport(count, count, by_source=(count,)))
    figures = {"stage": "finetune", "per_unit": 1, "read": read, "shortened": 0}
    write_json(partial / FIGURES, figures)
    write_manifest(partial, of=partial.stem)
    partial.rename(partial.with_name(partial.stem))


def contents(cache: Path) -> dict[str, str]:
    """SHA-256 of the files of the one cache in a folder."""
    (whole,) = (
        path for path in cache.iterdir() if path.is_dir() and (path / "figures.json").exists()
    )
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in whole.iterdir()
        if path.name != "shards.jsonl"
    }


def kills(options: argparse.Namespace, folder: Path) -> bool:
    """Two processes build one cache; one of them, or both, are killed at random moments until `trials` kills."""
    source, draw, killed, caches = folder / "pairs.jsonl", random.Random(options.seed), 0, 0
    write_pairs(source, options.pairs, (8, 20, 20))
    words = ["--source", str(source), "--model", "tiny-random", "--workers", "2"]
    start = time.perf_counter()
    assert in_a_process("one", "--cache", str(folder / "whole"), *words).wait() == 0
    whole, alone = contents(folder / "whole"), time.perf_counter() - start
    while killed < options.trials:
        cache, caches = folder / f"cache-{caches}", caches + 1
        running: list[subprocess.Popen] = []
        while True:
            while len(running) < 2:
                running.append(in_a_process("one", "--cache", str(cache), *words))
            time.sleep(draw.uniform(0.2, 1.0) * alone)
            if any(one.poll() is not None for one in running) or killed >= options.trials:
                break
            victim = running.pop(draw.randrange(2))
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            killed += 1
        status = [one.wait() for one in running]
        if any(status) or contents(cache) != whole:
            print(f"DIFFERS: {cache}, {status}: {[one.stderr.read()[-2000:] for one in running]}")
            return False
        shutil.rmtree(cache)
    print(
        f"{killed} kills over {caches} caches of {options.pairs:,} pairs: all equal the undisturbed one"
    )
    return True


def damage(options: argparse.Namespace, folder: Path) -> bool:
    """`trials` random changes of a whole cache."""
    source, draw = folder / "pairs.jsonl", random.Random(options.seed)
    write_pairs(source, options.pairs, (8, 20, 20))
    recipe = recipe_for(source, folder / "cache", "tiny-random", 1)
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("gram_jax").addHandler(handler)
    prepare_data(recipe)
    whole = contents(folder / "cache")
    (place,) = (path for path in (folder / "cache").iterdir() if path.is_dir())
    kinds: dict[str, int] = {}
    for _ in range(options.trials):
        warnings.clear()
        path = draw.choice(sorted(path for path in place.iterdir()))
        raw = bytearray(path.read_bytes())
        kind = draw.choice(("bit flip", "truncation", "longer", "deletion", "swap"))
        if kind == "bit flip":
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
            path.write_bytes(raw)
        elif kind == "truncation":
            path.write_bytes(raw[: draw.randrange(len(raw))])
        elif kind == "longer":
            path.write_bytes(raw + draw.randbytes(draw.randint(1, 100)))
        elif kind == "deletion":
            path.unlink()
        else:
            other = draw.choice([p for p in place.iterdir() if p.read_bytes() != raw])
            path.write_bytes(other.read_bytes())
        prepare_data(recipe)
        if not any(path.name in line for line in warnings) or contents(folder / "cache") != whole:
            print(f"NOT REJECTED: {kind} of {path.name}: {warnings}")
            return False
        kinds[kind] = kinds.get(kind, 0) + 1
    print(f"{options.trials} changes rejected by name, the cache built again alike: {kinds}")
    return True


def full(options: argparse.Namespace, folder: Path) -> bool:
    """`trials` file systems that become full."""
    source, draw, disk = folder / "pairs.jsonl", random.Random(options.seed), folder / "disk"
    write_pairs(source, options.pairs, (8, 20, 20))
    prepare_data(recipe_for(source, folder / "cache", "tiny-random", 1))
    whole = contents(folder / "cache")
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    recipe = recipe_for(source, disk / "cache", "tiny-random", 1)
    disk.mkdir()
    for _ in range(options.trials):
        limit = f"size={draw.randrange(size // 20, size * 9 // 10)}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "none", disk], check=True)
        try:
            found = _full_disk(recipe, disk, size)
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
        if found != whole:
            print(f"WRONG with {limit}: {found}")
            return False
    print(f"{options.trials} builds on full disks named, resumed and equal to the undisturbed one")
    return True


def _full_disk(recipe: Recipe, disk: Path, size: int) -> dict[str, str] | str:
    """`contents` of the cache that is built after the disk was full and enlarged, or what went wrong before."""
    try:
        prepare_data(recipe)
        return "no error"
    except DataError as error:
        if "full" not in str(error):
            return str(error)
    if looks := [path.name for path in disk.glob("cache/*/gram_jax_manifest.json")]:
        return f"looks whole: {looks}"
    subprocess.run(["mount", "-o", f"remount,size={4 * size}", disk], check=True)
    prepare_data(recipe)
    return contents(disk / "cache")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("scale", "start", "kills", "damage", "full", "one"))
    parser.add_argument(
        "--pairs", type=int, default=0, help="default 1,000,000 (scale, start), 20,000, 500, 9,000"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--encoded", type=int, default=100_000)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--folder", type=Path, help="default a temporary folder")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.what == "one":
        recipe = recipe_for(options.source, options.cache, options.model, options.workers[0])
        print(json.dumps(measure(recipe)))
        return 0
    sizes = {"scale": 10**6, "start": 10**6, "kills": 20_000, "damage": 500, "full": 9000}
    options.pairs = options.pairs or sizes[options.what]
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return 0 if globals()[options.what](options, folder) else 1
    finally:
        if not options.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
