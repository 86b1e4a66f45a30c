"""Padded scoring: both orders of a pair as rows of one of a few lengths.

The program can use the attention kernels of GPUs and TPUs; prefix_tree.py shares prefixes instead.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from gram_jax.batch import PairBatch, Sequences
from gram_jax.judge.encode import Encoded
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.heads import label_logits
from gram_jax.scoring.calls import Call, WorkCounters, causal_pairs
from gram_jax.tree import Tree


@partial(jax.jit, static_argnames=("cfg", "label_ids", "execution"))
def padded_logits(
    params: Tree,
    cfg: ModelConfig,
    pair: PairBatch,
    label_ids: tuple[int, int],
    execution: Execution,
) -> jax.Array:
    """Logits of the two labels in each order, as shown: f32 [B, O, Y], replicated on every device.

    pair.seqs: i32 [B, O, T], order 0 as given and order 1 swapped; pair.verdict_at: i32 [B, O].
    """
    B, orders, T = pair.seqs.tokens.shape
    constrain = execution.placement.constrain
    rows = Sequences(*(constrain(x.reshape(B * orders, T), "batch", "time") for x in pair.seqs))
    at = pair.verdict_at.reshape(B * orders, 1)
    logits = label_logits(params, cfg, rows, at, label_ids, execution)
    return constrain(logits.reshape(B, orders, 2))


def padded_lengths(max_length: int) -> tuple[int, ...]:
    """Lengths that rows are padded to: powers of two, 1.5 times those, and the token budget.

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


def padded_calls(
    comparisons: Sequence[Encoded], lengths: Sequence[int], pairs_per_call: Mapping[int, int]
) -> Iterator[Call]:
    """Calls for pairs whose orders are comparisons 2i and 2i + 1, the longest rows first."""
    sizes = [len(text.tokens) for text in comparisons]
    by_length: dict[int, list[int]] = defaultdict(list)
    for at in range(0, len(sizes), 2):
        by_length[lengths[bisect_left(lengths, max(sizes[at : at + 2]))]].append(at)
    for length in sorted(by_length, reverse=True):
        members, count = by_length[length], pairs_per_call[length]
        for first in range(0, len(members), count):
            indices = np.array(members[first : first + count])[:, None] + np.arange(2)
            rows, orders = np.indices(indices.shape)
            indices = indices.ravel()
            batch = pad_pairs([comparisons[at].tokens for at in indices.tolist()], count, length)
            tokens = sum(sizes[at] for at in indices)
            work = WorkCounters(
                sequences=len(indices),
                calls=1,
                tokens_requested=tokens,
                tokens_unique=tokens,
                tokens_computed=2 * count * length,
                attention_pairs=sum(causal_pairs(sizes[at]) for at in indices),
            )
            yield Call(batch, indices, rows.ravel(), orders.ravel(), work)


def pad_pairs(texts: Sequence[np.ndarray], pairs: int, length: int) -> PairBatch:
    """Both orders of each pair, one after another, padded to `length`; the last pair fills the batch up to `pairs`."""
    missing = pairs - len(texts) // 2
    seqs, last = pad_rows([*texts, *([*texts[-2:]] * missing)], length)
    return PairBatch(
        Sequences(*(x.reshape(pairs, 2, length) for x in seqs)), last.reshape(pairs, 2)
    )


def pad_rows(texts: Sequence[np.ndarray], length: int) -> tuple[Sequences, np.ndarray]:
    """One text a row, padded on the right: i32 [B, T], and the column of each last token, i32 [B]."""
    tokens = np.zeros((len(texts), length), np.int32)
    sizes = np.array([len(text) for text in texts], np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    columns = np.arange(length, dtype=np.int32)
    segments = (columns < sizes[:, None]).astype(np.int32)
    return Sequences(tokens, np.broadcast_to(columns, tokens.shape), segments), sizes - 1
