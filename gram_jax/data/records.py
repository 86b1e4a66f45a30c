"""The two records of the package: a comparison of two responses, and a list of candidates.

first / second is the order shown by the source; chosen / rejected is the preference.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gram_jax.judge.messages import Prompt

Label = Literal[0, 1, "tie"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses to a prompt, in the order of the source.

    label: 0 if the first response is better, 1 if the second is, "tie", or None if the source states none.
    margin: size of the preference in the unit of the source. weight: factor of the comparison in the loss.
    source: data set or subset that the row names. rationale: text before the verdict, for the order of the source.

    >>> from gram_jax.judge.messages import as_prompt
    >>> pair = Comparison(as_prompt("Name a prime."), "Nine.", "Seven.", label=1)
    >>> pair.chosen, pair.swapped().label
    ('Seven.', 0)
    """

    prompt: Prompt
    first: str
    second: str
    label: Label | None = None
    margin: float | None = None
    weight: float = 1.0
    id: str = ""
    source: str = ""
    rationale: str = ""

    @property
    def has_preference(self) -> bool:
        """Whether the label is 0 or 1, neither a tie nor None."""
        return self.label in (0, 1)

    @property
    def chosen(self) -> str:
        """The better response. Raises ValueError for a tie or if there is no label."""
        return self._preferred[0]

    @property
    def rejected(self) -> str:
        """The worse response. Raises ValueError for a tie or if there is no label."""
        return self._preferred[1]

    @property
    def best_first(self) -> tuple[str, str]:
        """(chosen, rejected); (first, second) for a tie or if there is no label."""
        return self._preferred if self.has_preference else (self.first, self.second)

    @property
    def _preferred(self) -> tuple[str, str]:
        if not self.has_preference:
            raise ValueError(f"comparison {self.id!r} has the label {self.label!r}: no preference")
        return (self.first, self.second) if self.label == 0 else (self.second, self.first)

    def swapped(self) -> "Comparison":
        """The same comparison with its responses in the other order, without a rationale, which names positions."""
        label = 1 - self.label if self.label in (0, 1) else self.label
        return replace(self, first=self.second, second=self.first, label=label, rationale="")

    def with_rejected(self, text: str) -> "Comparison":
        """The same comparison with another text for its worse response."""
        changed = {"second": text} if self.label == 0 else {"first": text}
        return replace(self, **changed, rationale="")


@dataclass(frozen=True, slots=True)
class Candidates:
    """Responses to one prompt, to be ranked.

    grades: quality of each response in the unit of the source, 1 and 0 for right and wrong; None if unknown.

    >>> from gram_jax.judge.messages import as_prompt
    >>> Candidates(as_prompt("Name a prime."), ("Seven.", "Nine."), grades=(1.0, 0.0)).responses[0]
    'Seven.'
    """

    prompt: Prompt
    responses: tuple[str, ...]
    grades: tuple[float, ...] | None = None
    id: str = ""
    source: str = ""


Record = Comparison | Candidates


def texts_of(record: Record) -> tuple[str, ...]:
    """The responses of a record in the order of the source."""
    if isinstance(record, Candidates):
        return record.responses
    return record.first, record.second


def content_id(prompt: Prompt, *responses: str) -> str:
    """16 hex digits that are equal for equal texts, on every machine."""
    turns = [[message.role, message.content] for message in prompt]
    text = json.dumps([turns, responses], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def contents_id(record: Record) -> str:
    """A hash of a record's prompt, responses and preference.

    >>> from gram_jax.judge.messages import as_prompt
    >>> pair = Comparison(as_prompt("q"), "yes", "no", label=0)
    >>> contents_id(pair) == contents_id(pair.swapped())
    True
    >>> contents_id(pair) == contents_id(replace(pair, label=1))
    False
    """
    if isinstance(record, Candidates):
        return content_id(record.prompt, *record.responses)
    tie = ("tie",) if record.label == "tie" else ()
    return content_id(record.prompt, *record.best_first, *tie)


def contents_of(records: Sequence[Record]) -> str:
    """A hash of all records that does not depend on their ids, sources and order.

    >>> from gram_jax.judge.messages import as_prompt
    >>> one, other = (Comparison(as_prompt(x), "yes", "no", label=0) for x in "ab")
    >>> contents_of([one, other]) == contents_of([other, one]) != contents_of([one])
    True
    """
    lines = (
        f"{contents_id(record)} {record.grades if isinstance(record, Candidates) else ''}"
        for record in records
    )
    return hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=8).hexdigest()
