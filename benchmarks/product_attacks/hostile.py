"""Hostile files, with the memory and time of the commands that read them."""

import itertools
import random

from product_attacks.hostile_files import hostile_files
from product_attacks.processes import Child
from product_attacks.trials import Trials, bug
from product_attacks.world import World

SECONDS, MB = 120.0, 4000.0  # of a command


def hostile(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """The files of these numbers with the command that reads them: no traceback, within limits of time and memory."""
    most, longest = 0.0, 0.0
    judge, pairs = world.inputs.judge, world.inputs.pairs
    with world.temporary("hostile") as place:
        files = hostile_files(place, judge, pairs, world.every, numbers.start)
        for name, words in itertools.islice(files, len(numbers)):
            done = Child(words, world.log).end(SECONDS)
            most, longest = max(most, done.rss), max(longest, done.seconds)
            problem = bug(done)
            if done.status is None or done.rss > MB:
                problem = f"killed, or {done.rss:.0f} MB"
            trials.judge(name, None, problem, "refused" if done.status else "read")
    print(f"largest memory {most:,.0f} MB, longest time {longest:.0f} s")
