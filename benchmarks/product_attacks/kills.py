"""Commands that are killed at random moments, or run twice at once."""

import itertools
import random
from pathlib import Path

from product_attacks.processes import Child, run
from product_attacks.results import digests
from product_attacks.trials import Trials, bug, difference, finished, told
from product_attacks.world import World


def kills(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """Up to three kills of each run of a command, then the same command to its end. numbers: of kills."""
    while trials.counts["kills"] < len(numbers):
        name = draw.choice(list(world.expected))
        place, words = world.new_place(name), world.commands[name].words
        moments = []
        for _ in range(draw.randint(1, 3)):
            child = Child(words(place), world.log)
            moment = draw.uniform(0.1, world.lengths[name])
            if ended := child.wait(moment):
                # The length was measured under more load.
                world.lengths[name] = min(world.lengths[name], ended.seconds)
                break
            child.kill()
            moments.append(f"{moment:.2f} s")
        trials.counts["kills"] += len(moments)
        problem = called_damaged(world, name, place)
        done = run(words(place), world.log)
        problem = problem or (None if finished(name, done) else told(done))
        problem = problem or difference(world, name, place)
        trials.judge(f"{name} killed after {moments}", place, problem, "equal")


def called_damaged(world: World, name: str, place: Path) -> str | None:
    """What `verify` reports of a run that was killed and that nothing has damaged."""
    folder = world.commands[name].run
    if folder is None or not (place / folder).exists():
        return None
    done = run(["verify", place / folder], world.log)
    return None if done.status == 0 or "nothing to verify" in done.text else told(done)


def together(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """Pairs of commands at once in one place, those of these numbers."""
    pairs = itertools.combinations_with_replacement(world.expected, 2)
    for names in itertools.islice(pairs, numbers.start, numbers.stop):
        place = world.new_place(*names)
        children = [
            Child(world.commands[name].words(place), world.log.with_suffix(f".{at}"))
            for at, name in enumerate(names)
        ]
        ends = [child.end() for child in children]
        problem = bug(*ends)
        if problem is None and all(end.status for end in ends):
            problem = f"none succeeded: {[told(end) for end in ends]}"
        found = digests(place)
        for name, end in zip(names, ends, strict=True):
            wanted = world.expected[name].items() if end.status == 0 else ()
            if wrong := [key for key, value in wanted if found.get(key) != value]:
                problem = problem or f"{name} ended with 0, and differs in {wrong}"
        refused = sum(end.status == 2 for end in ends)
        trials.judge(" and ".join(names), place, problem, f"with {refused} refused")
