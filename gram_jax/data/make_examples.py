"""Records to encoded examples: which response is shown first, what is too long, what the label is.

Every function drops what cannot be learned from and counts it by reason; the counts end up in the
data report.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from gram_jax.data.examples import (
    RankingExamples,
    TokenExamples,
    VerdictExamples,
    flat_documents,
    shown_first,
)
from gram_jax.data.record_types import Preference, ReadReport, UnlabeledPair, add_counts
from gram_jax.errors import DataError
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


def verdict_examples(
    records: Sequence[Preference],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    orders: Orders,
    seed: int,
    overlong: Overlong,
    rows: ReadReport,
) -> VerdictExamples:
    """Stage 2: comparisons with the label 0 where the first response shown is the better one.

    A tie has no verdict to learn and is dropped. rows: the report of `read_records`, carried on.
    Raises DataError if overlong = "error" and a record is too long.
    """
    shows = _shown(orders, seed)
    labeled = [record for record in records if not record.tie]
    dropped: Counter[str] = Counter({TIE: len(records) - len(labeled)})
    kept = list(
        _encoded_units(
            labeled,
            lambda record: [(record.prompt, *_sides(record, side)) for side in shows(record)],
            lambda items, how: encode_comparisons(tokenizer, spec, items, overlong=how),
            overlong,
            dropped,
        )
    )
    return VerdictExamples(
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        label=np.array(
            [_label(record, side) for record, _ in kept for side in shows(record)], np.int32
        ),
        weights=np.array([record.weight for record, unit in kept for _ in unit], np.float32),
        ids=tuple(record.id for record, _ in kept),
        per_unit=2 if orders == "both" else 1,
        rows=_carried(rows, len(kept), dropped),
        shortened=_shortened(kept),
    )


def writing_examples(
    records: Sequence[UnlabeledPair | Preference],
    tokenizer: Any,
    spec: JudgeSpec,
    *,
    orders: Orders,
    seed: int,
    overlong: Overlong,
    rows: ReadReport,
) -> TokenExamples:
    """Stage 1: the question, and both responses to be written. Labels are not used."""
    shows = _shown(orders, seed)
    dropped: Counter[str] = Counter()
    kept = list(
        _encoded_units(
            records,
            lambda record: [(record.prompt, *_sides(record, side)) for side in shows(record)],
            lambda items, how: encode_writings(tokenizer, spec, items, overlong=how),
            overlong,
            dropped,
        )
    )
    encoded = [(record.weight, e) for record, unit in kept for e in unit]
    weights = [np.float32(weight) * e.weights for weight, e in encoded]
    return TokenExamples(
        documents=flat_documents(e.tokens for _, e in encoded),
        weights=np.concatenate(weights) if weights else np.zeros(0, np.float32),
        ids=tuple(record.id for record, _ in kept),
        per_unit=2 if orders == "both" else 1,
        rows=_carried(rows, len(kept), dropped),
        shortened=_shortened(kept),
    )


def ranking_examples(
    records: Sequence[Preference],
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
    labeled = [record for record in records if not record.tie]
    dropped: Counter[str] = Counter({TIE: len(records) - len(labeled)})
    kept = list(
        _encoded_units(
            labeled,
            lambda record: [(record.prompt, record.chosen), (record.prompt, record.rejected)],
            lambda items, how: encode_responses(tokenizer, spec, items, overlong=how),
            overlong,
            dropped,
        )
    )
    return RankingExamples(
        documents=flat_documents(e.tokens for _, unit in kept for e in unit),
        weights=np.array([record.weight for record, _ in kept], np.float32),
        ids=tuple(record.id for record, _ in kept),
        rows=_carried(rows, len(kept), dropped),
        shortened=_shortened(kept),
    )


_Pair = Preference | UnlabeledPair
P = TypeVar("P", Preference, _Pair)


def _shown(orders: Orders, seed: int) -> Callable[[_Pair], tuple[int, ...]]:
    """For each record, the response (0 or 1) to show first in each of its documents."""
    if orders not in ("hash", "both", "fixed"):
        raise DataError(f'orders = {orders!r}: expected "hash", "both" or "fixed"')
    if orders == "hash":
        return lambda record: (shown_first(seed, record.id),)
    return lambda record: (0, 1) if orders == "both" else (0,)


def _sides(record: _Pair, side: int) -> tuple[str, str]:
    return (record.first, record.second) if side == 0 else (record.second, record.first)


def _label(record: Preference, side: int) -> int:
    """0 if the response shown first, the source's first (side 0) or second (1), is chosen."""
    return int(record.chosen_first == (side == 1))


def _encoded_units(
    records: Sequence[P],
    items_of: Callable[[P], Sequence[tuple[Any, ...]]],
    encode: Callable[[list[Any], Overlong], list[Encoded | None]],
    overlong: Overlong,
    dropped: Counter[str],
) -> Iterator[tuple[P, list[Encoded]]]:
    """Each record with its encoded documents, without those that cannot be used."""
    for chunk in _chunks(records, CHUNK):
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
            elif _same(unit):
                dropped[IDENTICAL_SHORTENED] += 1
            else:
                yield record, unit


def _same(unit: list[Encoded]) -> bool:
    """Whether shortening left nothing to compare."""
    return any(e.identical for e in unit) or (
        len(unit) == 2 and np.array_equal(unit[0].tokens, unit[1].tokens)
    )


def _chunks(records: Sequence[P], size: int) -> Iterable[Sequence[P]]:
    return (records[i : i + size] for i in range(0, len(records), size))


def _carried(rows: ReadReport, kept: int, dropped: Counter[str]) -> ReadReport:
    counts = {reason: number for reason, number in dropped.items() if number}
    return ReadReport(rows.rows, kept, add_counts(rows.dropped, counts))


def _shortened(kept: Sequence[tuple[_Pair, list[Encoded]]]) -> int:
    return sum(any(e.shortened for e in unit) for _, unit in kept)
