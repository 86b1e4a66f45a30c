"""Encoded examples in flat arrays, and how records become them.

A unit is one example for packing: one document, or two that belong together (both orders of a
comparison; the chosen and the rejected response of the baseline). Documents 2u and 2u + 1 are then
the unit u. Records from which nothing can be learned are dropped and counted by reason.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from gram_jax.data.comparison import Comparison
from gram_jax.data.report import ReadReport, add_counts
from gram_jax.errors import DataError
from gram_jax.hashing import stable_hash
from gram_jax.judge.encode import Encoded, encode_fitting_items, encode_items
from gram_jax.judge.spec import JudgeSpec

# "hash": one order, the side by a hash of (seed, id); "both": as given and swapped, side by side in
# a batch; "fixed": as given, for data that was shuffled before. Published sets that show chosen
# first teach a position.
PositionAugmentation = Literal["hash", "both", "fixed"]
Stage = Literal["pretrain", "finetune", "bradley_terry"]
# What becomes of an example of more than max_length tokens.
Overlong = Literal["truncate", "drop", "error"]

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
    per_unit: 2 where both orders of a pair are neighbours, else 1; read: what became of the rows
    of the source; shortened: units that were cut to fit the token budget.
    """

    documents: Documents
    label: np.ndarray
    weights: np.ndarray
    ids: tuple[str, ...]
    per_unit: int
    read: ReadReport
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
    read: ReadReport
    shortened: int = 0
    together = False


@dataclass(frozen=True)
class BradleyTerryExamples:
    """Discriminative baseline: pair u has its chosen response in document 2u, rejected in 2u + 1.

    weights: f32 [pairs].
    """

    documents: Documents
    weights: np.ndarray
    ids: tuple[str, ...]
    read: ReadReport
    shortened: int = 0
    per_unit = 2
    together = True  # the loss compares the two, and a comparison stays inside a row


Examples = VerdictExamples | TokenExamples | BradleyTerryExamples


def shown_first(seed: int, name: str) -> int:
    """Which of two responses is shown first, 0 or 1, by a hash of (seed, id).

    A hash and no stream of random numbers, so that neither the order of the rows nor a resume
    changes it.
    """
    return stable_hash(seed, name) >> 56 & 1


def make_examples(
    stage: Stage,
    records: Sequence[Comparison],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    position_augmentation: PositionAugmentation | None,
    seed: int,
    overlong: Overlong,
    read: ReadReport,
) -> Examples:
    """The encoded examples of a stage.

    position_augmentation: which order the two responses of a comparison are shown in, not used by "bradley_terry".
    read: the report of `read_records`, continued. Raises DataError if overlong = "error" and a record is too long.
    """
    if stage == "bradley_terry":
        return bradley_terry_examples(records, tokenizer, spec, overlong=overlong, read=read)
    if stage not in ("pretrain", "finetune"):
        raise DataError(f'stage is "pretrain", "finetune" or "bradley_terry"; found {stage!r}.')
    make = pretrain_examples if stage == "pretrain" else verdict_examples
    return make(
        records,
        tokenizer,
        spec,
        position_augmentation=position_augmentation,
        seed=seed,
        overlong=overlong,
        read=read,
    )


def verdict_examples(
    records: Sequence[Comparison],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    position_augmentation: PositionAugmentation | None,
    seed: int,
    overlong: Overlong,
    read: ReadReport,
) -> VerdictExamples:
    """Stage 2: comparisons with the label 0 if the response shown first is better. Ties are dropped."""
    shown = _shown_orders(position_augmentation, seed)
    dropped: Counter[str] = Counter()
    kept = _encode_units(
        _with_preference(records, dropped),
        lambda record: [(pair.prompt, pair.first, pair.second) for pair in shown(record)],
        partial(_encoder(overlong), tokenizer, spec.comparison, max_length=spec.max_length),
        overlong,
        dropped,
    )
    return VerdictExamples(
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        label=np.array([pair.label for record, _ in kept for pair in shown(record)], np.int32),
        weights=np.array([record.weight for record, unit in kept for _ in unit], np.float32),
        ids=tuple(record.id for record, _ in kept),
        per_unit=2 if position_augmentation == "both" else 1,
        read=_continued(read, len(kept), dropped),
        shortened=_count_shortened(kept),
    )


