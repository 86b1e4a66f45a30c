"""One answer for all processes of a job; with a single process every function is the identity.

Each is a collective: all processes call it, at the same place.
"""

from collections.abc import Sequence

import jax
import numpy as np

TEXT_BYTES = 8192  # of each process; enough to name some hundred files


def of_first(values: Sequence[int]) -> list[int]:
    """The first process's numbers (below 2**31), whatever the others have."""
    if jax.process_count() == 1:
        return list(values)
    from jax.experimental.multihost_utils import process_allgather

    lengths = np.asarray(process_allgather(np.array([len(values)], np.int32)))
    padded = np.zeros(int(lengths.max()), np.int32)
    padded[: len(values)] = values
    if padded.size == 0:
        return []
    return [int(x) for x in np.asarray(process_allgather(padded))[0, : int(lengths.reshape(-1)[0])]]


def of_all(lines: Sequence[str]) -> list[str]:
    """The lines of every process, each once, in the order of the processes."""
    if jax.process_count() == 1:
        return list(lines)
    from jax.experimental.multihost_utils import process_allgather

    text = "\n".join(lines).encode()[:TEXT_BYTES]
    padded = np.zeros(TEXT_BYTES, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(process_allgather(padded))
    texts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
    return list(dict.fromkeys(line for text in texts for line in text.split("\n") if line))


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
