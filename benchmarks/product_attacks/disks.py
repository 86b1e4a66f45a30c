"""Disks that are full or cannot be written; each is a tmpfs, which root mounts."""

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from product_attacks.processes import Child, run
from product_attacks.trials import Trials, bug, difference, finished, told
from product_attacks.world import World

LARGE = 2**29  # bytes


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A tmpfs of this number of bytes at the folder."""
    options = f"size={max(4096, size)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    """Change the size of a tmpfs, or whether it can be written."""
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def used(place: Path) -> int:
    """Bytes in whole blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in place.rglob("*"))


def full(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """A disk that becomes full at a random point; afterwards, with space, the command succeeds."""
    for name in commands_of(world, numbers):
        given, whole = used(world.given(name)), used(world.whole(name))
        size = given + draw.randrange(4096, int(1.3 * (whole - given)) + 8192)
        place = world.new_place()
        with small_disk(place, size):
            world.give(name, place)
            done = run(world.commands[name].words(place), world.log)
            remount(place, f"size={LARGE}")
            problem = bug(done) or problem_afterwards(world, name, place)
        outcome = "refused" if done.status else "succeeded"
        trials.judge(f"{name} with {size:,} bytes of {whole:,}", place, problem, outcome)


def read_only(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """A disk that cannot be written, from the start or after an interruption, in turn; then one that can."""
    for number, name in zip(numbers, commands_of(world, numbers), strict=True):
        place, words = world.new_place(), world.commands[name].words
        interrupted = number // len(world.expected) % 2 == 1
        with small_disk(place, LARGE):
            world.give(name, place)
            if interrupted:
                child = Child(words(place), world.log)
                if child.wait(draw.uniform(0.3, 1) * world.lengths[name]) is None:
                    child.kill()
            remount(place, "ro")
            done = run(words(place), world.log)
            problem = bug(done)
            if done.status == 0 and not interrupted:
                problem = problem or "succeeded without writing"
            remount(place, "rw")
            problem = problem or problem_afterwards(world, name, place)
        outcome = "refused" if done.status else "complete"
        trials.judge(f"{name}, interrupted: {interrupted}", place, problem, outcome)


def commands_of(world: World, numbers: range) -> list[str]:
    """The commands of these trials, each as often as the others."""
    names = list(world.expected)
    return [names[number % len(names)] for number in numbers]


def problem_afterwards(world: World, name: str, place: Path) -> str | None:
    """Why the command, which now can write, does not end with the undisturbed result."""
    again = run(world.commands[name].words(place), world.log)
    if not finished(name, again):
        return f"afterwards: {told(again)}"
    return difference(world, name, place)
