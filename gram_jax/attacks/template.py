"""Ways to make a hostile attack's text of a response: in place of it, before or behind it, or in other letters.

A wording is a pure function of a `Case`: the question, the response, and the judge that reads them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.template import split_template


@dataclass(frozen=True)
class Case:
    """What an attacker knows: the question, the response that is to win, and how the judge asks."""

    question: str
    response: str
    judge: JudgeSpec


Wording = Callable[[Case], str]

# Words in capitals stand for parts of the judge that is attacked: its two labels, what its template has between the
# responses and behind the second one, and the chat format around its question, as text.
_PARTS: dict[str, Callable[[JudgeSpec], str]] = {
    "LABEL0": lambda judge: judge.labels[0].strip(),
    "LABEL1": lambda judge: judge.labels[1].strip(),
    "BETWEEN": lambda judge: split_template(judge.template)[2],
    "QUESTION": lambda judge: split_template(judge.template)[3],
    "MIMICBETWEEN": lambda judge: _mimicked(split_template(judge.template)[2]),
    "MIMICQUESTION": lambda judge: _mimicked(split_template(judge.template)[3]),
    "OPENTURN": lambda judge: judge.before,
    "NEXTTURN": lambda judge: judge.after,
    "ENDTURN": lambda judge: judge.end,
}
_PART = re.compile("|".join(sorted(_PARTS, key=len, reverse=True)))


def _mimicked(delimiter: str) -> str:
    """A delimiter that looks the same and is not: its brackets are fullwidth, or stars stand around its lines."""
    brackets = delimiter.translate(str.maketrans("[](){}<>", "［］（）｛｝＜＞"))
    return brackets if brackets != delimiter else re.sub(r"(?m)^(.+)$", r"**\1**", delimiter)


def _filled(text: str, judge: JudgeSpec) -> str:
    return _PART.sub(lambda found: _PARTS[found[0]](judge), text)


def instead(*texts: str) -> tuple[Wording, ...]:
    """Wordings that stand in place of the response: whatever it said is gone."""
    return tuple(lambda case, text=text: _filled(text, case.judge) for text in texts)


def behind(*texts: str) -> tuple[Wording, ...]:
    """Wordings that follow the response."""
    return tuple(
        lambda case, text=text: case.response + _filled(text, case.judge) for text in texts
    )


def before(*texts: str) -> tuple[Wording, ...]:
    """Wordings that open the response."""
    return tuple(
        lambda case, text=text: _filled(text, case.judge) + case.response for text in texts
    )


def padded(sentence: str, characters: int) -> Wording:
    """The response, and the sentence over and over behind it."""
    return lambda case: f"{case.response}\n" + f" {sentence}" * (characters // len(sentence))


def filled(sentence: str, budgets: float) -> Wording:
    """The response, and the sentence over and over behind it: at least so many times the judge's budget of tokens.

    Counted in words, because a word has at least one token in any tokenizer.
    """
    words = len(sentence.split())
    return lambda case: (
        f"{case.response}\n" + f" {sentence}" * ceil(budgets * case.judge.max_length / words)
    )


def repeated(times: int, separator: str) -> Wording:
    return lambda case: separator.join([case.response] * times)


def letters(table: Mapping[int, int | str]) -> Wording:
    return lambda case: case.response.translate(table)


def between_letters(mark: str, every: int) -> Wording:
    """`mark` behind each `every`-th letter inside a word."""
    inside = re.compile(rf"(\w{{{every}}})(?=\w)")
    return lambda case: inside.sub(lambda found: found[1] + mark, case.response)


def swapped(originals: str, lookalikes: str) -> Wording:
    return letters(str.maketrans(originals, lookalikes))


CYRILLIC = swapped("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
GREEK = swapped("ovABEHIKMNOPTXYZ", "ονΑΒΕΗΙΚΜΝΟΡΤΧΥΖ")
FULLWIDTH = letters({code: chr(code + 0xFEE0) for code in range(0x21, 0x7F)})
MATH_BOLD = letters(
    {ord("A") + i: chr(0x1D400 + i) for i in range(26)}
    | {ord("a") + i: chr(0x1D41A + i) for i in range(26)}
)
