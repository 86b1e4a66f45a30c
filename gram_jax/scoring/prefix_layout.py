"""Layout of comparisons whose shared prefixes are computed once. Numpy only.

A comparison is a path of three nodes: the tokens before the first response, the first response up to the second, and
the rest. Consecutive comparisons share the nodes they begin with: both orders of a pair the question, all comparisons
of one response that response too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gram_jax.judge.encode import Encoded
from gram_jax.scoring.calls import Call, WorkCounters, causal_pairs
from gram_jax.scoring.prefix_tree import PrefixTreeBatch, PrefixTreeShape

# Sizes on a CPU. Blocks of 512 columns are 3 % faster, but a single short pair takes twice as long
# (0.63 s instead of 0.37 s with SmolLM2-135M); 128 are 10 % slower. Blocks of 64 queries are 10 % slower than
# 128 and waste half as much when a node has to begin a query block.
BLOCK, QUERY_BLOCK = 256, 64
# Key budgets grow by at most a half, which bounds the keys that a query block gathers in excess.
SMALLEST_KEY_BUDGET = 128

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # the tokens of a comparison's three nodes


def prefix_tree_shape(max_length: int, columns: int) -> PrefixTreeShape:
    """The program for comparisons of at most max_length tokens, with rows of at least `columns`.

    >>> prefix_tree_shape(600, 1024).key_budgets
    (128, 192, 256, 384, 512, 768)
    """
    columns = max(columns, 2 * (max_length + QUERY_BLOCK))
    columns = -(-columns // BLOCK) * BLOCK
    budgets = [SMALLEST_KEY_BUDGET]
    while budgets[-1] < max_length + QUERY_BLOCK:
        last = budgets[-1]
        budgets.append(last * 3 // 2 if last & (last - 1) == 0 else last // 3 * 4)
    return PrefixTreeShape(columns, columns // QUERY_BLOCK, BLOCK, QUERY_BLOCK, tuple(budgets))


@dataclass
class _Node:
    tokens: np.ndarray
    start: int  # position of its first token in a sequence
    parent: int  # index of its parent, -1 for a root
    column: int
    end: int  # the column after its last token
    subtree_end: int  # the column after its last descendant


@dataclass
class _Row:
    """One row while it is filled."""

    shape: PrefixTreeShape
    nodes: list[_Node] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # indices of the nodes of the last comparison
    verdicts: list[tuple[int, int]] = field(default_factory=list)  # (column, comparison)
    used: int = 0
    tree: int = 0  # first column of the last tree
    tokens_requested: int = 0

    def add_whole(self, members: range, parts: Sequence[Parts]) -> int:
        """Add all comparisons as one tree, of which only the root is aligned; adds none if they do not fit."""
        self._begin_tree()
        if (
            self.tree + self._packed_size(parts) > self.shape.columns
            or len(self.verdicts) + len(parts) > self.shape.verdicts
        ):
            return 0
        for index, part in zip(members, parts, strict=True):
            self._add(index, part, aligned=False)
        return len(parts)

    def add_aligned(self, members: range, parts: Sequence[Parts]) -> int:
        """Add comparisons while they fit, each node aligned to a query block. Returns their number."""
        self._begin_tree()
        for count, (index, part) in enumerate(zip(members, parts, strict=True)):
            new = part[self._num_shared(part) :]
            needed = sum(map(len, new)) + (len(new) + 1) * self.shape.query_block
            if self.used + needed > self.shape.columns or len(self.verdicts) == self.shape.verdicts:
                return count
            self._add(index, part, aligned=True)
        return len(parts)

    def _begin_tree(self) -> None:
        self.path = []
        self.used = self.tree = _round_up(self.used, self.shape.query_block)

    def _num_shared(self, parts: Parts) -> int:
        """Number of nodes of the last path that these parts begin with; the last part is never shared."""
        return _num_equal([self.nodes[index].tokens for index in self.path], parts)

    def _add(self, index: int, parts: Parts, *, aligned: bool) -> None:
        """Add one comparison after the others."""
        shared = self._num_shared(parts)
        self.path = self.path[:shared]
        for part in parts[shared:]:
            parent = self.path[-1] if self.path else -1
            start = 0 if parent < 0 else self.nodes[parent].start + len(self.nodes[parent].tokens)
            column = self.used
            if aligned or self._budget_exceeded(self.used - self.tree):
                column = _round_up(self.used, self.shape.query_block)
            self.used = column + len(part)
            self.path.append(len(self.nodes))
            self.nodes.append(_Node(part, start, parent, column, self.used, self.used))
        for node in self.path:
            self.nodes[node].subtree_end = self.used
        self.verdicts.append((self.used - 1, index))
        self.tokens_requested += sum(map(len, parts))

    def _packed_size(self, group: Sequence[Parts]) -> int:
        """Columns of these comparisons as one tree, of which only the root is aligned."""
        size, previous = 0, ()
        for parts in group:
            for part in parts[_num_equal(previous, parts) :]:
                if self._budget_exceeded(size):
                    size = _round_up(size, self.shape.query_block)
                size += len(part)
            previous = parts
        return size

    def _budget_exceeded(self, size: int) -> bool:
        """Whether a query block that holds the end of one node and the beginning of another could see too many keys.

        It sees the paths of both, which a tree of this size bounds.
        """
        return size + self.shape.query_block > self.shape.key_budgets[-1]


def lay_out(
    comparisons: Sequence[Encoded], shape: PrefixTreeShape, rows: int, *, paired: bool
) -> Iterator[Call]:
    """Lay out comparisons into calls of `rows` rows, each group into the emptiest row.

    paired: comparisons 2i and 2i + 1 are a pair, which stays in one piece; its bits depend on the pair as a whole.
    Otherwise comparisons with the same question are a group, which may be spread over calls: every node begins a query
    block, so the bits of a comparison depend on nothing but itself, wherever it stands.
    """
    filling = [_Row(shape) for _ in range(rows)]
    parts = [_parts(text) for text in comparisons]
    for group in _groups(parts, paired):
        while group:
            row = min(filling, key=lambda row: row.used)
            add = row.add_whole if paired else row.add_aligned
            empty = not row.used
            added = add(group, parts[group.start : group.stop])
            group = group[added:]
            if not added:
                if empty:
                    raise ValueError(f"{len(group)} comparisons do not fit {shape}")
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


def _num_equal(path: Sequence[np.ndarray], parts: Parts) -> int:
    """Number of nodes that a path and a comparison begin with alike; the last part is not compared."""
    count = 0
    for node, part in zip(path, parts[:-1], strict=False):
        if not np.array_equal(node, part):
            break
        count += 1
    return count


def _make_call(filled: Sequence[_Row], shape: PrefixTreeShape) -> Call:
    B, T, S = len(filled), shape.columns, shape.query_blocks
    tokens, positions, subtree_end = (np.zeros((B, T), np.int32) for _ in range(3))
    keys = np.full((B, S, shape.key_budgets[-1]), -1, np.int32)
    budget = np.zeros((B, S), np.int32)
    verdict_at = np.zeros((B, shape.verdicts), np.int32)
    for b, row in enumerate(filled):
        for node in row.nodes:
            here = slice(node.column, node.end)
            tokens[b, here] = node.tokens
            positions[b, here] = np.arange(node.start, node.start + len(node.tokens))
            subtree_end[b, here] = node.subtree_end
        for block, columns in _keys_of_blocks(row):
            keys[b, block, : len(columns)] = columns
            budget[b, block] = 1 + np.searchsorted(shape.key_budgets, len(columns))
        verdict_at[b, : len(row.verdicts)] = [column for column, _ in row.verdicts]
    used = np.array([row.used for row in filled], np.int32)
    batch = PrefixTreeBatch(tokens, positions, subtree_end, used, keys, budget, verdict_at)
    places = [
        (index, b, slot)
        for b, row in enumerate(filled)
        for slot, (_, index) in enumerate(row.verdicts)
    ]
    nodes = [(node.start, len(node.tokens)) for row in filled for node in row.nodes]
    work = WorkCounters(
        sequences=len(places),
        calls=1,
        tokens_requested=sum(row.tokens_requested for row in filled),
        tokens_unique=sum(size for _, size in nodes),
        tokens_computed=B * _round_up(int(used.max()), shape.block),
        attention_pairs=sum(start * size + causal_pairs(size) for start, size in nodes),
    )
    indices, rows, slots = np.array(places, int).T
    return Call(batch, indices, rows, slots, work)


def _keys_of_blocks(row: _Row) -> Iterator[tuple[int, np.ndarray]]:
    """The columns on the paths of every query block that holds a node, up to its own end."""
    size = row.shape.query_block
    seen: dict[int, dict[int, None]] = {}  # of each block, the nodes on its paths, in order
    paths: list[list[int]] = []
    for index, node in enumerate(row.nodes):
        paths.append([*(paths[node.parent] if node.parent >= 0 else []), index])
        for block in range(node.column // size, -(-node.end // size)):
            seen.setdefault(block, {}).update(dict.fromkeys(paths[-1]))
    for block, indices in seen.items():
        nodes = (row.nodes[index] for index in indices)
        ends = (block + 1) * size
        yield block, np.concatenate([np.arange(n.column, min(n.end, ends)) for n in nodes])


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
