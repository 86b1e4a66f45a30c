"""Encoded examples in flat arrays, and their construction from records.

An example is a unit of packing: one document, or two (both orders of a comparison; the chosen and the rejected response
of the baseline). With two, unit u has documents 2u and 2u + 1. Records without a training signal are dropped and
counted by reason.
"""

import hashlib
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
from gram_jax.judge.rationale import RationaleEncoder
from gram_jax.judge.spec import JudgeSpec

# "hash": one order, by a hash of (seed, id); "both": as given and swapped, in one batch; "fixed": as given, for data
# whose orders are already shuffled. Published sets that always show the chosen response first teach a position bias.
PositionAugmentation = Literal["hash", "both", "fixed"]
Stage = Literal["pretrain", "finetune", "rationale", "bradley_terry"]
# Text of a stage-1 example: the judge's own template, or that of GRAM's public code.
PretrainingLayout = Literal["judge", "gram"]
# Handling of an example of more than max_length tokens.
Overlong = Literal["truncate", "drop", "error"]

VERDICT_STAGES: tuple[Stage, ...] = ("finetune", "rationale")  # whose documents have a label

CHUNK = 2048  # records encoded in one call; bounds the memory for texts

TIE = "tie"
TOO_LONG = "longer than max_length"
IDENTICAL_SHORTENED = "identical after shortening"


