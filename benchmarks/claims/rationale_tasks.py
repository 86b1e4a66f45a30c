"""Structured rationales for kinds of the test bed that code can check: counts, comparisons, and lists of conditions.

A rationale has a line of work, which ends with the answer, and a line for each response in the order shown: what it
says, and whether this is right. Where several answers are right, as for a number of items, the line of each response
ends with what decides. Code makes a rationale from the prompt and the responses alone, so that the rationale of a judge
is checked line by line.
"""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import bed
from bed_tasks import Draw, Fields, alphabetical, split


def add(f: Fields, right: str) -> str:
    """The sum: first the tens, then the units of the second number."""
    a, b = int(f["a"]), int(f["b"])
    tens = b - b % 10
    return f"{a} + {tens} = {a + tens}, {a + tens} + {b % 10} = {a + b}"


def double_half(f: Fields, right: str) -> str:
    """Twice the number, or half of it."""
    n = int(f["n"])
    return f"{n} x 2 = {2 * n}" if f["how"] == "double" else f"{n} / 2 = {n // 2}"


def sequence(f: Fields, right: str) -> str:
    """The step of a progression at the end that is asked for, and the number after or before it."""
    numbers = [int(n) for n in split(f["s"])]
    low, high = numbers[-2:] if f["how"] == "next" else numbers[:2]
    step = high - low
    start, sign, end = (high, "+", high + step) if f["how"] == "next" else (low, "-", low - step)
    return f"{high} - {low} = {step}, {start} {sign} {step} = {end}"


def extreme(f: Fields, right: str) -> str:
    """The numbers from the smallest, and the first or last of them."""
    ordered = sorted(split(f["options"]), key=int)
    return f"{' < '.join(ordered)}, {f['how']} {ordered[-1 if f['how'] == 'max' else 0]}"


def sort_numbers(f: Fields, right: str) -> str:
    """The direction, and the numbers in order, as a response shows them."""
    return f"{f['how']}: {right}"


def position(f: Fields, right: str) -> str:
    """The words with their numbers, and the one that is asked for."""
    words = ", ".join(f"{at} {word}" for at, word in enumerate(split(f["words"]), 1))
    return f"{words}, {f['how']} {right}"


def word_length(f: Fields, right: str) -> str:
    """The words with their numbers of letters, and the longest or shortest."""
    words = ", ".join(f"{word} {len(word)}" for word in split(f["words"]))
    return f"{words}, {f['how']} {right}"


def starts_with(f: Fields, right: str) -> str:
    """The words with their first letters, and the one that is asked for."""
    words = ", ".join(f"{alphabetical(word)[0]} {word}" for word in split(f["words"]))
    return f"{words}, with {f['c']} {right}"


def asked(f: Fields, right: str) -> str:
    """The number of items that is asked for."""
    return f"asked {f['n']}"


def items_of(f: Fields, answer: str) -> str:
    """The items of a list one by one, their number, and the number that is asked for."""
    items = split(answer)
    listed = ", ".join(f"{at} {item}" for at, item in enumerate(items, 1))
    return f"{listed}, {len(items)} of {f['n']}"


# What a rationale says of the prompt with its right answer, and of a response (default: its answer), by kind.
WORK: Mapping[str, Callable[[Fields, str], str]] = {
    "add": add,
    "double_half": double_half,
    "sequence": sequence,
    "extreme": extreme,
    "sort_numbers": sort_numbers,
    "position": position,
    "word_length": word_length,
    "starts_with": starts_with,
    "item_count": asked,
}
SAYS: Mapping[str, Callable[[Fields, str], str]] = {"item_count": items_of}
KINDS = tuple(WORK)


class Pair(NamedTuple):
    """A labeled pair of a kind. item: the number of its item, whose two prompts have the same responses."""

    kind: str
    item: int
    prompt: str
    chosen: str
    rejected: str


class Part(NamedTuple):
    """A part of the pairs: the seed of its draws, and whether it has the words of tests."""

    name: str
    test: bool


# By verdicts on the pilot pairs the forms of the rationales were chosen, so the test has others.
PARTS = {
    "pilot": Part("rationales/test", test=True),
    "train": Part("rationales/train", test=False),
    "test": Part("rationales/final", test=True),
    "new": Part("rationales/unlabeled", test=True),
}


def pairs(seed: int, count: int, part: str, seen: set[str]) -> Iterator[Pair]:
    """`count` pairs of each kind, without prompts in `seen`, to which they are added."""
    lang = bed.language("English", seed)
    name, test = PARTS[part]
    drawn = bed.Split(name, (), count, test)
    for kind in KINDS:
        for number, item in enumerate(bed.items(lang, lang.kinds[kind], drawn, seen)):
            for at, prompt in enumerate(item.prompts):
                yield Pair(kind, number, prompt, item.responses[at], item.responses[1 - at])


def rationale(pair: Pair, seed: int, *, swapped: bool) -> str:
    """The rationale of a pair, the chosen response first, or second if `swapped`. seed: of the bed."""
    lang = bed.language("English", seed)
    kind = lang.kinds[pair.kind]
    everything = lang.draw(kind, None, random.Random(0))
    fields, right, wrong = _solved(kind, everything, pair)
    lines = [(right, "yes"), (wrong, "no")][:: -1 if swapped else 1]
    says = SAYS.get(pair.kind, lambda f, answer: answer)
    shown = [f"{x}: {says(fields, said)}: {ok}" for x, (said, ok) in zip("AB", lines, strict=True)]
    return "\n".join([WORK[pair.kind](fields, right), *shown])


def _solved(kind: bed.Kind, everything: Draw, pair: Pair) -> tuple[Fields, str, str]:
    """(the fields of the prompt, the right answer, the wrong one), both without the frame that they share."""
    opener = max(filter(pair.prompt.startswith, everything.texts["openers"]), key=len)
    for fields in bed.parsed(kind, pair.prompt.removeprefix(opener)):
        for say in sorted(kind.say, key=len, reverse=True):
            right, wrong = ([*bed._said(say, x)] for x in (pair.chosen, pair.rejected))
            if right and wrong and kind.task.accepts(fields, everything, right[0]):
                return fields, right[0], wrong[0]
    raise ValueError(f"{pair.prompt!r} has no reading in which {pair.chosen!r} is right")


def right_lines(written: str, expected: str) -> tuple[bool, bool]:
    """Whether the line of work is right, and whether all lines are."""
    lines: Sequence[str] = written.split("\n")
    return lines[0] == expected.split("\n")[0], written == expected
