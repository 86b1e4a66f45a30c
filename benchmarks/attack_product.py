"""Attack the commands of gram-jax before a release: python benchmarks/attack_product.py [ATTACK ...]

kills       every writing command is killed at random moments and repeated until it ends
together    two commands at once on one place, for every pair of writing commands
full        a file system that becomes full at random points (needs root: a tmpfs is mounted)
read_only   a file system that cannot be written, empty or with the results of an interrupted command
damage      one change of a random file that a command wrote, then the command again, or one that reads it
non_finite  NaN, inf or an overflow at a random place of the weights, through every command and endpoint
hostile     files without end, too deep, of wrong types (attack_files.py), with the memory and time of each

An attack passes if every command ends with the undisturbed result, or with status 2 and a message: no row lost,
repeated, changed or added, and no traceback. Exit status 1 if a trial fails; its folder is kept.

Commands run in forked processes of one that has imported everything and started no device.
"""

import argparse
import contextlib
import hashlib
import importlib
import itertools
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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the commands are forks
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jax
import tomli_w
from attack_files import hostile_files
from chaos import fingerprint as run_digest
from tiny_runs import tiny_values

from gram_jax.checkpoint.manifest import MANIFEST
from gram_jax.cli import run_command

# Imported once, in the process that is forked.
HEAVY = """
    gram_jax.adaptation.adapt gram_jax.attacks.evaluate gram_jax.evals.best_of_n gram_jax.evals.evaluate
    gram_jax.interop.hf_export gram_jax.reports.report gram_jax.rl.loop gram_jax.scoring.files
    gram_jax.training.loop matplotlib.pyplot transformers.models.auto.tokenization_auto
"""
SECONDS = 300.0  # of one command
VOLATILE = ("tokens_per_second", "checksum", "seconds", "model", "source", "sources", "policy")
LOCKS = ("lock.json",)


class Done(NamedTuple):
    """status: None if it was killed. rss: peak memory in MB."""

    status: int | None
    text: str
    seconds: float
    rss: float

    @property
    def is_bug(self) -> bool:
        return self.status not in (None, 0, 2, 75, 130) or "Traceback" in self.text


class Child:
    """A command in a forked process."""

    def __init__(self, words: Sequence[object], log: Path, memory: int | None = None):
        self._log, self._start = log, time.monotonic()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            with log.open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
            status = run_command([str(word) for word in words])
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float = SECONDS) -> Done | None:
        """How it ended; None if it still runs after this time."""
        deadline = time.monotonic() + seconds
        while True:
            found, status, usage = os.wait4(self.pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                return self._done(None if code < 0 else code, usage.ru_maxrss / 1e3)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)

    def kill(self) -> Done:
        os.kill(self.pid, signal.SIGKILL)
        _, _, usage = os.wait4(self.pid, 0)
        return self._done(None, usage.ru_maxrss / 1e3)

    def _done(self, status: int | None, rss: float) -> Done:
        text = self._log.read_text(errors="replace")
        return Done(status, text, time.monotonic() - self._start, rss)


def run(words: Sequence[object], log: Path, memory: int | None = None) -> Done:
    """Run a command to its end; one that does not end in time is a bug with status 99."""
    child = Child(words, log, memory)
    done = child.wait()
    return done or child.kill()._replace(status=99)


@dataclass(frozen=True)
class Command:
    """A command that writes. words(place): with its outputs below `place`; reads: those that read them.

    given: the command reads what the command of this name wrote to the same place.
    """

    name: str
    words: Callable[[Path], list[object]]
    reads: Callable[[Path], list[list[object]]] = field(default=lambda place: [])
    given: str | None = None


