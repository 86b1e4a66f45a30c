"""Where the tokens of many comparisons stand when each shared beginning is computed once. Numpy only.

A comparison is a path of three nodes: what comes before the first response, the first response up to
the second, and the rest. Comparisons that are laid out one after another share the nodes with which
they begin: both orders of a pair the question, all rivals of one response that response too.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gram_jax.batch import Forest
from gram_jax.judge.encode import Encoded
from gram_jax.scoring.prefix_tree import ForestShape

# Sizes on a CPU. Blocks of 512 columns are 3 % faster, and a lone short pair waits twice as long for
# them (0.63 s against 0.37 s with SmolLM2-135M); 128 are a tenth slower. Strips of 64 queries are a
# tenth slower than 128 and waste half as much where a node has to begin a strip.
BLOCK, STRIP = 256, 64
# Reaches grow by at most a half, so that a strip works on at most that much more than it sees.
SMALLEST_REACH = 128


def forest_shape(max_length: int, columns: int) -> ForestShape:
    """The program for comparisons of at most max_length tokens: rows of at least `columns`.

    >>> forest_shape(600, 1024).reaches
    (128, 192, 256, 384, 512, 768)
    """
    columns = max(columns, 2 * (max_length + STRIP))
    columns = -(-columns // BLOCK) * BLOCK
    reaches = [SMALLEST_REACH]
    while reaches[-1] < max_length + STRIP:
        last = reaches[-1]
        reaches.append(last * 3 // 2 if last & (last - 1) == 0 else last // 3 * 4)
    return ForestShape(columns, columns // STRIP, BLOCK, STRIP, tuple(reaches))


@dataclass
class Group:
    """Comparisons that may share: their indices and texts, one after another.

    aligned: every node begins a strip. The bits of a comparison then depend on nothing but itself,
    wherever in a group it stands, and a group may be spread over calls. Otherwise the group stays in
    one piece, its bits depend on the group as a whole, and only its beginning is aligned.
    """

    members: Sequence[int]
    texts: Sequence[Encoded]
    aligned: bool


class Call(NamedTuple):
    """A Forest, and of every comparison in it (row, slot, index). tokens: in it; seen: pairs of a token and one that
    it attends to; asked: tokens of the comparisons one by one.
    """

    forest: Forest
    verdicts: list[tuple[int, int, int]]
    tokens: int
    seen: int
    asked: int


@dataclass
class _Node:
    tokens: np.ndarray
    start: int  # position of its first token in a sequence
    parent: int  # number of its parent, -1 for a root
    column: int
    end: int  # the column behind its last
    until: int  # the column behind its last descendant


@dataclass
class _Row:
    """One row while it fills."""

    shape: ForestShape
    nodes: list[_Node] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # numbers of the nodes of the last comparison
    verdicts: list[tuple[int, int]] = field(default_factory=list)  # (column, index)
    used: int = 0
    tree: int = 0  # the column where the last tree began
    asked: int = 0

    def shared(self, parts: Sequence[np.ndarray]) -> int:
        """With how many nodes of the last path these parts begin; the last part is never shared."""
        count = 0
        for number, part in zip(self.path, parts[:-1], strict=False):
            if not np.array_equal(self.nodes[number].tokens, part):
                break
            count += 1
        return count

    def begin(self, aligned: bool) -> None:
        """A new tree."""
        self.path = []
        self.used = self.tree = _up(self.used, self.shape.strip)

    def add(self, index: int, parts: Sequence[np.ndarray], aligned: bool) -> None:
        """One comparison behind the others."""
        kept = self.shared(parts)
        self.path = self.path[:kept]
        for part in parts[kept:]:
            parent = self.path[-1] if self.path else -1
            start = 0 if parent < 0 else self.nodes[parent].start + len(self.nodes[parent].tokens)
            # A strip that holds the end of one node and the beginning of another sees the paths of
            # both; what they are together must not be more than it can reach.
            many = self.used + self.shape.strip - self.tree > self.shape.reaches[-1]
            column = _up(self.used, self.shape.strip) if aligned or many else self.used
            self.used = column + len(part)
            self.path.append(len(self.nodes))
            self.nodes.append(_Node(part, start, parent, column, self.used, self.used))
        for number in self.path:
            self.nodes[number].until = self.used
        self.verdicts.append((self.used - 1, index))
        self.asked += sum(len(part) for part in parts)

    def room_for(self, parts: Sequence[np.ndarray], aligned: bool) -> bool:
        """Whether one more comparison fits."""
        new = parts[self.shared(parts) :] if self.path else parts
        needed = sum(len(part) for part in new) + (len(new) + 1) * self.shape.strip
        return self.used + needed <= self.shape.columns and len(self.verdicts) < self.shape.verdicts


def lay_out(groups: Iterable[Group], shape: ForestShape, rows: int) -> Iterator[Call]:
    """Groups one after another into calls of `rows` rows, each group into the emptiest row with room."""
    filling = [_Row(shape) for _ in range(rows)]
    for group in groups:
        parts = [_parts(text) for text in group.texts]
        at = 0
        while at < len(parts):
            row = min(filling, key=lambda row: row.used)
            take = _take_some if group.aligned else _take_all
            took = take(row, group, parts, at)
            at += took
            if not took:
                if not row.used:
                    raise ValueError(f"a group of {len(parts)} comparisons does not fit {shape}")
                yield _call(filling, shape)
                filling = [_Row(shape) for _ in range(rows)]
    if any(row.used for row in filling):
        yield _call(filling, shape)


def _take_all(row: _Row, group: Group, parts: Sequence[Sequence[np.ndarray]], first: int) -> int:
    trial = _Row(row.shape)  # a group is never begun in one row and ended in another: first is 0
    for index, part in zip(group.members, parts, strict=True):
        trial.add(index, part, aligned=False)
    size = _up(row.used, row.shape.strip) + trial.used
    slots = len(row.verdicts) + len(parts)
    if size > row.shape.columns or slots > row.shape.verdicts:
        return 0
    row.begin(aligned=False)
    for index, part in zip(group.members, parts, strict=True):
        row.add(index, part, aligned=False)
    return len(parts)


def _take_some(row: _Row, group: Group, parts: Sequence[Sequence[np.ndarray]], first: int) -> int:
    row.begin(aligned=True)
    took = 0
    for index, part in zip(group.members[first:], parts[first:], strict=True):
        if not row.room_for(part, aligned=True):
            break
        row.add(index, part, aligned=True)
        took += 1
    return took


def _parts(text: Encoded) -> tuple[np.ndarray, ...]:
    first, second = text.field_starts
    return text.tokens[:first], text.tokens[first:second], text.tokens[second:]


def _call(rows: Sequence[_Row], shape: ForestShape) -> Call:
    B, T, S = len(rows), shape.columns, shape.strips
    tokens, positions, until = (np.zeros((B, T), np.int32) for _ in range(3))
    keys = np.full((B, S, shape.reaches[-1]), -1, np.int32)
    reach = np.zeros((B, S), np.int32)
    verdict_at = np.zeros((B, shape.verdicts), np.int32)
    found = []
    for b, row in enumerate(rows):
        seen: list[dict[int, None]] = [{} for _ in range(S)]  # nodes on the paths of every strip
        paths: list[list[int]] = []
        for number, node in enumerate(row.nodes):
            here = slice(node.column, node.end)
            tokens[b, here] = node.tokens
            positions[b, here] = np.arange(node.start, node.start + len(node.tokens))
            until[b, here] = node.until
            paths.append([*(paths[node.parent] if node.parent >= 0 else []), number])
            for strip in range(node.column // shape.strip, -(-node.end // shape.strip)):
                seen[strip].update(dict.fromkeys(paths[-1]))
        for strip, numbers in enumerate(seen):
            if numbers:
                behind = (strip + 1) * shape.strip
                nodes = (row.nodes[number] for number in numbers)
                columns = np.concatenate([np.arange(n.column, min(n.end, behind)) for n in nodes])
                keys[b, strip, : len(columns)] = columns
                reach[b, strip] = 1 + np.searchsorted(shape.reaches, len(columns))
        for slot, (column, index) in enumerate(row.verdicts):
            verdict_at[b, slot] = column
            found.append((b, slot, index))
    used = np.array([row.used for row in rows], np.int32)
    forest = Forest(tokens, positions, until, used, keys, reach, verdict_at)
    nodes = [node for row in rows for node in row.nodes]
    sizes = [len(node.tokens) for node in nodes]
    pairs = sum(n.start * size + pairs_seen(size) for n, size in zip(nodes, sizes, strict=True))
    return Call(forest, found, sum(sizes), pairs, sum(row.asked for row in rows))


def pairs_seen(tokens: int) -> int:
    """Pairs of a token and one that it attends to, itself among them, in a text of so many tokens."""
    return tokens * (tokens + 1) // 2


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
