"""Batches that the data code makes for the model: tuples of arrays.

Letters: B rows, T positions, M verdicts (or pairs) in a packed row, O = 2 orders. A row may hold several documents:
`segments` numbers them 1, 2, ... with 0 for padding; `positions` restart at 0 in every document. `weights` are the
float weights of a loss.
"""

from typing import Any, NamedTuple

# A numpy array on the host, a jax.Array on devices, or a ShapeDtypeStruct if a program is only planned.
Array = Any


class Sequences(NamedTuple):
    """Packed rows of tokens, each field i32 [B, T] (i32 [B, O, T] inside a PairBatch).

    positions: position in the document. segments: number of the document in the row, from 1; 0 is padding.

    >>> import numpy as np
    >>> row = np.array([[7, 8, 9]])
    >>> Sequences(row, positions=np.array([[0, 1, 2]]), segments=np.ones_like(row)).tokens.shape
    (1, 3)
    """

    tokens: Array
    positions: Array
    segments: Array


class TokenBatch(NamedTuple):
    """Stage 1: predict `targets[b, t]` at position t with weight `weights[b, t]`.

    targets: i32 [B, T], already shifted (targets[t] is the token after tokens[t]); weights: f32 [B, T].
    """

    seqs: Sequences
    targets: Array
    weights: Array


class VerdictBatch(NamedTuple):
    """Stage 2: the token after column `verdict_at[b, m]` of row b is label `label[b, m]`.

    verdict_at, label: i32 [B, M]; weights: f32 [B, M], 0 for unused slots. label 0: the first response is better.
    """

    seqs: Sequences
    verdict_at: Array
    label: Array
    weights: Array


class RationaleBatch(NamedTuple):
    """Stage 2 with rationales: a VerdictBatch, and the R tokens of rationales that a row may hold as targets.

    The token after column `target_at[b, r]` of row b is `targets[b, r]`, i32 [B, R]. target_weights: f32 [B, R], 0 for
    unused slots, which sum to the weight of its document in every document with a rationale. verdict_at, label: i32
    [B, M]; weights: f32 [B, M].
    """

    seqs: Sequences
    target_at: Array
    targets: Array
    target_weights: Array
    verdict_at: Array
    label: Array
    weights: Array


class BradleyTerryBatch(NamedTuple):
    """Discriminative baseline: both responses of a pair are documents of the same row.

    chosen_at, rejected_at: i32 [B, M], the last column of each document; weights: f32 [B, M].
    """

    seqs: Sequences
    chosen_at: Array
    rejected_at: Array
    weights: Array


class PairBatch(NamedTuple):
    """Pairs for scoring. Order 0 shows the responses as given, order 1 swapped.

    seqs: i32 [B, O, T], one document per row, padded on the right. verdict_at: i32 [B, O], column of the last token.

    >>> import numpy as np
    >>> row = np.array([[[5, 9, 2], [9, 5, 2]]])
    >>> PairBatch(Sequences(row, np.arange(3) + 0 * row, np.ones_like(row)), np.array([[2, 2]])).verdict_at.shape
    (1, 2)
    """

    seqs: Sequences
    verdict_at: Array
