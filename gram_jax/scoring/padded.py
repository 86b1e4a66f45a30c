"""Pairs of token sequences as rectangular batches of few shapes."""

from collections.abc import Sequence

import numpy as np

from gram_jax.batch import PairBatch, Sequences


def padded_lengths(max_length: int) -> tuple[int, ...]:
    """The few lengths that rows are padded to: powers of two, their one-and-a-half-folds, and at last the budget.

    Less than half of a row is padding (128 after 64 is the worst step; a third above that), a sixth on average, and
    a budget of 4096 tokens needs twelve programs.

    >>> padded_lengths(700)
    (64, 128, 192, 256, 384, 512, 704)
    """
    last = -(-max_length // 64) * 64
    steps = {64 << i for i in range(last.bit_length())} | {
        192 << i for i in range(last.bit_length())
    }
    return (*sorted(step for step in steps if step < last), last)


def pad_pairs(pairs: Sequence[Sequence[np.ndarray]], rows: int, length: int) -> PairBatch:
    """A PairBatch of `rows` pairs padded to `length`; rows beyond the given ones repeat the last."""
    tokens = np.zeros((rows, 2, length), np.int32)
    segments = np.zeros((rows, 2, length), np.int32)
    verdict_at = np.zeros((rows, 2), np.int32)
    for at in range(rows):
        for order, side in enumerate(pairs[min(at, len(pairs) - 1)]):
            tokens[at, order, : len(side)] = side
            segments[at, order, : len(side)] = 1
            verdict_at[at, order] = len(side) - 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return PairBatch(Sequences(tokens, positions, segments), verdict_at)
