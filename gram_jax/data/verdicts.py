"""How the rows of a schema state which response is better: words, scores, a strength, or one column for each verdict.

A verdict reads the label of a row, and the margin if it has one. A Words verdict reads several columns if a row has
them, and those that are not null must agree.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gram_jax.data.fields import Fields, column, number_value, optional_number
from gram_jax.data.records import Label
from gram_jax.judge.messages import BadField, Seen

Verdict = Callable[[Fields], tuple[Label | None, float | None]]

# Words for the first response, the second and a tie; compared in lower case and without blanks.
WORDS: Mapping[str, Label] = {
    **dict.fromkeys(("a", "first", "response_a", "model_a", "response_1", "a>b", "a>>b"), 0),
    **dict.fromkeys(("b", "second", "response_b", "model_b", "response_2", "b>a", "b>>a"), 1),
    **dict.fromkeys(("tie", "a=b", "b=a", "equal", "same", "draw"), "tie"),
    **dict.fromkeys(("tie(bothbad)", "bothbad", "both_bad", "tie(bothgood)"), "tie"),
}


def chosen(row: Fields) -> tuple[Label, float | None]:
    """The first response is the chosen one."""
    return 0, optional_number(row, "margin")


def unlabeled(row: Fields) -> tuple[None, None]:
    """The row says nothing about the responses."""
    return None, None


@dataclass(frozen=True)
class Words:
    """A word or an integer. columns: those that a row may have; margin: the column of the margin."""

    columns: tuple[str, ...]
    values: Mapping[str, Label]
    margin: str = "margin"

    def __call__(self, row: Fields) -> tuple[Label | None, float | None]:
        found: dict[str, Label | None] = {
            name: self._read(row, name) for name in self.columns if name in row
        }
        if not found:
            column(row, self.columns[0])  # raises
        stated = [name for name, label in found.items() if label is not None]
        if not stated:
            return None, None
        first, *others = stated
        for name in others:
            if found[name] != found[first]:
                raise BadField(name, f"the verdict of {first} ({row[first]!r})", row[name])
        return found[first], optional_number(row, self.margin)

    def _read(self, row: Fields, name: str) -> Label | None:
        value: Any = row[name]
        if value is None or value == "":
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        plain = "" if isinstance(value, bool) else str(value).replace(" ", "").lower()
        if plain not in self.values:
            raise BadField(name, _choices(self.values), value)
        return self.values[plain]


def _choices(values: Mapping[str, Label]) -> str:
    """ "A" or 0 for the first response ..., with one example of each word."""
    names = {0: "the first response is better", 1: "the second", "tie": "a tie"}
    shown = [
        f"{' or '.join([word for word, label in values.items() if label == wanted][:3])} ({name})"
        for wanted, name in names.items()
        if wanted in values.values()
    ]
    return ", ".join(shown) + "; --map label:VALUE=A says what another value means"


@dataclass(frozen=True)
class Scores:
    """The response with the higher number; the margin is the difference. ordered: the first has the higher one."""

    first: str
    second: str
    ordered: bool = False

    def __call__(self, row: Fields) -> tuple[Label | None, float | None]:
        x, y = optional_number(row, self.first), optional_number(row, self.second)
        if x is None or y is None:
            return chosen(row) if self.ordered else (None, None)
        if self.ordered and x < y:
            raise BadField(self.first, f"at least {self.second} ({y})", x)
        return ("tie" if x == y else 0 if x > y else 1), abs(x - y)


@dataclass(frozen=True)
class Strength:
    """A whole number from -3 to 3; below 0 the first response is better."""

    name: str

    def __call__(self, row: Fields) -> tuple[Label | None, float | None]:
        value = number_value(column(row, self.name), self.name)
        if value not in range(-3, 4):
            raise BadField(self.name, "a whole number from -3 to 3", value)
        return ("tie" if value == 0 else 0 if value < 0 else 1), abs(value)


@dataclass(frozen=True)
class OneHot:
    """A column for each of the three verdicts, one of them 1."""

    first: str
    second: str
    tie: str

    def __call__(self, row: Fields) -> tuple[Label | None, float | None]:
        names: dict[str, Label] = {self.first: 0, self.second: 1, self.tie: "tie"}
        held = [name for name in names if _bit(row, name)]
        if len(held) != 1:
            raise BadField(self.first, f"a 1 in one of {', '.join(names)}", Seen(f"{len(held)}"))
        return names[held[0]], None


def _bit(row: Fields, name: str) -> bool:
    value: Any = column(row, name)
    if value not in (0, 1, "0", "1"):
        raise BadField(name, "0 or 1", value)
    return value in (1, "1")
