"""Layout of sequences whose shared prefixes are computed once. Numpy only.

A sequence is a comparison in one order, and a path of three nodes: the tokens before the first response, the first
response up to the second, and the rest. Consecutive sequences share the nodes they begin with: both orders of a pair
the question, all sequences of one response that response too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from gram_jax.judge.encode import Encoded
from gram_jax.scoring.calls import Call, WorkCounters, causal_pairs
from gram_jax.scoring.prefix_tree import BLOCK, QUERY_BLOCK, PrefixTreeBatch, PrefixTreeShape

# Key budgets grow by at most a half, which bounds the keys that a query block gathers in excess.
SMALLEST_KEY_BUDGET = 128

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # the tokens of a comparison's three nodes


def prefix_tree_shape(max_length: int, columns: int) -> PrefixTreeShape:
    """The program for sequences of at most max_length tokens, with rows of at least `columns`.

    >>> prefix_tree_shape(600, 1024).key_budgets
    (128, 192, 256, 384, 512, 768)
    """
    budgets = [SMALLEST_KEY_BUDGET]
    while budgets[-1] < max_length + QUERY_BLOCK:
        last = budgets[-1]
        budgets.append(last * 3 // 2 if last & (last - 1) == 0 else last // 3 * 4)
    columns = _round_up(max(columns, 2 * (max_length + QUERY_BLOCK)), BLOCK)
    return PrefixTreeShape(columns, tuple(budgets))


class _Node(NamedTuple):
    tokens: np.ndarray
    start: int  # position of its first token in a sequence
    parent: int  # index of its parent, -1 for a root
    column: int

    @property
    def end(self) -> int:
        return self.column + len(self.tokens)


@dataclass
class _Row:
    """One row while it is filled."""

    shape: PrefixTreeShape
    nodes: list[_Node] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # indices of the nodes of the last comparison
    verdicts: list[tuple[int, int]] = field(default_factory=list)  # (last node, comparison)
    used: int = 0

    def add_tree(self, members: range, parts: Sequence[Parts], *, paired: bool) -> int:
        """Add sequences as one tree while they fit, a pair whole or not at all. Returns their number.

        paired: only the root is aligned to a query block; else every node is.
        """
        tree = self.used = _round_up(self.used, QUERY_BLOCK)
        self.path = []
        size = 2 if paired else 1
        for added in range(0, len(members), size):
            nodes, verdicts, used = len(self.nodes), len(self.verdicts), self.used
            for index in members[added : added + size]:
                self._add(index, parts[index], tree, aligned=not paired)
            if self.used > self.shape.columns or len(self.verdicts) > self.shape.query_blocks:
                del self.nodes[nodes:], self.verdicts[verdicts:]
                self.used = used
                return added
        return len(members)

    def _add(self, index: int, parts: Parts, tree: int, *, aligned: bool) -> None:
        """Add one comparison after the others. tree: the first column of its tree."""
        same = takewhile(
            lambda pair: np.array_equal(self.nodes[pair[0]].tokens, pair[1]),
            zip(self.path, parts[:-1], strict=False),
        )
        self.path = [node for node, _ in same]
        for part in parts[len(self.path) :]:
            parent = self.path[-1] if self.path else -1
            start = 0 if parent < 0 else self.nodes[parent].start + len(self.nodes[parent].tokens)
            # A query block that holds the end of one node and the beginning of another sees the paths of both, which
            # the size of the tree bounds.
            if aligned or self.used - tree + QUERY_BLOCK > self.shape.key_budgets[-1]:
                self.used = _round_up(self.used, QUERY_BLOCK)
            self.path.append(len(self.nodes))
            self.nodes.append(_Node(part, start, parent, self.used))
            self.used += len(part)
        self.verdicts.append((self.path[-1], index))

    def subtree_ends(self) -> list[int]:
        """For each node, the column after its last descendant."""
        ends = [node.end for node in self.nodes]
        for index in reversed(range(len(ends))):
            if (parent := self.nodes[index].parent) >= 0:
                ends[parent] = max(ends[parent], ends[index])
        return ends

    def keys_of_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The columns on the paths of every query block that holds a node, up to its own end."""
        seen: dict[int, dict[int, None]] = {}  # of each block, the nodes on its paths, in order
        paths: list[list[int]] = []
        for index, node in enumerate(self.nodes):
            paths.append([*(paths[node.parent] if node.parent >= 0 else []), index])
            for block in range(node.column // QUERY_BLOCK, -(-node.end // QUERY_BLOCK)):
                seen.setdefault(block, {}).update(dict.fromkeys(paths[-1]))
        for block, indices in seen.items():
            nodes, end = (self.nodes[index] for index in indices), (block + 1) * QUERY_BLOCK
            yield block, np.concatenate([np.arange(n.column, min(n.end, end)) for n in nodes])


def lay_out(
    sequences: Sequence[Encoded], shape: PrefixTreeShape, rows: int, *, paired: bool
) -> Iterator[Call]:
    """Lay out sequences into calls of `rows` rows, each group into the row that has most space.

    paired: sequences 2i and 2i + 1 are a pair, which stays in one piece; its bits depend on the pair as a whole.
    Otherwise sequences with the same question are a group, which may be spread over calls: every node begins a query
    block, so the bits of a comparison depend on nothing but itself.
    """
    filling = [_Row(shape) for _ in range(rows)]
    parts = [_parts(text) for text in sequences]
    for group in _groups(parts, paired):
        while group:
            row = min(filling, key=lambda row: row.used)
            added = row.add_tree(group, parts, paired=paired)
            group = group[added:]
            if not added:
                if not row.verdicts:
                    raise ValueError(f"{len(group)} sequences do not fit {shape}")
                yield _make_call(filling, shape)
                filling = [_Row(shape) for _ in range(rows)]
    if any(row.verdicts for row in filling):
        yield _make_call(filling, shape)


def _groups(parts: Sequence[Parts], paired: bool) -> Iterator[range]:
    if paired:
        yield from (range(at, at + 2) for at in range(0, len(parts), 2))
        return
    start = 0
    for at in range(1, len(parts) + 1):
        if at == len(parts) or not np.array_equal(parts[at][0], parts[start][0]):
            yield range(start, at)
            start = at


def _parts(text: Encoded) -> Parts:
    first, second = text.field_starts
    return text.tokens[:first], text.tokens[first:second], text.tokens[second:]


def _make_call(filled: Sequence[_Row], shape: PrefixTreeShape) -> Call:
    B, T, S = len(filled), shape.columns, shape.query_blocks
    tokens, positions, subtree_end = (np.zeros((B, T), np.int32) for _ in range(3))
    keys = np.full((B, S, shape.key_budgets[-1]), -1, np.int32)
    budget, verdict_at = (np.zeros((B, n), np.int32) for n in (S, shape.verdict_slots))
    places = []
    work = WorkCounters(calls=1)
    for b, row in enumerate(filled):
        for node, end in zip(row.nodes, row.subtree_ends(), strict=True):
            here, size = slice(node.column, node.end), len(node.tokens)
            tokens[b, here] = node.tokens
            positions[b, here] = np.arange(node.start, node.start + size)
            subtree_end[b, here] = end
            work.tokens_unique += size
            work.attention_pairs += node.start * size + causal_pairs(size)
        for block, columns in row.keys_of_blocks():
            keys[b, block, : len(columns)] = columns
            budget[b, block] = 1 + np.searchsorted(shape.key_budgets, len(columns))
        for slot, (last, index) in enumerate(row.verdicts):
            verdict_at[b, slot] = row.nodes[last].end - 1
            places.append((index, b, slot))
            work.tokens_requested += row.nodes[last].start + len(row.nodes[last].tokens)
    used = np.array([row.used for row in filled], np.int32)
    work.sequences = len(places)
    work.tokens_computed = B * _round_up(int(used.max()), BLOCK)
    batch = PrefixTreeBatch(tokens, positions, subtree_end, used, keys, budget, verdict_at)
    indices, rows, slots = np.array(places, int).T
    return Call(batch, indices, rows, slots, work)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
