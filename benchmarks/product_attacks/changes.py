"""One change of a random file that a command wrote."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

from gram_jax.checkpoint.manifest import MANIFEST
from product_attacks.kills import called_damaged
from product_attacks.processes import Child, run
from product_attacks.results import LOCKS, digests
from product_attacks.trials import Trials, bug, difference
from product_attacks.world import World, clear

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


def damage(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """A change of one file of a finished or interrupted command, then those that read it and the command itself."""
    kinds: Counter[str] = Counter()
    names = [name for name in world.expected if name != "accept"]  # it accepts damage, on purpose
    weights = [world.lengths[name] ** -0.5 for name in names]  # less often those that take long
    while trials.counts["trials"] < len(numbers):
        (name,) = draw.choices(names, weights)
        part = draw.choice((1.0, 0.5, 0.8))
        place = world.new_place()
        shutil.copytree(state(world, name, part), place, dirs_exist_ok=True)
        kind, path = draw.choice(CHANGES), choose_file(place, draw)
        # Without a manifest it is a folder of another program, which `card` describes, too.
        plain = name == "card" and kind == "delete" and path is not None and path.name == MANIFEST
        if path is None or plain or not change(path, kind, draw):
            clear(place, None)
            continue
        kinds[path.name if len(path.name) < 30 else path.suffix] += 1
        where = f"{name} to {part:.0%}, {kind} of {path.relative_to(place)}"
        trials.judge(where, place, *after_damage(world, name, place, whole=part == 1))
    print(f"damaged files: {dict(kinds.most_common())}")


def state(world: World, name: str, part: float) -> Path:
    """The folder of a command that was killed after this part of its time; 1: that ended."""
    place = world.whole(name) if part == 1 else world.base / f"part-{name}-{part}-{os.getpid()}"
    if not place.exists():
        place = world.new_place(name)
        child = Child(world.commands[name].words(place), world.log)
        if child.wait(part * world.lengths[name]) is None:
            child.kill()
        place = place.rename(world.base / f"part-{name}-{part}-{os.getpid()}")
    return place


def choose_file(place: Path, draw: random.Random) -> Path | None:
    """A file that is read; those of each name are chosen as often as those of the others."""
    by_name: dict[str, list[Path]] = {}
    for path in sorted(place.rglob("*")):
        unread = (
            path.suffix in (".png", ".html", ".partial", ".lock") or "tensorboard" in path.parts
        )
        if path.is_file() and not unread and not path.name.endswith(LOCKS):
            plain = len(path.name) < 30 and not path.parent.name.isdigit()
            by_name.setdefault(path.name if plain else "shard", []).append(path)
    return draw.choice(by_name[draw.choice(sorted(by_name))]) if by_name else None


def after_damage(world: World, name: str, place: Path, *, whole: bool) -> tuple[str | None, str]:
    """(problem or None, outcome) of the commands that read the results, if these are whole, and of the command."""
    problem, refused = problem_of_reading(world, name, place) if whole else (None, False)
    if problem:
        return problem, ""
    done = run(world.commands[name].words(place), world.log)
    if done.status:
        return bug(done), "refused"
    problem = difference(world, name, place)
    found = called_damaged(world, name, place) if problem and name == "adapt" else None
    if found and "Traceback" not in found:
        # It needs of its run the weights alone; `verify` finds the damage of the rest.
        problem = difference(world, name, place, without=world.commands[name].run)
    return problem, "refused by a reader" if refused else "equal"


def problem_of_reading(world: World, name: str, place: Path) -> tuple[str | None, bool]:
    """(problem or None, whether the results were refused) of the commands that read them."""
    readers = world.commands[name].reads(place)
    for words in readers:
        done = run(words, world.log)
        if done.status:
            return bug(done), True
    if not readers:
        return None, False
    found, wanted = digests(place), read_results(world, name)
    wrong = [key for key in wanted if found.get(key) != wanted[key]]
    for key in wanted:
        (place / key).unlink(missing_ok=True)
    return (f"other results of reading it: {wrong}" if wrong else None), False


def read_results(world: World, name: str) -> dict[str, str]:
    """What the commands that read the undisturbed results of a command write."""
    place = world.base / f"read-{name}-{os.getpid()}"
    if not place.exists():
        shutil.copytree(world.whole(name), place)
        for words in world.commands[name].reads(place):
            world.must(words)
    before = digests(world.whole(name))
    return {key: value for key, value in digests(place).items() if key not in before}