class World:
    """Inputs that every trial shares, in one folder, and the undisturbed results."""

    def __init__(self, base: Path, every: int):
        self.base, self.log, self.every = base, base / f"log-{os.getpid()}", every
        self.expected: dict[str, dict[str, str]] = {}
        self.lengths: dict[str, float] = {}
        self.pairs, self.candidates = base / "pairs.jsonl", base / "candidates.jsonl"
        draw = random.Random(0)
        words = ["ash", "elm", "fir", "oak", "yew", "bay", "fig"]

        def text(mark: str) -> str:
            return " ".join(draw.choices(words, k=3)) + mark

        pairs = [
            {"prompt": f"{n} + 1?", "chosen": text(" zzz"), "rejected": text("")} for n in range(48)
        ]
        lists = [
            {"prompt": f"{n} + 1?", "responses": [text(str(k)) for k in range(3)]}
            for n in range(12)
        ]
        self.pairs.write_text("".join(json.dumps(row) + "\n" for row in pairs))
        self.candidates.write_text("".join(json.dumps(row) + "\n" for row in lists))
        self.judge = base / "judge"
        self.commands = {command.name: command for command in self._commands()}

    def prepare(self, names: Iterable[str]) -> None:
        """The judge, and the undisturbed result of every command, made twice: both must be the same.

        Those of an earlier attack in the folder are used again.
        """
        known = self.base / "expected.json"
        if known.exists():
            self.expected, self.lengths = json.loads(known.read_text())
        if not self.judge.exists():
            assert run(["convert", "tiny-random", self.judge], self.log).status == 0, self.text
            words = ["spec", self.judge, "--model", "tiny-random", "--max-length", 256]
            assert run(words, self.log).status == 0, self.text
        for name in names:
            if name not in self.expected:
                self._undisturbed(name)
        if names:
            known.write_text(json.dumps([self.expected, self.lengths]))
        self.expected = {name: self.expected[name] for name in names}

    def _undisturbed(self, name: str) -> None:
        for turn in range(2):
            place = self.base / f"whole-{name}-{turn}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            self.give(name, place)
            done = run(self.commands[name].words(place), self.log)
            assert done.status == 0, f"{name}: {done}"
            self.lengths[name] = done.seconds
            found = digests(place)
            if self.expected.setdefault(name, found) != found:
                raise RuntimeError(f"two undisturbed runs of {name} differ: {place}")
        print(f"{name}: {self.lengths[name]:.1f} s, {len(self.expected[name])} results", flush=True)

    def give(self, name: str, place: Path) -> None:
        """Put what a command reads into the place of its results."""
        given = self.commands[name].given
        if given is None:
            return
        source = self.base / f"given-{given}"
        if not source.exists():
            source.mkdir()
            for words in GIVEN[given](self, source):
                done = run(words, self.log)
                assert done.status == 0, f"{given} for {name}: {done}"
        shutil.copytree(source, place, dirs_exist_ok=True)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def _commands(self) -> Iterator[Command]:
        judge, pairs, lists = self.judge, self.pairs, self.candidates

        def recipe(place: Path, stage: str) -> Path:
            values = tiny_values(
                stage,
                self.base / "run",
                run__output_dir=str(place / "run"),
                run__max_steps=6,
                checkpoint__save_steps=2,
                data__train=[str(pairs)],
            )
            path = self.base / f"{stage}-{place.name}.toml"
            path.write_text(tomli_w.dumps(values))
            return path

        def rl(place: Path) -> list[object]:
            changes = {
                "run.output_dir": place / "run",
                "run.max_steps": 3,
                "policy.name_or_path": "tiny-random",
                "reward.judge": judge,
                "data.train": lists,
                "data.limit": 8,
                "sampling.prompts_per_step": 2,
                "sampling.num_generations": 2,
                "sampling.max_prompt_length": 64,
                "sampling.max_new_tokens": 4,
                "algorithm.num_mini_batches": 1,
                "algorithm.num_epochs": 1,
                "algorithm.gradient_accumulation_steps": 1,
                "evaluate.eval_steps": 2,
                "evaluate.limit": 2,
                "checkpoint.save_steps": 1,
                "optimizer.warmup_steps": 0,
                "log.tensorboard": "false",
            }
            sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
            return ["rl", "smollm2-135m-rl", *sets]

        yield Command("train", lambda place: ["train", recipe(place, "finetune")])
        yield Command(
            "prepare",
            lambda place: [
                *("data", "prepare", recipe(place, "finetune")),
                *("--set", f"data.cache_dir={place / 'cache'}"),
            ],
        )
        yield Command("rl", rl)
        yield Command(
            "adapt",
            lambda place: [
                *("adapt", judge, self._many_pairs(), "--out", place / "out", "--accept"),
                *("--num-train-epochs", 1, "--batch-size", 4, "--max-length", 256),
            ],
        )
        yield Command("score", lambda place: ["score", pairs, place / "scores.jsonl", "-m", judge])
        yield Command("rank", lambda place: ["rank", lists, place / "ranks.jsonl", "-m", judge])
        yield Command(
            "evaluate",
            lambda place: ["evaluate", judge, pairs, "--out", place / "out"],
            lambda place: [["report", place / "out", "--out", place / "page.html"]],
        )
        yield Command(
            "attack",
            lambda place: [
                *("attack", judge, pairs, "--out", place / "out", "--pairs", 6),
                *("--only", "hostile"),
            ],
            lambda place: [["report", place / "out", "--out", place / "page.html"]],
        )
        yield Command(
            "bon",
            lambda place: [
                *("bon", "tiny-random", judge, lists, "--out", place / "out", "--n", 2),
                *("--limit", 4, "--max-new-tokens", 4),
            ],
        )
        yield Command(
            "convert",
            lambda place: ["convert", judge, place / "out"],
            lambda place: [
                ["score", pairs, place / "of.jsonl", "-m", place / "out", "--overwrite"],
                ["verify", place / "out"],
            ],
        )
        yield Command(
            "spec", lambda place: ["spec", place / "judge.json", "-m", judge, "--overwrite"]
        )
        yield Command(
            "merge",
            lambda place: ["merge", place / "scores.jsonl"],
            lambda place: [["verify", place / "scores.jsonl"]],
            given="parts",
        )
        yield Command(
            "report",
            lambda place: [
                *("report", place / "evaluated", "--out", place / "page.html"),
                *("--markdown", place / "page.md"),
            ],
            given="evaluated",
        )
        yield Command("card", lambda place: ["card", place / "exported"], given="exported")

    def _many_pairs(self) -> Path:
        path = self.base / "many.jsonl"
        if not path.exists():
            rows = [json.loads(line) for line in self.pairs.read_text().splitlines()]
            more = [row | {"prompt": f"{k}: {row['prompt']}"} for k in range(3) for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in more))
        return path


