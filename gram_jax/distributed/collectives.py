"""Collectives over values of the host: every process of a job calls them at the same point of the program.

A job of one process needs no communication.
"""

import json
import socket
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gram_jax.errors import ClusterError


def broadcast_object(value: Any) -> Any:
    """Process 0's value on every process."""
    if jax.process_count() == 1:
        return value
    return all_gather_objects(value if jax.process_index() == 0 else None)[0]


def broadcast_array(values: np.ndarray | None) -> np.ndarray:
    """Process 0's array, i32 [n], on every process; the others pass None and need not know n."""
    if jax.process_count() == 1:
        assert values is not None
        return values
    values = np.zeros(0, np.int32) if values is None else values
    size = int(multihost_utils.broadcast_one_to_all(np.int32(values.size)))
    # Powers of two: each size is another compiled program.
    padded = np.zeros(1 << (size - 1).bit_length() if size else 0, np.int32)
    padded[: values.size] = values
    return multihost_utils.broadcast_one_to_all(padded)[:size]


def all_gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.atleast_1d(multihost_utils.process_allgather(np.int32(mine.size)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes.tolist(), strict=True)]


def all_gather_rows(arrays: Any) -> Any:
    """A tree of arrays [n, ...], each joined with those of the other processes, in their order; n may differ."""
    if jax.process_count() == 1:
        return arrays
    mine = len(jax.tree.leaves(arrays)[0])
    counts = multihost_utils.process_allgather(np.int32(mine)).tolist()

    def join(x: np.ndarray) -> np.ndarray:
        padded = np.zeros((max(counts), *x.shape[1:]), x.dtype)
        padded[:mine] = x
        parts = multihost_utils.process_allgather(padded)
        return np.concatenate([rows[:n] for rows, n in zip(parts, counts, strict=True)])

    return jax.tree.map(join, arrays)


def process_part(count: int) -> slice:
    """The part of `count` items that this process computes: consecutive ones, as even as possible."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(index * count // processes, (index + 1) * count // processes)


def all_gather_lines(lines: Sequence[str]) -> list[str]:
    """The distinct lines of all processes, in the order of the processes."""
    return list(dict.fromkeys(line for found in all_gather_objects(list(lines)) for line in found))


def assert_equal(what: str, value: Any) -> None:
    """Raises ClusterError on all processes if the value of one differs from that of process 0."""
    values = all_gather_objects([socket.gethostname(), value])
    other = [f"{i} ({host})" for i, (host, found) in enumerate(values) if found != values[0][1]]
    if other:
        raise ClusterError(
            f"process {', '.join(other)} has another {what} than process 0: every process needs the same recipe, "
            "files and versions"
        )


def barrier(name: str) -> None:
    """Wait until every process calls this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
