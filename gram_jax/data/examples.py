"""Encoded examples in flat arrays, and how records become them.

A unit is one example for packing: one document, or two that belong together (both orders of a
comparison; the chosen and the rejected response of the baseline). Documents 2u and 2u + 1 are then
the unit u. Records from which nothing can be learned are dropped and counted by reason.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gram_jax.data.comparison import Comparison
from gram_jax.data.report import ReadReport, add_counts
from gram_jax.errors import DataError
from gram_jax.hashing import drawn
from gram_jax.judge.encode import (
    Encoded,
    Overlong,
    encode_comparisons,
    encode_responses,
    encode_writings,
)
from gram_jax.judge.spec import JudgeSpec

# "hash": one order, the side by a hash of (seed, id); "both": as given and swapped, side by side in
# a batch; "fixed": as given, for data that was shuffled before. Published sets that show chosen
# first teach a position.
Orders = Literal["hash", "both", "fixed"]

CHUNK = 2048  # records encoded in one call, which bounds the memory for texts on the way

TIE = "tie"
TOO_LONG = "longer than max_length"
IDENTICAL_SHORTENED = "identical after shortening"


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


def verdict_examples(
    records: Sequence[Comparison],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    orders: Orders,
    seed: int,
    overlong: Overlong,
    rows: ReadReport,
) -> VerdictExamples:
    """Stage 2: comparisons with the label 0 if the response shown first is better.

    A tie has no verdict to learn and is dropped. rows: the report of `read_records`, continued.
    Raises DataError if overlong = "error" and a record is too long.
    """
    shown = _shown_orders(orders, seed)
    dropped: Counter[str] = Counter()
    kept = _encoded_units(
        _with_preference(records, dropped),
        lambda record: [(pair.prompt, pair.first, pair.second) for pair in shown(record)],
        lambda items, how: encode_comparisons(tokenizer, spec, items, overlong=how),
        overlong,
        dropped,
    )
    return VerdictExamples(
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        label=np.array([pair.label for record, _ in kept for pair in shown(record)], np.int32),
        weights=np.array([record.weight for record, unit in kept for _ in unit], np.float32),
        ids=tuple(record.id for record, _ in kept),
        per_unit=2 if orders == "both" else 1,
        rows=_continued(rows, len(kept), dropped),
        shortened=_count_shortened(kept),
    )


def writing_examples(
    records: Sequence[Comparison],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    orders: Orders,
    seed: int,
    overlong: Overlong,
    rows: ReadReport,
) -> TokenExamples:
    """Stage 1: the question, and both responses to be written. Labels are not used."""
    shown = _shown_orders(orders, seed)
    dropped: Counter[str] = Counter()
    kept = _encoded_units(
        records,
        lambda record: [(pair.prompt, pair.first, pair.second) for pair in shown(record)],
        lambda items, how: encode_writings(tokenizer, spec, items, overlong=how),
        overlong,
        dropped,
    )
    encoded = [(record.weight, e) for record, unit in kept for e in unit]
    weights = [np.float32(weight) * e.weights for weight, e in encoded]
    return TokenExamples(
        documents=flat_documents(e.tokens for _, e in encoded),
        weights=np.concatenate(weights) if weights else np.zeros(0, np.float32),
        ids=tuple(record.id for record, _ in kept),
        per_unit=2 if orders == "both" else 1,
        rows=_continued(rows, len(kept), dropped),
        shortened=_count_shortened(kept),
    )


def ranking_examples(
    records: Sequence[Comparison],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    overlong: Overlong,
    rows: ReadReport,
) -> RankingExamples:
    """The discriminative baseline: each response alone after the prompt. Ties are dropped.

    spec.max_length bounds one response; a pair has to fit in a row, so half a row is the bound that
    fits.
    """
    dropped: Counter[str] = Counter()
    kept = _encoded_units(
        _with_preference(records, dropped),
        lambda record: [(record.prompt, record.chosen), (record.prompt, record.rejected)],
        lambda items, how: encode_responses(tokenizer, spec, items, overlong=how),
        overlong,
        dropped,
    )
    return RankingExamples(
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        weights=np.array([record.weight for record, _ in kept], np.float32),
        ids=tuple(record.id for record, _ in kept),
        rows=_continued(rows, len(kept), dropped),
        shortened=_count_shortened(kept),
    )


_Unit = tuple[Comparison, list[Encoded]]


def _shown_orders(orders: Orders, seed: int) -> Callable[[Comparison], tuple[Comparison, ...]]:
    """For each record, the comparison that each of its documents shows."""
    if orders not in ("hash", "both", "fixed"):
        raise DataError(f'orders = {orders!r}: expected "hash", "both" or "fixed"')

    def shown(record: Comparison) -> tuple[Comparison, ...]:
        if orders == "both":
            return record, record.swapped()
        swap = orders == "hash" and shown_first(seed, record.id) == 1
        return (record.swapped() if swap else record,)

    return shown


def _with_preference(records: Sequence[Comparison], dropped: Counter[str]) -> Sequence[Comparison]:
    labeled = [record for record in records if record.has_preference]
    dropped[TIE] += len(records) - len(labeled)
    return labeled


def _encoded_units(
    records: Sequence[Comparison],
    items_of: Callable[[Comparison], Sequence[tuple[Any, ...]]],
    encode: Callable[[list[Any], Overlong], list[Encoded | None]],
    overlong: Overlong,
    dropped: Counter[str],
) -> list[_Unit]:
    """Each record with its encoded documents, without those that cannot be used."""
    kept: list[_Unit] = []
    for start in range(0, len(records), CHUNK):
        chunk = records[start : start + CHUNK]
        items = [items_of(record) for record in chunk]
        flat = list(itertools.chain.from_iterable(items))
        encoded = iter(encode(flat, "drop" if overlong == "error" else overlong))
        for record, wanted in zip(chunk, items, strict=True):
            unit = [e for e in itertools.islice(encoded, len(wanted)) if e is not None]
            if len(unit) < len(wanted):
                if overlong == "error":
                    raise DataError(
                        f'record {record.id!r} does not fit max_length and overlong = "error"; '
                        'raise max_length, or choose "drop" or "truncate"'
                    )
                dropped[TOO_LONG] += 1
            elif _is_identical(unit):
                dropped[IDENTICAL_SHORTENED] += 1
            else:
                kept.append((record, unit))
    return kept


def _is_identical(unit: list[Encoded]) -> bool:
    """Whether shortening left nothing to compare."""
    return any(e.identical for e in unit) or (
        len(unit) == 2 and np.array_equal(unit[0].tokens, unit[1].tokens)
    )


def _continued(rows: ReadReport, kept: int, dropped: Counter[str]) -> ReadReport:
    counts = {reason: number for reason, number in dropped.items() if number}
    return ReadReport(rows.rows, kept, add_counts(rows.dropped, counts))


def _count_shortened(kept: Sequence[_Unit]) -> int:
    return sum(any(e.shortened for e in unit) for _, unit in kept)