def pretrain_examples(
    records: Sequence[Comparison],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    position_augmentation: PositionAugmentation | None,
    seed: int,
    overlong: Overlong,
    read: ReadReport,
) -> TokenExamples:
    """Stage 1: the question, and both responses to be written. Labels are not used."""
    shown = _shown_orders(position_augmentation, seed)
    dropped: Counter[str] = Counter()
    kept = _encode_units(
        records,
        lambda record: [(pair.prompt, pair.first, pair.second) for pair in shown(record)],
        partial(_encoder(overlong), tokenizer, spec.pretraining, max_length=spec.max_length),
        overlong,
        dropped,
    )
    encoded = [(record.weight, e) for record, unit in kept for e in unit]
    weights = [np.float32(weight) * e.weights for weight, e in encoded]
    return TokenExamples(
        documents=flat_documents(e.tokens for _, e in encoded),
        weights=np.concatenate(weights) if weights else np.zeros(0, np.float32),
        ids=tuple(record.id for record, _ in kept),
        per_unit=2 if position_augmentation == "both" else 1,
        read=_continued(read, len(kept), dropped),
        shortened=_count_shortened(kept),
    )


def bradley_terry_examples(
    records: Sequence[Comparison],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    overlong: Overlong,
    read: ReadReport,
) -> BradleyTerryExamples:
    """The discriminative baseline: each response alone after the prompt. Ties are dropped.

    spec.max_length bounds one response; a pair has to fit in a row, so half a row is the bound that
    fits.
    """
    dropped: Counter[str] = Counter()
    kept = _encode_units(
        _with_preference(records, dropped),
        lambda record: [(record.prompt, record.chosen), (record.prompt, record.rejected)],
        partial(_encoder(overlong), tokenizer, spec.response, max_length=spec.max_length),
        overlong,
        dropped,
    )
    return BradleyTerryExamples(
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        weights=np.array([record.weight for record, _ in kept], np.float32),
        ids=tuple(record.id for record, _ in kept),
        read=_continued(read, len(kept), dropped),
        shortened=_count_shortened(kept),
    )


_Unit = tuple[Comparison, list[Encoded]]


def _shown_orders(
    position_augmentation: PositionAugmentation | None, seed: int
) -> Callable[[Comparison], tuple[Comparison, ...]]:
    """For each record, the comparison that each of its documents shows."""
    if position_augmentation not in ("hash", "both", "fixed"):
        raise DataError(
            f'position_augmentation = {position_augmentation!r}: expected "hash", "both" or "fixed"'
        )

    def shown(record: Comparison) -> tuple[Comparison, ...]:
        if position_augmentation == "both":
            return record, record.swapped()
        swap = position_augmentation == "hash" and shown_first(seed, record.id) == 1
        return (record.swapped() if swap else record,)

    return shown


def _with_preference(records: Sequence[Comparison], dropped: Counter[str]) -> Sequence[Comparison]:
    labeled = [record for record in records if record.has_preference]
    dropped[TIE] += len(records) - len(labeled)
    return labeled


def _encoder(overlong: Overlong) -> Callable[..., Sequence[Encoded | None]]:
    if overlong not in ("truncate", "drop", "error"):
        raise DataError(f'overlong = {overlong!r}: expected "truncate", "drop" or "error"')
    return encode_items if overlong == "truncate" else encode_fitting_items


def _encode_units(
    records: Sequence[Comparison],
    items_of: Callable[[Comparison], Sequence[tuple[Any, ...]]],
    encode: Callable[[Iterable[tuple[Any, ...]]], Sequence[Encoded | None]],
    overlong: Overlong,
    dropped: Counter[str],
) -> list[_Unit]:
    """Each record with its encoded documents, without those that cannot be used."""
    kept: list[_Unit] = []
    for start in range(0, len(records), CHUNK):
        chunk = records[start : start + CHUNK]
        items = [items_of(record) for record in chunk]
        encoded = iter(encode(itertools.chain.from_iterable(items)))
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


def _continued(read: ReadReport, kept: int, dropped: Counter[str]) -> ReadReport:
    counts = {reason: number for reason, number in dropped.items() if number}
    return ReadReport(read.rows, kept, add_counts(read.dropped, counts))


def _count_shortened(kept: Sequence[_Unit]) -> int:
    return sum(any(e.shortened for e in unit) for _, unit in kept)