# What the commands read that need the results of another one: commands that write it to a folder.
GIVEN: dict[str, Callable[[World, Path], list[list[object]]]] = {
    "parts": lambda world, place: [
        [
            *("score", world.pairs, place / "scores.jsonl", "-m", world.judge),
            *("--shard", f"{shard}/2", "--part-rows", 10),
        ]
        for shard in range(2)
    ],
    "evaluated": lambda world, place: [
        ["evaluate", world.judge, world.pairs, "--out", place / "evaluated"]
    ],
    "exported": lambda world, place: [["convert", world.judge, place / "exported"]],
}


def digests(place: Path) -> dict[str, str]:
    """What a command left, by file: SHA-256 of the content without times and names of folders."""
    found: dict[str, str] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_dir() and (path / "recipe.toml").exists() and (path / "checkpoints").is_dir():
            found[name] = run_digest(path)
        inside_run = any((parent / "recipe.toml").exists() for parent in path.parents)
        if not path.is_file() or inside_run or path.name.endswith(LOCKS):
            continue
        if path.suffix in (".png", ".html") or path.name in ("template.txt",):
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl") and path.name != MANIFEST:
            with contextlib.suppress(ValueError):
                lines = data.splitlines() if path.suffix == ".jsonl" else [data]
                data = "\n".join(
                    json.dumps(_plain(json.loads(line), str(place)), sort_keys=True)
                    for line in lines
                ).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return {
            key: _plain(item, place)
            for key, item in value.items()
            if key not in VOLATILE or not isinstance(item, str | float | int)
        }
    if isinstance(value, list):
        return [_plain(item, place) for item in value]
    return value.replace(place, "PLACE") if isinstance(value, str) else value


