"""The typed records that every source of data is turned into.

chosen / rejected is what people preferred; first / second is the order shown. A prompt is the
conversation up to the response: at least one message, the last of them not the assistant's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


Prompt = tuple[Message, ...]


def as_prompt(prompt: str | Iterable[Message]) -> Prompt:
    """A question given as plain text is a conversation of one user turn."""
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)


@dataclass(frozen=True, slots=True)
class Pair:
    """Of a row, before it is a record: two responses in the order of the source.

    better: 0 first, 1 second, None neither.
    """

    prompt: Prompt
    first: str
    second: str
    better: int | None
    tie: bool = False
    margin: float | None = None
    source: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Several:
    """Of a row, before it is a record: responses to be ranked; grades: how good they are, where the row says it."""

    prompt: Prompt
    responses: tuple[str, ...]
    id: str | None = None
    grades: tuple[float, ...] | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """A labeled pair; of a tie, "chosen" is the response that the source showed first.

    margin: by how much chosen was preferred, in the source's own unit. weight: how often the loss
    counts it.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    weight: float = 1.0
    tie: bool = False
    source: str = ""
    chosen_first: bool = True

    @property
    def first(self) -> str:
        """The response that the source showed first."""
        return self.chosen if self.chosen_first else self.rejected

    @property
    def second(self) -> str:
        """The response that the source showed second."""
        return self.rejected if self.chosen_first else self.chosen


@dataclass(frozen=True, slots=True)
class UnlabeledPair:
    """Two responses to one prompt, in the order of the source."""

    id: str
    prompt: Prompt
    first: str
    second: str
    weight: float = 1.0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Any number of responses to one prompt, to be ranked.

    grades: how good each one is, in the source's own unit; 1 and 0 for right and wrong. None where nobody knows.
    """

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    source: str = ""
    grades: tuple[float, ...] | None = None


Record = Preference | UnlabeledPair | Candidates


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows of a source: rows read, records kept, records dropped by reason.

    A row may give several records (RM-Bench gives nine), so kept + dropped is not always rows.
    """

    rows: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "ReadReport") -> "ReadReport":
        return ReadReport(
            self.rows + other.rows, self.kept + other.kept, add_counts(self.dropped, other.dropped)
        )


def add_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Sum of counts by reason, in the order of first appearance.

    >>> add_counts({"tie": 1}, {"tie": 2, "too long": 1})
    {'tie': 3, 'too long': 1}
    """
    total: dict[str, int] = {}
    for count in counts:
        for reason, number in count.items():
            total[reason] = total.get(reason, 0) + number
    return total
