"""What training will see, in figures: rows and why some were dropped, lengths, padding, steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


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


@dataclass(frozen=True)
class DataReport:
    """Figures of one set of examples and its first epoch.

    examples: units (pairs or sequences); documents: token sequences (two for a unit with both
    orders); shortened: examples that were cut to fit the token budget; histogram: (shortest,
    longest, documents); padding: share of the positions of an epoch that hold no token;
    first_share: share of verdicts whose first response is the better one, None where there are no
    verdicts.
    """

    rows_read: int
    dropped: Mapping[str, int]
    examples: int
    documents: int
    shortened: int
    tokens: int
    mean_length: float
    median_length: float
    max_length: int
    histogram: tuple[tuple[int, int, int], ...]
    batch_size: int
    row_length: int
    steps_per_epoch: int
    tokens_per_step: float
    examples_per_step: float
    padding: float
    first_share: float | None

    def to_text(self) -> str:
        """The report as a person reads it."""
        lines = [
            f"rows read        {self.rows_read:,}",
            f"examples         {self.examples:,} in {self.documents:,} documents",
        ]
        lines += [f"dropped          {count:,} {why}" for why, count in self.dropped.items()]
        if self.shortened:
            lines.append(f"shortened        {self.shortened:,} examples")
        lines += [
            f"tokens           {self.tokens:,}",
            f"document length  mean {self.mean_length:.0f}, median {self.median_length:.0f}, "
            f"longest {self.max_length}",
        ]
        lines += histogram_lines(self.histogram)
        lines += [
            f"batch            {self.batch_size} rows of {self.row_length} positions, "
            f"{self.padding:.1%} padding",
            f"a step           {self.examples_per_step:.1f} examples, "
            f"{self.tokens_per_step:,.0f} tokens",
            f"an epoch         {self.steps_per_epoch:,} steps",
        ]
        if self.first_share is not None:
            lines.append(f"first is better  {self.first_share:.1%} of the verdicts")
        return "\n".join(lines)


def histogram_lines(histogram: Sequence[tuple[int, int, int]]) -> list[str]:
    """A histogram as bars of text."""
    top = max((count for _, _, count in histogram), default=1)
    return [
        f"  {low:>6} to {high:>6}  {count:>8,} {'#' * round(40 * count / top)}".rstrip()
        for low, high, count in histogram
    ]


def length_histogram(lengths: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Documents by length in bins that double: (shortest, longest, documents).

    >>> length_histogram(np.array([3, 5, 17]))
    ((1, 16, 2), (17, 32, 1))
    """
    if not len(lengths):
        return ()
    bins = np.maximum(0, np.ceil(np.log2(np.maximum(lengths, 1) / 16))).astype(int)
    counts = np.bincount(bins)
    return tuple(
        (1 if i == 0 else 16 * 2 ** (i - 1) + 1, 16 * 2**i, int(counts[i]))
        for i in range(int(bins.min()), len(counts))
    )
