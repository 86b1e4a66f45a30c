"""Structured rationales for kinds of the test bed that code can check: counts, comparisons, and lists of conditions.

A rationale has a line of work, which computes what the prompt asks for, and a line for each response in the order
shown: what it says, and whether this is right. Code makes a rationale from the prompt and the responses alone, so that
the rationale of a judge is checked line by line.
"""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import bed
from bed_tasks import Draw, Fields, alphabetical, split


def add(f: Fields) -> str:
    """The sum."""
    return f"{f['a']} + {f['b']} = {int(f['a']) + int(f['b'])}"


def double_half(f: Fields) -> str:
    """Twice the number, or half of it."""
    n = int(f["n"])
    return f"{n} x 2 = {2 * n}" if f["how"] == "double" else f"{n} / 2 = {n // 2}"


def sequence(f: Fields) -> str:
    """The step of a progression, and the number after or before it."""
    numbers = [int(n) for n in split(f["s"])]
    step = numbers[1] - numbers[0]
    if f["how"] == "next":
        return f"step {step}, {numbers[-1]} + {step} = {numbers[-1] + step}"
    return f"step {step}, {numbers[0]} - {step} = {numbers[0] - step}"


def extreme(f: Fields) -> str:
    """The numbers from the smallest, and the first or last of them."""
    ordered = sorted(split(f["options"]), key=int)
    return f"{' < '.join(ordered)}, {f['how']} {ordered[-1 if f['how'] == 'max' else 0]}"


def sort_numbers(f: Fields) -> str:
    """The numbers in order."""
    down = f["how"] == "down"
    return (" > " if down else " < ").join(sorted(split(f["words"]), key=int, reverse=down))


def position(f: Fields) -> str:
    """The words with their numbers."""
    return ", ".join(f"{at} {word}" for at, word in enumerate(split(f["words"]), 1))


def word_length(f: Fields) -> str:
    """The words with their numbers of letters."""
    return ", ".join(f"{word} {len(word)}" for word in split(f["words"]))


def starts_with(f: Fields) -> str:
    """The words with their first letters."""
    return ", ".join(f"{alphabetical(word)[0]} {word}" for word in split(f["words"]))


def asked(f: Fields) -> str:
    """The number of items that is asked for."""
    return f"asked {f['n']}"


def items_of(answer: str) -> str:
    """The items of a list one by one, and their number."""
    items = split(answer)
    return f"{', '.join(f'{at} {item}' for at, item in enumerate(items, 1))}, count {len(items)}"


# What a rationale says of the prompt, and of a response (default: its answer), by kind.
WORK: Mapping[str, Callable[[Fields], str]] = {
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
SAYS: Mapping[str, Callable[[str], str]] = {"item_count": items_of}
KINDS = tuple(WORK)


class Pair(NamedTuple):
    """A labeled pair of a kind. item: the number of its item, whose two prompts have the same responses."""

    kind: str
    item: int
    prompt: str
    chosen: str
    rejected: str


def pairs(seed: int, count: int, *, test: bool, seen: set[str]) -> Iterator[Pair]:
    """`count` pairs of each kind, without prompts in `seen`, to which they are added."""
    lang = bed.language("English", seed)
    part = bed.Split(f"rationales/{'test' if test else 'train'}", (), count, test)
    for name in KINDS:
        for number, item in enumerate(bed.items(lang, lang.kinds[name], part, seen)):
            for at, prompt in enumerate(item.prompts):
                yield Pair(name, number, prompt, item.responses[at], item.responses[1 - at])


def rationale(pair: Pair, seed: int, *, swapped: bool) -> str:
    """The rationale of a pair, the chosen response first, or second if `swapped`. seed: of the bed."""
    lang = bed.language("English", seed)
    kind = lang.kinds[pair.kind]
    everything = lang.draw(kind, None, random.Random(0))
    fields, right, wrong = _solved(kind, everything, pair)
    lines = [(right, "yes"), (wrong, "no")][:: -1 if swapped else 1]
    says = SAYS.get(pair.kind, lambda answer: answer)
    shown = [f"{label}: {says(x)}: {ok}" for label, (x, ok) in zip("AB", lines, strict=True)]
    return "\n".join([WORK[pair.kind](fields), *shown])


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
