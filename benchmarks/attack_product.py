"""Attack the commands of gram-jax before a release: python benchmarks/attack_product.py [ATTACK ...]

kills       every writing command is killed at random moments and repeated until it ends
together    two commands at once on one place, for every pair of writing commands
full        a file system that becomes full at random points (needs root: a tmpfs is mounted)
read_only   a file system that cannot be written, empty or with the results of an interrupted command
damage      one change of a random file that a command wrote, then the command again, or one that reads it
non_finite  NaN, inf or an overflow at a random place of the weights, through every command
endpoints   requests without a finite score to every endpoint of a server, beside honest ones
hostile     files without end, too deep, of wrong types with the memory and time of each

An attack passes if every command ends with the undisturbed result, or with status 2 and a message: no row lost,
repeated, changed or added, and no traceback. Exit status 1 if a trial fails; its folder is kept.

Commands run in forked processes of one that has imported everything and started no device.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from product_attacks.changes import damage
from product_attacks.disks import full, read_only
from product_attacks.endpoints import endpoints
from product_attacks.hostile import hostile
from product_attacks.kills import kills, together
from product_attacks.non_finite import non_finite
from product_attacks.processes import prepare_forks
from product_attacks.trials import Trials
from product_attacks.world import World

# Number of trials (kills: of kills) of a full attack.
ATTACKS: dict[str, tuple[Callable[..., None], int]] = {
    "kills": (kills, 200),
    "together": (together, 1000),
    "full": (full, 50),
    "read_only": (read_only, 38),
    "damage": (damage, 1000),
    "non_finite": (non_finite, 50),
    "endpoints": (endpoints, 50),
    "hostile": (hostile, 1000),
}


class TimeIsUpError(BaseException):
    """An attack has used its time."""


@contextmanager
def end_after(minutes: float | None) -> Iterator[None]:
    """End the block after this time, also in the middle of a trial, which does not count."""

    def end(*_: object) -> None:
        raise TimeIsUpError

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))
    with suppress(TimeIsUpError):
        yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def attack(
    base: Path,
    names: Sequence[str],
    *,
    commands: Sequence[str] = (),
    count: int | None = None,
    first: int = 0,
    seed: int = 0,
    every: int = 1,
    minutes: float | None = None,
) -> list[Trials]:
    """Run attacks in a folder; their counts. minutes: each attack ends after this time, with the trials made."""
    prepare_forks(base)
    world = World(base, every)
    needed = (
        () if set(names) <= {"hostile", "non_finite", "endpoints"} else commands or world.commands
    )
    world.prepare(needed)
    found = []
    for name in names:
        run_trials, trials_wanted = ATTACKS[name]
        trials, start = Trials(name), time.monotonic()
        with end_after(minutes):
            numbers = range(first, first + (count or trials_wanted))
            run_trials(world, trials, random.Random(f"{seed}, {name}"), numbers)
        print(f"{trials.summary()} in {time.monotonic() - start:.0f} s", flush=True)
        found.append(trials)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("attacks", nargs="*", help=f"default all: {', '.join(ATTACKS)}")
    options.add_argument("--commands", nargs="+", default=(), help="default all that write")
    options.add_argument("--count", type=int, help="number of trials; default that of a release")
    options.add_argument(
        "--first", type=int, default=0, help="number of the first pair, disk or file"
    )
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
        first=chosen.first,
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