@dataclass(frozen=True)
class Documents:
    """Document d is tokens[starts[d] : starts[d] + lengths[d]].

    tokens: i32 [total], in memory or memory-mapped; starts, lengths: i64 [documents].
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.starts[index] : self.starts[index] + self.lengths[index]]


def adjacent_documents(tokens: np.ndarray, lengths: np.ndarray) -> Documents:
    """Documents that follow each other in `tokens`, which they fill."""
    lengths = lengths.astype(np.int64)
    return Documents(tokens, np.cumsum(lengths) - lengths, lengths)


def flat_documents(documents: Iterable[np.ndarray]) -> Documents:
    """Documents from their token arrays, each i32 [n] with n at least 1."""
    arrays = [np.asarray(tokens, np.int32) for tokens in documents]
    tokens = np.concatenate([*arrays, np.zeros(0, np.int32)])
    return adjacent_documents(tokens, np.array([len(array) for array in arrays], np.int64))


@dataclass(frozen=True)
class Examples:
    """The encoded examples of a stage.

    "pretrain": the model learns to generate the document. "finetune", "rationale": the verdict follows the last token
    of a document, which in the latter may end with a rationale that the model learns to generate.
    "bradley_terry": the chosen response of pair u is in document 2u, the rejected one in 2u + 1.

    weights: f32, one for each token (pretrain, rationale; the weight of a document's first token is not used, or is
    that of the verdict), document (finetune) or pair (bradley_terry). label: i32 [documents], 0 if the response shown
    first is better, 1 if the second is, -1 if unknown (finetune, rationale), else i32 [0].
    source: i32 [units], the index of the source of each unit. per_unit: documents of a unit. shortened: number of
    truncated units. ids: one for each unit; () if the examples are those of a cache, which does not hold them.
    stored_fingerprint: the fingerprint, if it is known.
    """

    stage: Stage
    documents: Documents
    weights: np.ndarray
    label: np.ndarray
    source: np.ndarray
    per_unit: int
    read: ReadReport
    shortened: int = 0
    ids: tuple[str, ...] = ()
    stored_fingerprint: str | None = None

    @property
    def together(self) -> bool:
        """Whether both documents of a unit must be in the same row: the baseline compares them within it."""
        return self.stage == "bradley_terry"

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.source)

    @property
    def unit_lengths(self) -> np.ndarray:
        """Tokens of the documents of each unit, i64 [units, per_unit]."""
        return self.documents.lengths.reshape(-1, self.per_unit)

    @property
    def targets(self) -> np.ndarray:
        """Number of tokens of the rationale of each document, i64 [documents]; 0 in other stages."""
        starts, ends = self.documents.starts, self.documents.starts + self.documents.lengths
        if self.stage != "rationale":
            return np.zeros(len(starts), np.int64)
        bounds = np.stack([starts + 1, ends], axis=1).ravel()
        counts = np.add.reduceat(np.append(self.weights > 0, False), bounds, dtype=np.int64)[::2]
        return np.where(bounds[::2] < bounds[1::2], counts, 0)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {
            "tokens": self.documents.tokens,
            "lengths": self.documents.lengths.astype(np.int32),
            "weights": self.weights,
            "label": self.label,
            "source": self.source,
        }

    def fingerprint(self) -> str:
        """16 hex digits over the contents of all arrays."""
        if self.stored_fingerprint is not None:
            return self.stored_fingerprint
        arrays = map(np.ascontiguousarray, self.columns.values())
        return fingerprint_of(hashlib.sha256(array.data).hexdigest() for array in arrays)

    def select(self, keep: np.ndarray, dropped: str) -> "Examples":
        """The units for which `keep` (bool [units]) is true; the others are counted under the reason `dropped`.

        The tokens, and their weights, are shared and not copied.
        """
        if keep.all():
            return self
        places = np.repeat(keep, self.per_unit)
        documents = self.documents
        weighted = {"pretrain": ..., "rationale": ..., "finetune": places, "bradley_terry": keep}
        return replace(
            self,
            documents=Documents(
                documents.tokens, documents.starts[places], documents.lengths[places]
            ),
            weights=self.weights[weighted[self.stage]],
            label=self.label[places] if self.stage in VERDICT_STAGES else self.label,
            source=self.source[keep],
            ids=tuple(itertools.compress(self.ids, keep)),
            stored_fingerprint=None,
            read=self.read.without({dropped: int(np.sum(~keep))}),
        )


def fingerprint_of(digests: Iterable[str]) -> str:
    """The fingerprint of examples from the SHA-256 of each of their `columns`."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


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
    source: np.ndarray | None = None,
    pretraining_layout: PretrainingLayout = "judge",
    keep_unlabeled: bool = False,
) -> Examples:
    """The encoded examples of a stage. Only "pretrain" keeps ties, since it does not use labels.

    position_augmentation: orders in which the two responses are shown. "bradley_terry" does not use it and shows each
    response alone after the prompt (spec.max_length then bounds one response). read: the report of `read_records`, to
    which dropped records are added. source: i32 [records], the index of the source of each record; default that of
    the numbers in `read`. pretraining_layout: used by "pretrain". keep_unlabeled: "finetune" keeps pairs without a
    label, with the label -1. Raises DataError if overlong = "error" and a record is
    too long.
    """
    check_choice("stage", stage, Stage, DataError)
    check_choice("overlong", overlong, Overlong, DataError)
    check_choice("pretraining_layout", pretraining_layout, PretrainingLayout, DataError)
    if stage != "bradley_terry":
        augmentation = "position_augmentation"
        check_choice(augmentation, position_augmentation, PositionAugmentation, DataError)
    if stage == "rationale" and position_augmentation == "both":
        raise DataError(
            'position_augmentation = "both" shows a pair in both orders, and a rationale is of one: use "hash" or '
            '"fixed"'
        )
    shown = partial(_shown_orders, position_augmentation, seed, stage)

    def items(record: Comparison) -> list[tuple[Any, ...]]:
        if stage == "bradley_terry":
            return [(record.prompt, response) for response in record.best_first]
        texts = [(pair.prompt, pair.first, pair.second) for pair in shown(record)]
        return [(*text, record.rationale) for text in texts] if stage == "rationale" else texts

    def encode(items: Iterable[tuple[Any, ...]]) -> Sequence[Encoded | None]:
        written = spec.pretraining if pretraining_layout == "judge" else spec.gram_pretraining
        layouts = {"pretrain": written, "finetune": spec.comparison}
        method = encode_items if overlong == "truncate" else encode_fitting_items
        if stage == "rationale":
            texts = list(items)
            pairs = method(
                tokenizer, spec.comparison, [text[:3] for text in texts], spec.max_length
            )
            return encode_rationales(tokenizer, spec, pairs, [text[3] for text in texts])
        return method(tokenizer, layouts.get(stage, spec.response), items, spec.max_length)

    if source is None:
        source = sources_of(read, 0, len(records))
    unlabeled = stage == "finetune" and keep_unlabeled
    usable = [
        at
        for at, r in enumerate(records)
        if stage == "pretrain" or r.has_preference or (unlabeled and r.label is None)
    ]
    dropped = Counter({TIE: len(records) - len(usable)})
    places, kept = _encode_units(records, usable, items, encode, overlong, dropped)
    verdicts = kept if stage in VERDICT_STAGES else ()
    return Examples(
        stage=stage,
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        weights=_weights(stage, kept),
        label=np.array(
            [_label(pair) for record, _ in verdicts for pair in shown(record)], np.int32
        ),
        source=source[places],
        ids=tuple(record.id for record, _ in kept),
        per_unit=documents_per_unit(stage, position_augmentation),
        read=read.without(dropped),
        shortened=sum(any(e.shortened for e in unit) for _, unit in kept),
    )


