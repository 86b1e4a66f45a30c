"""Encoded examples in flat arrays, and their construction from records.

An example is a unit of packing: one document, or two (both orders of a comparison; the chosen and the rejected response
of the baseline). With two, unit u has documents 2u and 2u + 1. Records without a training signal are dropped and
counted by reason.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from gram_jax.data.records import Comparison
from gram_jax.data.report import ReadReport
from gram_jax.errors import DataError, check_choice
from gram_jax.hashing import stable_hash
from gram_jax.judge.encode import Encoded, encode_fitting_items, encode_items
from gram_jax.judge.spec import JudgeSpec

# "hash": one order, by a hash of (seed, id); "both": as given and swapped, in one batch; "fixed": as given, for data
# whose orders are already shuffled. Published sets that always show the chosen response first teach a position bias.
PositionAugmentation = Literal["hash", "both", "fixed"]
Stage = Literal["pretrain", "finetune", "bradley_terry"]
# Handling of an example of more than max_length tokens.
Overlong = Literal["truncate", "drop", "error"]

CHUNK = 2048  # records encoded in one call; bounds the memory for texts

TIE = "tie"
TOO_LONG = "longer than max_length"
IDENTICAL_SHORTENED = "identical after shortening"


@dataclass(frozen=True)
class Documents:
    """Document d is tokens[offsets[d]:offsets[d + 1]]. tokens: i32 [total]; offsets: i64 [documents + 1]."""

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
    return Documents(np.concatenate([*arrays, np.zeros(0, np.int32)]), offsets)


@dataclass(frozen=True)
class Examples:
    """The encoded examples of a stage.

    "pretrain": the model learns to generate the document. "finetune": the verdict follows the last token of a document.
    "bradley_terry": the chosen response of pair u is in document 2u, the rejected one in 2u + 1.

    weights: f32, one for each token (pretrain; the weight of a document's first token is not used), document (finetune)
    or pair (bradley_terry). label: i32 [documents], 0 if the response shown first is better (finetune), else i32 [0].
    ids: one for each unit. per_unit: documents of a unit. shortened: number of truncated units.
    """

    stage: Stage
    documents: Documents
    weights: np.ndarray
    label: np.ndarray
    ids: tuple[str, ...]
    per_unit: int
    read: ReadReport
    shortened: int = 0

    @property
    def together(self) -> bool:
        """Whether both documents of a unit must be in the same row: the baseline compares them within it."""
        return self.stage == "bradley_terry"

    @property
    def unit_lengths(self) -> np.ndarray:
        """Tokens of the documents of each unit, i64 [units, per_unit]."""
        return self.documents.lengths.reshape(-1, self.per_unit)

    def select(self, keep: np.ndarray, dropped: str) -> "Examples":
        """The units for which `keep` (bool [units]) is true; the others are counted under the reason `dropped`."""
        if keep.all():
            return self
        by_document = np.repeat(keep, self.per_unit)
        by_token = np.repeat(by_document, self.documents.lengths)
        weighted = {"pretrain": by_token, "finetune": by_document, "bradley_terry": keep}
        kept = self.documents.lengths[by_document]
        return replace(
            self,
            documents=Documents(self.documents.tokens[by_token], np.cumsum(np.r_[0, kept])),
            weights=self.weights[weighted[self.stage]],
            label=self.label[by_document] if self.stage == "finetune" else self.label,
            ids=tuple(itertools.compress(self.ids, keep)),
            read=self.read.without({dropped: int(np.sum(~keep))}),
        )


def shown_first(seed: int, name: str) -> int:
    """Which of two responses is shown first, 0 or 1, by a hash of (seed, id).

    Unlike a stream of random numbers, a hash does not depend on the order of the rows or on a resume.
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
    """The encoded examples of a stage. Only "pretrain" keeps ties, since it does not use labels.

    position_augmentation: orders in which the two responses are shown. "bradley_terry" does not use it and shows each
    response alone after the prompt (spec.max_length then bounds one response). read: the report of `read_records`, to
    which dropped records are added. Raises DataError if overlong = "error" and a record is too long.
    """
    check_choice("stage", stage, Stage, DataError)
    check_choice("overlong", overlong, Overlong, DataError)
    if stage != "bradley_terry":
        augmentation = "position_augmentation"
        check_choice(augmentation, position_augmentation, PositionAugmentation, DataError)
    shown = partial(_shown_orders, position_augmentation, seed)

    def items(record: Comparison) -> list[tuple[Any, ...]]:
        if stage == "bradley_terry":
            return [(record.prompt, response) for response in record.best_first]
        return [(pair.prompt, pair.first, pair.second) for pair in shown(record)]

    def encode(items: Iterable[tuple[Any, ...]]) -> Sequence[Encoded | None]:
        layouts = {"pretrain": spec.pretraining, "finetune": spec.comparison}
        method = encode_items if overlong == "truncate" else encode_fitting_items
        return method(tokenizer, layouts.get(stage, spec.response), items, spec.max_length)

    usable = [record for record in records if stage == "pretrain" or record.has_preference]
    dropped = Counter({TIE: len(records) - len(usable)})
    kept = _encode_units(usable, items, encode, overlong, dropped)
    verdicts = kept if stage == "finetune" else ()
    return Examples(
        stage=stage,
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        weights=_weights(stage, kept),
        label=np.array([pair.label for record, _ in verdicts for pair in shown(record)], np.int32),
        ids=tuple(record.id for record, _ in kept),
        per_unit=2 if stage == "bradley_terry" or position_augmentation == "both" else 1,
        read=read.without(dropped),
        shortened=sum(any(e.shortened for e in unit) for _, unit in kept),
    )


_Kept = list[tuple[Comparison, list[Encoded]]]  # records with their encoded documents


def _shown_orders(
    augmentation: PositionAugmentation | None, seed: int, record: Comparison
) -> tuple[Comparison, ...]:
    """The comparison of each document of a record."""
    if augmentation == "both":
        return record, record.swapped()
    swap = augmentation == "hash" and shown_first(seed, record.id) == 1
    return (record.swapped() if swap else record,)


def _weights(stage: Stage, kept: _Kept) -> np.ndarray:
    """The weights of Examples."""
    if stage == "pretrain":
        weights = [np.float32(record.weight) * e.weights for record, unit in kept for e in unit]
        return np.concatenate([*weights, np.zeros(0, np.float32)])
    documents = 1 if stage == "bradley_terry" else None
    return np.array([record.weight for record, unit in kept for _ in unit[:documents]], np.float32)


def _encode_units(
    records: Sequence[Comparison],
    items_of: Callable[[Comparison], list[tuple[Any, ...]]],
    encode: Callable[[Iterable[tuple[Any, ...]]], Sequence[Encoded | None]],
    overlong: Overlong,
    dropped: Counter[str],
) -> _Kept:
    """Each record with its encoded documents. Records that cannot be used are counted in `dropped`."""
    kept = []
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
            elif any(e.identical for e in unit) or _are_equal(unit):
                dropped[IDENTICAL_SHORTENED] += 1
            else:
                kept.append((record, unit))
    return kept


def _are_equal(unit: list[Encoded]) -> bool:
    return len(unit) == 2 and np.array_equal(unit[0].tokens, unit[1].tokens)