class Trials:
    """Counts of one attack, and its failures."""

    def __init__(self, name: str):
        self.name, self.counts, self.failed = name, Counter(), []

    def judge(self, where: str, problem: str | None, outcome: str) -> None:
        """Count a trial. problem: why it fails, None if it passes."""
        self.counts["trials"] += 1
        self.counts[outcome if problem is None else "FAILED"] += 1
        if problem is not None:
            self.failed.append(f"{where}: {problem}")
            print(f"FAILED {self.name}: {where}: {problem}", flush=True)

    def summary(self) -> str:
        return f"{self.name}: " + ", ".join(f"{n} {what}" for what, n in self.counts.items())


def difference(world: World, name: str, place: Path) -> str | None:
    """A line if the results of a command are not the undisturbed ones. What it was given is not its result."""
    found, wanted = digests(place), world.expected[name]
    if given := world.commands[name].given:
        inputs = digests(world.base / f"given-{given}")
        wanted = {key: value for key, value in wanted.items() if inputs.get(key) != value}
        found = {key: value for key, value in found.items() if key in wanted or key not in inputs}
    wrong = sorted(key for key in wanted if found.get(key) != wanted[key])
    more = sorted(found.keys() - wanted.keys())
    return f"differs in {wrong}, has in addition {more}" if wrong or more else None


def kills(world: World, trials: Trials, draw: random.Random, count: int) -> None:
    """Up to three kills of each run of a command."""
    killed = 0
    while killed < count:
        name = draw.choice(list(world.expected))
        place = new_place(world, name)
        moments = []
        for _ in range(draw.randint(1, 3)):
            child = Child(world.commands[name].words(place), world.log)
            moment = draw.uniform(0.1, world.lengths[name])
            done = child.wait(moment)
            if done is not None:
                break
            child.kill()
            moments.append(moment)
        killed += len(moments)
        done = run(world.commands[name].words(place), world.log)
        again = name == "convert" and "not empty" in done.text  # it had finished
        problem = f"{done.status}: {done.text[-1500:]}" if done.status and not again else None
        problem = problem or difference(world, name, place)
        trials.counts["kills"] += len(moments)
        trials.judge(f"{name} killed after {moments} in {place}", problem, "equal")
        clear(place, problem)


def together(world: World, trials: Trials, draw: random.Random, count: int) -> None:
    """Every pair of commands at once in one place."""
    names = list(world.expected)
    pairs = [(a, b) for at, a in enumerate(names) for b in names[at:]][:count]
    for one, other in pairs:
        place = new_place(world, one, other)
        logs = [world.log.with_suffix(f".{at}") for at in range(2)]
        children = [
            Child(world.commands[name].words(place), log)
            for name, log in zip((one, other), logs, strict=True)
        ]
        ends = [child.wait() or child.kill()._replace(status=99) for child in children]
        problem = next((f"{e.status}: {e.text[-1500:]}" for e in ends if e.is_bug), None)
        if problem is None and all(end.status for end in ends):
            problem = f"none succeeded: {[end.text[-500:] for end in ends]}"
        if problem is None:  # those that succeeded have written their undisturbed results
            done = {n for n, end in zip((one, other), ends, strict=True) if end.status == 0}
            found = digests(place)
            for name in done:
                wanted = world.expected[name].items()
                if wrong := [key for key, value in wanted if found.get(key) != value]:
                    problem = f"{name} ended with 0, and differs in {wrong}"
        refused = sum(end.status == 2 for end in ends)
        trials.judge(f"{one} and {other} in {place}", problem, f"with {refused} refused")
        clear(place, problem)


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A tmpfs of this number of bytes at the folder."""
    place.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={max(4096, size)}", "tmpfs", place], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def used(place: Path) -> int:
    """Bytes in whole blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in place.rglob("*"))


