"""Encoded examples in flat arrays: one i32 array of tokens and the offsets of its documents.

A unit is one example for packing: one document, or two that belong together (both orders of a
comparison; the chosen and the rejected response of the baseline). Documents 2u and 2u + 1 are then
the unit u.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gram_jax.data.record_types import ReadReport
from gram_jax.hashing import drawn


@dataclass(frozen=True)
class Documents:
    """tokens: i32 [total]; offsets: i64 [documents + 1]; document d is tokens[offsets[d]:offsets[d
    + 1]].
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, i64 [documents]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def flat_documents(documents: Iterable[np.ndarray]) -> Documents:
    """Documents from their token arrays, each i32 [n] with n at least 1."""
    arrays = [np.asarray(tokens, np.int32) for tokens in documents]
    offsets = np.cumsum([0, *(len(tokens) for tokens in arrays)], dtype=np.int64)
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    return Documents(tokens, offsets)


@dataclass(frozen=True)
class VerdictExamples:
    """Stage 2: after the last token of each document comes the verdict.

    label: i32 [documents], 0 = first is better; weights: f32 [documents]; ids: one for each unit;
    per_unit: 2 where both orders of a pair are neighbours, else 1; rows: what became of the rows of
    the source; shortened: units that were cut to fit the token budget.
    """

    documents: Documents
    label: np.ndarray
    weights: np.ndarray
    ids: tuple[str, ...]
    per_unit: int
    rows: ReadReport
    shortened: int = 0
    together = False  # the two orders need the same batch, not the same row


@dataclass(frozen=True)
class TokenExamples:
    """Stage 1: the tokens that the model learns to write.

    weights: f32 [total], as long as documents.tokens: how much predicting that token counts. The
    first token of a document is never predicted, so its weight is not used.
    """

    documents: Documents
    weights: np.ndarray
    ids: tuple[str, ...]
    per_unit: int
    rows: ReadReport
    shortened: int = 0
    together = False


@dataclass(frozen=True)
class RankingExamples:
    """Discriminative baseline: pair u has its chosen response in document 2u, rejected in 2u + 1.

    weights: f32 [pairs].
    """

    documents: Documents
    weights: np.ndarray
    ids: tuple[str, ...]
    rows: ReadReport
    shortened: int = 0
    per_unit = 2
    together = True  # the loss compares the two, and a comparison stays inside a row


Examples = VerdictExamples | TokenExamples | RankingExamples


def shown_first(seed: int, name: str) -> int:
    """Which of two responses is shown first, 0 or 1, by a hash of (seed, id).

    A hash and no stream of random numbers, so that neither the order of the rows nor a resume
    changes it.
    """
    return drawn(seed, name) >> 56 & 1
