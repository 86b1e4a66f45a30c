"""The folder of an attack: inputs, the undisturbed results of every command, and the places of trials."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gram_jax
from product_attacks.commands import Inputs, writing_commands
from product_attacks.processes import run
from product_attacks.results import digests


class World:
    """Inputs that every trial shares, and the undisturbed results.

    every: of hostile files, each every-th is tried.
    """

    def __init__(self, base: Path, every: int):
        self.base, self.log, self.every = base, base / f"log-{os.getpid()}", every
        self.inputs = Inputs(base)
        self.commands = {command.name: command for command in writing_commands(self.inputs)}
        self.expected: dict[str, dict[str, str]] = {}
        self.lengths: dict[str, float] = {}  # seconds of the undisturbed commands

    def prepare(self, names: Iterable[str]) -> None:
        """The judge, and the undisturbed result of every command, made twice: both must be equal.

        Those of an earlier attack in the folder with the same code are used again, also by several attacks at once.
        """
        known, judge, code = self.base / "expected.json", self.inputs.judge, digest_of_code()
        if known.exists() and (found := json.loads(known.read_text()))["code"] == code:
            self.expected, self.lengths = found["expected"], found["lengths"]
        if not judge.exists():
            self.must(["convert", "tiny-random", judge])
            self.must(["spec", judge, "--model", "tiny-random", "--max-length", 256])
        if not (thinking := self.inputs.thinking).exists():
            self.must([
                *("spec", thinking, "--model", judge, "--template", "default", "--max-length", 256),
                *("--rationale", r"Reasons:\n{rationale}\nThe verdict:\n", "--max-rationale", 8, "--stop", "t"),
            ])  # fmt: skip
        if missing := [name for name in names if name not in self.expected]:
            for name in missing:
                self._undisturbed(name)
            found = {"code": code, "expected": self.expected, "lengths": self.lengths}
            known.write_text(json.dumps(found))
        self.expected = {name: self.expected[name] for name in names}

    def must(self, words: list[object]) -> float:
        """Run a command that has to succeed; its seconds."""
        done = run(words, self.log)
        if done.status != 0:
            raise RuntimeError(f"{words}: {done.status}: {done.text[-3000:]}")
        return done.seconds

    def whole(self, name: str) -> Path:
        """The folder with the undisturbed result of a command."""
        return self.base / f"whole-{name}-0"

    def _undisturbed(self, name: str) -> None:
        for place in (self.whole(name), self.base / f"whole-{name}-1"):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            self.give(name, place)
            self.lengths[name] = self.must(self.commands[name].words(place))
            found = digests(place)
            if self.expected.setdefault(name, found) != found:
                raise RuntimeError(f"two undisturbed runs of {name} differ: {place}")
        print(f"{name}: {self.lengths[name]:.1f} s, {len(self.expected[name])} results", flush=True)

    def given(self, name: str) -> Path:
        """The folder with what a command reads from the place of its results; empty if there is nothing."""
        source, made_by = self.base / f"given-{name}", self.commands[name].given
        if not source.exists():
            source.mkdir()
            for words in made_by(source) if made_by else ():
                self.must(words)
        return source

    def give(self, name: str, place: Path) -> None:
        """Put what a command reads into the place of its results."""
        shutil.copytree(self.given(name), place, dirs_exist_ok=True)

    @contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """An empty folder for the block."""
        with tempfile.TemporaryDirectory(prefix=name, dir=self.base) as place:
            yield Path(place)

    def new_place(self, *names: str) -> Path:
        """A new folder, with what these commands read."""
        place = Path(tempfile.mkdtemp(prefix="trial-", dir=self.base))
        for name in names:
            self.give(name, place)
        return place


def digest_of_code() -> str:
    """SHA-256 of the source of gram_jax."""
    digest = hashlib.sha256()
    for path in sorted(Path(gram_jax.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def clear(place: Path, problem: str | None) -> None:
    """Remove the folder of a trial without a problem."""
    if problem is None:
        shutil.rmtree(place, ignore_errors=True)