def full(world: World, trials: Trials, draw: random.Random, count: int) -> None:
    """A disk that becomes full at a random point; afterwards, with space, the command succeeds."""
    sizes = {name: used(world.base / f"whole-{name}-0") for name in world.expected}
    given = {
        name: used(world.base / f"given-{world.commands[name].given}") for name in world.expected
    }
    for number in range(count):
        name = list(world.expected)[number % len(world.expected)]
        place = new_place(world)
        more = draw.randrange(4096, int(1.3 * (sizes[name] - given[name])) + 8192)
        size = given[name] + more
        with small_disk(place, size):
            world.give(name, place)
            done = run(world.commands[name].words(place), world.log)
            problem = f"{done.status}: {done.text[-1500:]}" if done.is_bug else None
            outcome = "refused" if done.status else "succeeded"
            remount(place, f"size={2**29}")
            again = run(world.commands[name].words(place), world.log)
            exists = name == "convert" and done.status == 0 and "not empty" in again.text
            if problem is None and again.status and not exists:
                problem = f"with space: {again.status}: {again.text[-1500:]}"
            problem = problem or difference(world, name, place)
        trials.judge(f"{name} with {size:,} bytes of {sizes[name]:,}", problem, outcome)


def read_only(world: World, trials: Trials, draw: random.Random, count: int) -> None:
    """Before anything is written, and after an interruption."""
    for number in range(count):
        name = list(world.expected)[number % len(world.expected)]
        place = new_place(world)
        with small_disk(place, 2**29):
            world.give(name, place)
            if number >= len(world.expected):
                child = Child(world.commands[name].words(place), world.log)
                if child.wait(draw.uniform(0.3, 1) * world.lengths[name]) is None:
                    child.kill()
            before = digests(place) if number < len(world.expected) else None
            remount(place, "ro")
            done = run(world.commands[name].words(place), world.log)
            problem = f"{done.status}: {done.text[-1500:]}" if done.is_bug else None
            if before is not None and done.status == 0:
                problem = problem or "succeeded without writing"
            remount(place, "rw")
            again = run(world.commands[name].words(place), world.log)
            if problem is None and again.status and "not empty" not in again.text:
                problem = f"writable again: {again.status}: {again.text[-1500:]}"
            problem = problem or difference(world, name, place)
        trials.judge(name, problem, "refused" if done.status else "complete")


CHANGES = (
    "flip", "truncate", "delete", "zero", "random", "append", "swap", "line out", "line twice",
    "digit",
)  # fmt: skip


def change(path: Path, kind: str, draw: random.Random) -> bool:
    """Damage one file; False if this kind does not apply."""
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    at = draw.randrange(max(1, len(data)))
    if kind == "delete":
        path.unlink()
        return True
    if kind == "swap":
        others = [p for p in path.parent.iterdir() if p.is_file() and p.read_bytes() != data]
        if not others:
            return False
        other = draw.choice(sorted(others))
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return True
    if kind.startswith("line") and (len(lines) < 2 or b"\0" in data):
        return False
    number = draw.randrange(max(1, len(lines)))
    changed = bytearray(data)
    match kind:
        case "flip" if data:
            changed[at] ^= 1 << draw.randrange(8)
        case "truncate":
            changed = changed[:at]
        case "zero":
            changed[at : at + 64] = bytes(len(changed[at : at + 64]))
        case "random":
            changed[at : at + 16] = draw.randbytes(len(changed[at : at + 16]))
        case "append":
            changed += draw.randbytes(20)
        case "line out":
            changed = bytearray(b"".join(lines[:number] + lines[number + 1 :]))
        case "line twice":
            changed = bytearray(b"".join(lines[: number + 1] + lines[number:]))
        case "digit":
            digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
            if not digits or b"\0" in data:
                return False
            place = draw.choice(digits)
            changed[place] = 48 + (changed[place] - 48 + draw.randint(1, 9)) % 10
    path.write_bytes(changed)
    return bytes(changed) != data


