"""Padded scoring: both orders of a pair as rows of one of a few lengths.

The program can use the attention kernels of GPUs and TPUs; prefix_tree.py shares prefixes instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from gram_jax.batch import PairBatch, Sequences
from gram_jax.judge.encode import Encoded
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import hidden_at, label_logits
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
    hidden = hidden_at(hidden_states(params, cfg, rows, execution), at)
    logits = label_logits(params, cfg, hidden, label_ids)
    return constrain(logits.reshape(B, orders, 2))


def padded_lengths(max_length: int) -> tuple[int, ...]:
    """Lengths that rows are padded to: powers of two, 1.5 times those, and the token budget.

    Less than half of a row is padding (128 after 64 is the worst step; a third above that), a sixth on average, and
    a budget of 4096 tokens needs twelve programs.

    >>> padded_lengths(700)
    (64, 128, 192, 256, 384, 512, 704)
    """
    last = -(-max_length // 64) * 64
    steps = {unit << i for unit in (64, 192) for i in range(last.bit_length())}
    return (*sorted(step for step in steps if step < last), last)


def padded_calls(
    sequences: Sequence[Encoded], lengths: Sequence[int], pairs_per_call: Mapping[int, int]
) -> Iterator[Call]:
    """Calls for pairs whose orders are sequences 2i and 2i + 1, the longest rows first."""
    texts = [text.tokens for text in sequences]
    for indices, batch in padded_batches(texts, 2, lengths, pairs_per_call):
        rows, orders = np.indices(indices.shape)
        sizes = [len(texts[at]) for at in indices.ravel().tolist()]
        work = WorkCounters(
            sequences=len(sizes),
            calls=1,
            tokens_requested=sum(sizes),
            tokens_unique=sum(sizes),
            tokens_computed=batch.seqs.tokens.size,
            attention_pairs=sum(map(causal_pairs, sizes)),
        )
        yield Call(batch, indices.ravel(), rows.ravel(), orders.ravel(), work)


def padded_batches(
    texts: Sequence[np.ndarray],
    orders: int,
    lengths: Sequence[int],
    items_per_call: Mapping[int, int],
) -> Iterator[tuple[np.ndarray, PairBatch]]:
    """Batches of items of one padded length, the longest first; an item is `orders` consecutive texts.

    Yields the indices of the texts, i [n, O], and the batch of items_per_call[length] items: the last one repeats.
    """
    indices = np.arange(len(texts)).reshape(-1, orders)
    sizes = np.array([len(text) for text in texts], int).reshape(-1, orders).max(axis=1)
    padded = np.array(lengths)[np.searchsorted(lengths, sizes)]
    for length in sorted(set(padded.tolist()), reverse=True):
        members, count = indices[padded == length], items_per_call[length]
        for first in range(0, len(members), count):
            here = members[first : first + count]
            filled = np.pad(here, ((0, count - len(here)), (0, 0)), mode="edge")
            yield here, pad_items([texts[at] for at in filled.ravel().tolist()], orders, length)


def pad_items(texts: Sequence[np.ndarray], orders: int, length: int) -> PairBatch:
    """Texts padded on the right to `length`, and the column of each last token."""
    tokens = np.zeros((len(texts), length), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    tokens = tokens.reshape(-1, orders, length)
    sizes = np.array([len(text) for text in texts], np.int32).reshape(-1, orders)
    columns = np.arange(length, dtype=np.int32)
    segments = (columns < sizes[..., None]).astype(np.int32)
    return PairBatch(Sequences(tokens, np.broadcast_to(columns, tokens.shape), segments), sizes - 1)
