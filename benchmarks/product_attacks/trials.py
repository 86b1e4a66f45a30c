"""Trials of an attack: how they ended, and how many of each outcome."""

from collections import Counter
from pathlib import Path

from product_attacks.processes import Done
from product_attacks.results import digests
from product_attacks.world import World, clear


class Trials:
    """Counts of one attack, and its failures."""

    def __init__(self, name: str):
        self.name, self.counts, self.failed = name, Counter(), []

    def judge(self, where: str, place: Path | None, problem: str | None, outcome: str) -> None:
        """Count a trial. place: its folder, removed unless it fails; problem: why it fails, None if it passes."""
        self.counts["trials"] += 1
        self.counts[outcome if problem is None else "FAILED"] += 1
        if problem is not None:
            where = f"{where} in {place}"
            self.failed.append(f"{where}: {problem}")
            print(f"FAILED {self.name}: {where}: {problem}", flush=True)
        if place is not None:
            clear(place, problem)

    def summary(self) -> str:
        """The counts as text."""
        return f"{self.name}: " + ", ".join(f"{n} {what}" for what, n in self.counts.items())


def bug(*ends: Done) -> str | None:
    """The status and text of a command that ended with neither its result nor a message."""
    return next((told(end) for end in ends if end.is_bug), None)


def told(end: Done) -> str:
    """Status and end of the text of a command."""
    return f"{end.status}: {end.text[-1500:]}"


def difference(world: World, name: str, place: Path, *, without: str | None = None) -> str | None:
    """A line if the results of a command are not the undisturbed ones, apart from the folder `without`.

    What it was given is not its result.
    """
    found, wanted = digests(place), dict(world.expected[name])
    for results in (found, wanted):
        results.pop(without or "", None)
    given = digests(world.given(name))
    wanted = {key: value for key, value in wanted.items() if given.get(key) != value}
    found = {key: value for key, value in found.items() if key in wanted or key not in given}
    wrong = sorted(key for key in wanted if found.get(key) != wanted[key])
    more = sorted(found.keys() - wanted.keys())
    return f"differs in {wrong}, has in addition {more}" if wrong or more else None


def finished(name: str, end: Done) -> bool:
    """Whether a command succeeded, or found that it had: these replace no results."""
    there = {"convert": "not empty", "curate": "exists: give", "pairs": "exists: give"}.get(name)
    return end.status == 0 or (there is not None and there in end.text)