def damage(world: World, trials: Trials, draw: random.Random, count: int) -> None:
    """A change of one file of a finished or interrupted command, then the command and those that read it."""
    states = {name: [world.base / f"whole-{name}-0"] for name in world.expected}
    for name, found in states.items():  # and of interrupted ones
        for part in (0.5, 0.8):
            place = world.base / f"part-{name}-{part}-{os.getpid()}"
            place.mkdir()
            world.give(name, place)
            child = Child(world.commands[name].words(place), world.log)
            if child.wait(part * world.lengths[name]) is None:
                child.kill()
                found.append(place)
    kinds: Counter[str] = Counter()
    while trials.counts["trials"] < count:
        name = draw.choice(list(world.expected))
        source, place = draw.choice(states[name]), new_place(world)
        shutil.rmtree(place)
        shutil.copytree(source, place)
        files = [
            path
            for path in sorted(place.rglob("*"))
            if path.is_file()
            and not path.name.endswith(LOCKS)
            and path.suffix not in (".png", ".html", ".partial")
            and "tensorboard" not in path.parts
        ]
        if not files:
            shutil.rmtree(place)
            continue
        by_name: dict[str, list[Path]] = {}
        for path in files:  # each kind of file as often as the others
            key = path.name if len(path.name) < 30 and not path.parent.name.isdigit() else "shard"
            by_name.setdefault(key, []).append(path)
        path = draw.choice(by_name[draw.choice(sorted(by_name))])
        kind = draw.choice(CHANGES)
        if not change(path, kind, draw):
            shutil.rmtree(place)
            continue
        kinds[path.name if len(path.name) < 30 else path.suffix] += 1
        where = f"{name}, {kind} of {path.relative_to(place)} in {place}"
        problem, outcome = after_damage(world, name, place, source)
        trials.judge(where, problem, outcome)
        clear(place, problem)
    print(f"damaged files: {dict(kinds.most_common())}")


def after_damage(world: World, name: str, place: Path, source: Path) -> tuple[str | None, str]:
    """(problem or None, outcome) of the command, and of the commands that read its results."""
    command, finished = world.commands[name], source.name.startswith("whole")
    if finished and command.reads(place):  # as they are read
        for words in command.reads(place):
            done = run(words, world.log)
            if done.is_bug:
                return f"{words[0]}: {done.status}: {done.text[-1500:]}", ""
            if done.status:
                return None, "refused"
        if name == "convert":
            of = place / "of.jsonl"
            good = world.base / "of.jsonl"
            if not good.exists():
                run(["score", world.pairs, good, "-m", world.judge], world.log)
            same = [_plain(json.loads(x), "") for x in of.read_text().splitlines()] == [
                _plain(json.loads(x), "") for x in good.read_text().splitlines()
            ]
            return (None, "harmless") if same else ("other scores", "")
    done = run(command.words(place), world.log)
    if done.is_bug:
        return f"{done.status}: {done.text[-1500:]}", ""
    if done.status:
        return None, "refused"
    return difference(world, name, place), "equal"


