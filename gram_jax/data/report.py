"""Figures of the data: rows read, records kept and dropped by reason, lengths, padding, steps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ReadReport:
    """Numbers of rows read, records kept, and records dropped by reason.

    A row may give several records (nine in RM-Bench), so kept + dropped may differ from rows. by_source: records that
    were read from each source. notes: what messages hold and the judge is not shown, by kind. unread: columns that the
    schema does not read.

    >>> ReadReport(3, 3).without({"tie": 1, "too long": 0})
    ReadReport(rows=3, kept=2, dropped={'tie': 1}, notes={}, unread=())
    """

    rows: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    by_source: tuple[int, ...] = field(default=(), repr=False, compare=False)
    notes: Mapping[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = field(default=(), compare=False)

    def __add__(self, other: "ReadReport") -> "ReadReport":
        return ReadReport(
            self.rows + other.rows,
            self.kept + other.kept,
            dict(Counter(self.dropped) + Counter(other.dropped)),
            self.by_source + other.by_source,
            dict(Counter(self.notes) + Counter(other.notes)),
            tuple(dict.fromkeys(self.unread + other.unread)),
        )

    def without(self, dropped: Mapping[str, int]) -> "ReadReport":
        """The report with more of the kept records dropped."""
        return self + ReadReport(0, -sum(dropped.values()), dropped)

    @property
    def dropped_text(self) -> str:
        """Numbers of dropped records by reason as one line, "" if there are none."""
        return ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())

    @property
    def notes_text(self) -> str:
        """Counts of what is not shown, and columns that are not read, as one line; "" if there are none."""
        unread = [f"columns not read: {', '.join(self.unread)}"] if self.unread else []
        return "; ".join([*(f"{count} {kind}" for kind, count in self.notes.items()), *unread])


@dataclass(frozen=True)
class SourceShare:
    """A source: its examples and tokens, the passes over it in an epoch, its share of the examples of an epoch."""

    name: str
    examples: int
    tokens: int
    passes: float
    share: float


def source_shares(
    passes: Mapping[str, float], examples: Sequence[int], tokens: Sequence[int]
) -> tuple[SourceShare, ...]:
    """The shares of sources with these passes by name, numbers of examples and numbers of tokens.

    >>> [share.share for share in source_shares({"a": 1.0, "b": 2.0}, [30, 5], [300, 50])]
    [0.75, 0.25]
    """
    rows = list(zip(passes.items(), examples, tokens, strict=True))
    total = sum(count * times for (_, times), count, _ in rows)
    return tuple(
        SourceShare(name, int(count), int(size), times, float(count * times / total))
        for (name, times), count, size in rows
    )


@dataclass(frozen=True)
class DataReport:
    """Figures of examples and their first epoch.

    examples: units (pairs or sequences); documents: token sequences (two for a unit with both orders); shortened:
    truncated examples; histogram: (shortest, longest, documents); padding: share of the positions of an epoch without
    a token; first_share: share of verdicts whose first response is better, None without verdicts; sources: those of the
    recipe, in its order; notes, unread: as of ReadReport.
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
    sources: tuple[SourceShare, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The report as text."""
        lines = [
            f"rows read        {self.rows_read:,}",
            f"examples         {self.examples:,} in {self.documents:,} documents",
        ]
        lines += [f"dropped          {count:,} {why}" for why, count in self.dropped.items()]
        lines += [f"noted            {count:,} {what}" for what, count in self.notes.items()]
        if self.unread:
            lines.append(f"columns not read {', '.join(self.unread)}")
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
        if len(self.sources) > 1:
            lines += [
                f"source           {one.share:.1%} of an epoch: {one.examples:,} examples, {one.tokens:,} tokens, "
                f"{one.passes:g} passes, {one.name}"
                for one in self.sources
            ]
        return "\n".join(lines)


def histogram_lines(histogram: Sequence[tuple[int, int, int]]) -> list[str]:
    """Lines of text with a bar for each bin."""
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
