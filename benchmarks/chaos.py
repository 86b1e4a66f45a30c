"""Tiny runs that are killed repeatedly must give the same result: python benchmarks/chaos.py [--kills N]

Runs of all stages, with micro-batches, several epochs, evaluations and a checkpoint every other step, are killed with
SIGKILL at random moments, preparation and saves included, and restarted until they finish. The SHA-256 of parameters,
optimizer state, step, data position and metrics must be that of an uninterrupted run. Exit status 1 if one differs.

With --processes N each attempt is a job of N real processes, of which one is killed: the others must end with the
status that asks for a restart, and the time until then is measured.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the trials are forks
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jax
import numpy as np
import orbax.checkpoint as ocp
import tomli_w
from jobs import start_job
from tiny_runs import tiny_recipe, write_pairs

import gram_jax.training.loop as loop
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.errors import LOST
from gram_jax.recipes.reading import recipe_values
from gram_jax.recipes.tables import Recipe
from gram_jax.run.metrics import read_metrics

STAGES = ("pretrain", "finetune", "bradley_terry")
ENDED = 0
GIVEN_UP = 60.0  # seconds after which an attempt that does not end is a failure


def chaos_recipe(stage: str, folder: Path) -> Recipe:
    """12 steps of two micro-batches: three epochs of 16 pairs."""
    return tiny_recipe(
        stage,
        folder,
        run__max_steps=12,
        batch__batch_size=8,
        batch__gradient_accumulation_steps=2,
        data__valid=[str(folder.parent / "valid.jsonl")],
        evaluate__eval_steps=5,
        checkpoint__save_steps=2,
    )


def attempt(recipe: Recipe, log: Path) -> int:
    """Start the run in a forked process; its number."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        with log.open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            loop.train(recipe)
            status = ENDED
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """Exit status within this time, else None."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def digest_of_state(folder: Path) -> str:
    """`fingerprint`, in this process."""
    digest = hashlib.sha256()
    with Checkpoints(folder / "checkpoints", keep=None) as checkpoints:
        step = checkpoints.newest_good(print)
    for item in ("params", "rest"):
        place = (folder / "checkpoints" / str(step) / item).absolute()
        reader = ocp.PyTreeCheckpointer()
        kinds = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            dict(reader.metadata(place).item_metadata.tree),
        )
        found = reader.restore(place, args=ocp.args.PyTreeRestore(restore_args=kinds))
        leaves = jax.tree_util.tree_leaves_with_path(found)
        for path, leaf in sorted(leaves, key=lambda entry: str(entry[0])):
            array = np.asarray(leaf)
            digest.update(f"{item} {path} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    info = json.loads((folder / "run.json").read_text())
    digest.update(json.dumps([step, info["steps"], info["examples"]]).encode())
    for row in read_metrics(folder / "metrics.jsonl"):
        row.pop("tokens_per_second", None)
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def fingerprint(folder: Path) -> str:
    """SHA-256 of the final state (every leaf by name, bit for bit), the steps and the metrics.

    Computed in a forked process, because the parent must not start JAX's back end. Raises RuntimeError for a run that
    cannot be read.
    """
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:  # whatever fails: the child must not continue in the caller of this function
            os.write(write, digest_of_state(folder).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    if len(found) != 64:
        raise RuntimeError(f"{folder} could not be read")
    return found


def disturbed_job(recipe: Recipe, draw: random.Random, length: float, kills: int, count: int):
    """Finish a run by jobs of `count` processes, of which one is killed; seconds until the others ended."""
    base = Path(recipe.run.output_dir).parent
    path = base / "job.toml"
    path.write_text(tomli_w.dumps(recipe_values(recipe)))
    settings = {"devices": 1, "cache": base / "xla"}
    ends: list[float] = []
    while len(ends) < kills:
        job = start_job(base, path, count, **settings)
        victim = draw.randrange(count)
        try:
            time.sleep(draw.uniform(0.3, 1) * length)
            finished = [p.poll() for p in job.processes]
            if any(status is not None for status in finished):
                if job.wait(GIVEN_UP) != [ENDED] * count:
                    raise RuntimeError("\n".join(job.texts()))
                break
            job.processes[victim].kill()
            start = time.monotonic()
            others = [s for i, s in enumerate(job.wait(GIVEN_UP)) if i != victim]
            ends.append(time.monotonic() - start)
            if set(others) - {LOST, ENDED}:
                raise RuntimeError(f"statuses {others}\n" + "\n".join(job.texts()))
        finally:
            job.kill()
    if start_job(base, path, count, **settings).wait(GIVEN_UP) != [ENDED] * count:
        raise RuntimeError("the run could not be finished")
    return ends


def chaos_of_jobs(base: Path, chosen: argparse.Namespace, draw: random.Random) -> int:
    """The trials with jobs of several processes; the exit status."""
    expected, lengths, ends, runs, equal = {}, {}, [], 0, 0
    for stage in chosen.stages:
        for turn in range(2):
            recipe = chaos_recipe(stage, base / f"{stage}-whole-{turn}")
            start = time.monotonic()
            disturbed_job(recipe, draw, 0, 0, chosen.processes)
            lengths[stage] = time.monotonic() - start
            expected[stage] = fingerprint(Path(recipe.run.output_dir))
        print(f"{stage}: {lengths[stage]:.1f} s uninterrupted, {expected[stage][:16]}", flush=True)
    while len(ends) < chosen.kills:
        stage = chosen.stages[runs % len(chosen.stages)]
        recipe = chaos_recipe(stage, base / f"{stage}-{runs}")
        kills = min(draw.randint(1, chosen.per_run), chosen.kills - len(ends))
        ends += disturbed_job(recipe, draw, lengths[stage], kills, chosen.processes)
        runs += 1
        equal += fingerprint(Path(recipe.run.output_dir)) == expected[stage]
    print(
        f"{len(ends)} kills of one of {chosen.processes} processes in {runs} runs; the others ended after "
        f"{sorted(ends)[len(ends) // 2]:.1f} s (median; longest {max(ends):.1f} s)"
    )
    print(f"{equal} of {runs} runs ended with the hash of the uninterrupted one")
    return 0 if equal == runs else 1


def where(log: Path) -> str:
    """The phase in which an attempt was killed, by its log."""
    text = log.read_text().rpartition("--- attempt\n")[2]
    for sign, name in (
        ("saved step 12", "conclusion"),
        (" 12/12", "last save"),
        ("resuming from step", "training, resumed"),
        ("weights to train", "training, first start"),
        ("compile", "loading"),
    ):
        if sign in text:
            return name
    return "preparation"


def disturbed(recipe: Recipe, log: Path, draw: random.Random, length: float, kills: int) -> dict:
    """Finish a run with this number of kills, each in another attempt; the phases that they hit."""
    moments: collections.Counter[str] = collections.Counter()
    while sum(moments.values()) < kills:
        with log.open("a") as file:
            file.write("--- attempt\n")
        pid = attempt(recipe, log)
        status = wait(pid, draw.uniform(0, length))
        if status is None:
            kill(pid)
            moments[where(log)] += 1
        elif status != ENDED:
            raise RuntimeError(f"an attempt failed by itself: {log.read_text()[-3000:]}")
        else:
            break
    if wait(attempt(recipe, log), GIVEN_UP) != ENDED:  # one that is complete ends at once
        raise RuntimeError(f"the run could not be finished: {log.read_text()[-3000:]}")
    return moments


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=120, help="minimum number (default 120)")
    options.add_argument("--per-run", type=int, default=4, help="maximum number in one run")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    options.add_argument("--processes", type=int, default=1, help="of each attempt")
    chosen = options.parse_args()

    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        base = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "xla")
        jax.config.update("jax_compilation_cache_dir", str(base / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        keep_compiled_programs()
        write_pairs(base / "train.jsonl", 16)
        write_pairs(base / "valid.jsonl", 4, seed=1)
        if chosen.processes > 1:
            return chaos_of_jobs(base, chosen, draw)
        expected, lengths = {}, {}
        for stage in chosen.stages:
            for turn in range(2):  # the first fills the cache of programs; both must give the same
                recipe = chaos_recipe(stage, base / f"{stage}-whole-{turn}")
                start = time.monotonic()
                if wait(attempt(recipe, base / "log"), 5 * GIVEN_UP) != ENDED:
                    raise RuntimeError((base / "log").read_text()[-3000:])
                lengths[stage] = time.monotonic() - start
                found = fingerprint(Path(recipe.run.output_dir))
                if expected.setdefault(stage, found) != found:
                    raise RuntimeError(f"two uninterrupted runs of stage {stage} differ")
            print(
                f"{stage}: {lengths[stage]:.1f} s uninterrupted, {expected[stage][:16]}", flush=True
            )

        moments: collections.Counter[str] = collections.Counter()
        runs = equal = 0
        start = time.monotonic()
        while sum(moments.values()) < chosen.kills:
            stage = chosen.stages[runs % len(chosen.stages)]
            recipe = chaos_recipe(stage, base / f"{stage}-{runs}")
            log = base / f"log-{runs}"
            left = chosen.kills - sum(moments.values())
            kills = min(draw.randint(1, chosen.per_run), left)
            moments += disturbed(recipe, log, draw, lengths[stage], kills)
            runs += 1
            if fingerprint(Path(recipe.run.output_dir)) == expected[stage]:
                equal += 1
                shutil.rmtree(recipe.run.output_dir)
            else:
                print(f"DIFFERS: {stage}, run {runs}\n{log.read_text()}", flush=True)
        seconds = time.monotonic() - start
    print(f"{sum(moments.values())} kills in {runs} runs, {seconds:.0f} s:")
    for moment, count in moments.most_common():
        print(f"  {count:4d} in {moment}")
    print(f"{equal} of {runs} runs ended with the hash of the uninterrupted one")
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
