"""The calls that a layout makes for the engine: a batch, the positions of its verdicts, and its amount of work."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np


@dataclass
class WorkCounters:
    """Work of one or more calls. sequences: each a comparison in one order.

    tokens_requested: tokens of the sequences one by one; tokens_unique: without the repetitions of shared prefixes
    (the padded program repeats them); tokens_computed: positions that go through the model, padding included;
    attention_pairs: pairs of a unique token and one that it attends to.
    """

    sequences: int = 0
    calls: int = 0
    tokens_requested: int = 0
    tokens_unique: int = 0
    tokens_computed: int = 0
    attention_pairs: int = 0

    def __add__(self, other: "WorkCounters") -> "WorkCounters":
        return WorkCounters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Call(NamedTuple):
    """Comparison indices[i] has its verdict at slots[i] of rows[i] of the batch, i [n] each."""

    batch: Any
    indices: np.ndarray
    rows: np.ndarray
    slots: np.ndarray
    work: WorkCounters


def causal_pairs(tokens: int) -> int:
    """Pairs of a token and one that it attends to, itself among them, in a text of this length."""
    return tokens * (tokens + 1) // 2