def encode_rationales(
    tokenizer: Any, spec: JudgeSpec, pairs: Sequence[Encoded | None], rationales: Sequence[str]
) -> list[Encoded | None]:
    """Encoded comparisons with the rationale of each, up to the verdict; None if one is too long.

    weights: 1 / n for the n tokens of a rationale and of the text up to the verdict, so that they sum to 1; that of the
    first token is 1, the weight of the verdict. A comparison without a rationale keeps its one-token verdict.
    """
    encoder = RationaleEncoder(tokenizer, spec.generation_prompt, spec.rationale)
    if spec.label_ids != encoder.format.label_ids and not all(rationales):
        raise DataError(
            f"the labels are the tokens {spec.label_ids} directly after the prompt and {encoder.format.label_ids} "
            "after a rationale: rows without a rationale cannot be trained together with others"
        )
    most = encoder.format.max_new_tokens + encoder.closing_tokens
    found: list[Encoded | None] = []
    for pair, rationale in zip(pairs, rationales, strict=True):
        if pair is not None:
            has_text = bool(encoder.format.body(rationale))
            tokens = encoder.whole(pair.tokens, rationale) if has_text else pair.tokens
            start = len(encoder.prompt(pair.tokens)) if has_text else len(tokens)
            weights = np.zeros(len(tokens), np.float32)
            weights[start:] = 1 / max(1, len(tokens) - start)
            weights[0] = 1
            pair = (
                replace(pair, tokens=tokens, weights=weights)
                if len(tokens) - start <= most
                else None
            )
        found.append(pair)
    return found


def documents_per_unit(
    stage: Stage, position_augmentation: PositionAugmentation | None
) -> Literal[1, 2]:
    """The number of documents of a unit."""
    return 2 if stage == "bradley_terry" or position_augmentation == "both" else 1


def sources_of(read: ReadReport, start: int, stop: int) -> np.ndarray:
    """The index of the source of records start .. stop - 1 of a report: i32 [stop - start]."""
    ends = np.cumsum(read.by_source)
    return np.searchsorted(ends, np.arange(start, stop), side="right").astype(np.int32)


_Kept = list[tuple[Comparison, list[Encoded]]]  # records with their encoded documents


def _shown_orders(
    augmentation: PositionAugmentation | None, seed: int, stage: Stage, record: Comparison
) -> tuple[Comparison, ...]:
    """The comparison of each document of a record. A rationale is of the order of the source."""
    if stage == "rationale" and record.rationale:
        return (record,)
    if augmentation == "both":
        return record, record.swapped()
    swap = augmentation == "hash" and shown_first(seed, record.id) == 1
    return (record.swapped() if swap else record,)


def _label(pair: Comparison) -> int:
    return -1 if pair.label is None else int(pair.label)


def _weights(stage: Stage, kept: _Kept) -> np.ndarray:
    """The weights of Examples."""
    if stage in ("pretrain", "rationale"):
        weights = [np.float32(record.weight) * e.weights for record, unit in kept for e in unit]
        return np.concatenate([*weights, np.zeros(0, np.float32)])
    documents = 1 if stage == "bradley_terry" else None
    return np.array([record.weight for record, unit in kept for _ in unit[:documents]], np.float32)


def _encode_units(
    records: Sequence[Comparison],
    usable: list[int],
    items_of: Callable[[Comparison], list[tuple[Any, ...]]],
    encode: Callable[[Iterable[tuple[Any, ...]]], Sequence[Encoded | None]],
    overlong: Overlong,
    dropped: Counter[str],
) -> tuple[list[int], _Kept]:
    """The usable records that are kept, as their places in `records`, and each with its encoded documents.

    Records that cannot be used are counted in `dropped`.
    """
    places, kept = [], []
    for start in range(0, len(usable), CHUNK):
        chunk = usable[start : start + CHUNK]
        items = [items_of(records[place]) for place in chunk]
        encoded = iter(encode(itertools.chain.from_iterable(items)))
        for place, wanted in zip(chunk, items, strict=True):
            record = records[place]
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
                places.append(place)
                kept.append((record, unit))
    return places, kept


def _are_equal(unit: list[Encoded]) -> bool:
    return len(unit) == 2 and np.array_equal(unit[0].tokens, unit[1].tokens)