def non_finite(world: World, trials: Trials, draw: random.Random, count: int) -> None:
    """A bad number in the weights: every command refuses the model and writes no number."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    uses = {
        "score": lambda j, p: ["score", world.pairs, p / "x.jsonl", "-m", j],
        "rank": lambda j, p: ["rank", world.candidates, p / "x.jsonl", "-m", j],
        "bf16": lambda j, p: [
            *("score", world.pairs, p / "x.jsonl", "-m", j, "--weights", "bfloat16"),
        ],
        "int8": lambda j, p: [
            *("score", world.pairs, p / "x.jsonl", "-m", j, "--weights", "int8"),
        ],
        "evaluate": lambda j, p: ["evaluate", j, world.pairs, "--out", p / "x"],
        "attack": lambda j, p: [
            *("attack", j, world.pairs, "--out", p / "x", "--pairs", 4, "--only", "hostile"),
        ],
        "bon, judge": lambda j, p: [
            *("bon", "tiny-random", j, world.candidates, "--out", p / "x", "--n", 2),
            *("--limit", 2, "--max-new-tokens", 4),
        ],
        "bon, policy": lambda j, p: [
            *("bon", j, world.judge, world.candidates, "--out", p / "x", "--n", 2),
            *("--limit", 2, "--max-new-tokens", 4),
        ],
        "convert": lambda j, p: ["convert", j, p / "x"],
        "adapt": lambda j, p: ["adapt", j, world._many_pairs(), "--out", p / "x"],
        "train": lambda j, p: [
            *world.commands["train"].words(p),
            *("--set", f"model.name_or_path={j}"),
        ],
        "rl, judge": lambda j, p: [*world.commands["rl"].words(p), "--set", f"reward.judge={j}"],
        "rl, policy": lambda j, p: [
            *world.commands["rl"].words(p),
            *("--set", f"policy.name_or_path={j}"),
        ],
        "serve": lambda j, p: ["serve", j, "--port", 18123],
        "bench": lambda j, p: ["bench", "-m", j, "--pairs", 2, "--rounds", 1, "--length", "64"],
    }
    for number in range(count):
        judge = world.base / f"bad-judge-{os.getpid()}"
        shutil.rmtree(judge, ignore_errors=True)
        shutil.copytree(world.judge, judge)
        weights = judge / "model.safetensors"
        tensors = load_file(weights)
        tensor = draw.choice(sorted(tensors))
        value = draw.choice((np.nan, np.inf, -np.inf, "overflow"))
        if value == "overflow":  # finite weights, activations that are not
            tensors["model.norm.weight"] *= np.float32(1e38)
            tensors["model.embed_tokens.weight"] *= np.float32(1e3)
        else:
            flat = tensors[tensor].reshape(-1)
            flat[draw.randrange(flat.size)] = value
        save_file(tensors, weights, metadata={"format": "pt"})
        assert run(["verify", judge, "--accept"], world.log).status == 0
        for use, words in uses.items():
            if value == "overflow" and use in ("convert", "bench", "train"):
                continue  # they compute no score; training skips such batches and stops
            place = new_place(world)
            child = Child(words(judge, place), world.log)
            done = child.wait(60)
            done = done or child.kill()._replace(status=99)
            numbers = [p.name for p in place.rglob("*") if p.is_file() and is_result(p)]
            problem = None
            if done.status != 2 or done.is_bug:
                problem = f"{done.status}: {done.text[-1500:]}"
            elif numbers:
                problem = f"wrote {numbers}"
            where = f"{use}: {value} in {tensor} ({number}) in {place}"
            trials.judge(where, problem, "refused")
            clear(place, problem)


def is_result(path: Path) -> bool:
    """Whether a file holds figures of a judge, not the inputs or settings of a command."""
    if path.name in ("samples.jsonl", "run.json") or path.name.endswith((".meta.json", *LOCKS)):
        return False
    if "data" in path.parts or "model" in path.parts or not path.stat().st_size:
        return False
    return path.suffix in (".json", ".jsonl", ".safetensors")


def hostile(world: World, trials: Trials, draw: random.Random, count: int) -> None:
    """Every file with the command that reads it: no traceback, within 120 s and 4 GB."""
    most, longest = 0.0, 0.0
    files = hostile_files(
        world.base / f"hostile-{os.getpid()}", world.judge, world.pairs, world.every
    )
    for name, words in itertools.islice(files, count):
        child = Child(words, world.log)
        done = child.wait(120)
        done = done or child.kill()._replace(status=99)
        most, longest = max(most, done.rss), max(longest, done.seconds)
        problem = None
        if done.is_bug:
            problem = f"{done.status} after {done.seconds:.0f} s: {done.text[-800:]}"
        elif done.status is None or done.rss > 4000:
            problem = f"killed, or {done.rss:.0f} MB"
        trials.judge(name, problem, "refused" if done.status else "read")
    print(f"largest memory {most:,.0f} MB, longest time {longest:.0f} s")


def new_place(world: World, *names: str) -> Path:
    """A new folder, with what these commands read."""
    place = Path(tempfile.mkdtemp(prefix="trial-", dir=world.base))
    for name in names:
        world.give(name, place)
    return place


def clear(place: Path, problem: str | None) -> None:
    if problem is None:
        shutil.rmtree(place, ignore_errors=True)


# Number of trials (kills: of kills) of a full attack.
ATTACKS: dict[str, tuple[Callable[..., None], int]] = {
    "kills": (kills, 200),
    "together": (together, 1000),
    "full": (full, 50),
    "read_only": (read_only, 20),
    "damage": (damage, 1000),
    "non_finite": (non_finite, 50),
    "hostile": (hostile, 1000),
}


class TimeIsUpError(BaseException):
    """An attack has used its time."""


@contextlib.contextmanager
def end_after(minutes: float | None) -> Iterator[None]:
    """End the block after this time, also in the middle of a trial, which does not count."""

    def end(*_: object) -> None:
        raise TimeIsUpError

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))
    with contextlib.suppress(TimeIsUpError):
        yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def attack(
    base: Path,
    names: Sequence[str],
    *,
    commands: Sequence[str] = (),
    count: int | None = None,
    seed: int = 0,
    every: int = 1,
    minutes: float | None = None,
) -> list[Trials]:
    """Run attacks in a folder; their counts. minutes: each attack ends after this time, with the trials made."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "xla")
    jax.config.update("jax_compilation_cache_dir", str(base / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    logging.getLogger("absl").setLevel(logging.ERROR)
    os.environ["XDG_CACHE_HOME"] = str(base / "cache")
    for module in HEAVY.split():
        importlib.import_module(module)
    world = World(base, every)
    needed = () if set(names) <= {"hostile", "non_finite"} else commands or world.commands
    world.prepare(needed)
    found = []
    for name in names:
        run_trials, trials_wanted = ATTACKS[name]
        trials, start = Trials(name), time.monotonic()
        with end_after(minutes):
            run_trials(world, trials, random.Random(f"{seed}, {name}"), count or trials_wanted)
        print(f"{trials.summary()} in {time.monotonic() - start:.0f} s", flush=True)
        found.append(trials)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("attacks", nargs="*", help=f"default all: {', '.join(ATTACKS)}")
    options.add_argument("--commands", nargs="+", default=(), help="default all that write")
    options.add_argument("--count", type=int, help="number of trials; default that of a release")
    options.add_argument("--minutes", type=float, help="of each attack, at most")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--every", type=int, default=1, help="every N-th hostile file")
    options.add_argument("--folder", type=Path, help="keep inputs and undisturbed results here")
    chosen = options.parse_args()
    base = chosen.folder or Path(tempfile.mkdtemp(prefix="attack-"))
    base.mkdir(exist_ok=True)
    found = attack(
        base,
        chosen.attacks or list(ATTACKS),
        commands=chosen.commands,
        count=chosen.count,
        seed=chosen.seed,
        every=chosen.every,
        minutes=chosen.minutes,
    )
    failed = [problem for trials in found for problem in trials.failed]
    print("\n".join(trials.summary() for trials in found))
    if failed:
        print(f"{len(failed)} trials failed; their folders are in {base}")
        return 1
    if chosen.folder is None:
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
