"""Transfer of numpy batches to the devices: the only module of the data package that imports jax."""

import itertools
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from gram_jax.data.batches import Batch, BatchPlan
from gram_jax.errors import RecipeError, nearest_multiple
from gram_jax.sharding import Placement

THREAD = "gram-jax-feed"


def process_shard(placement: Placement, rows: int) -> tuple[int, int]:
    """(index, count): this process provides block `index` of `count` equal blocks of a batch's rows.

    Processes that differ only along the tensor or sequence axis hold the same rows, so count may be less than the
    number of processes. Raises RecipeError if the rows cannot be divided evenly over the batch axes of the mesh.
    """
    shards = placement.batch_shards
    if rows % shards:
        raise RecipeError(
            f"batch.batch_size = {rows} cannot be divided into {shards} parts (mesh axes "
            f"{' x '.join(dict(placement.rules)['batch'])}): {nearest_multiple(rows, shards)}"
        )
    held = placement.sharding("batch").addressable_devices_indices_map((rows,)).values()
    blocks = sorted({index[0].indices(rows)[:2] for index in held if index is not None})
    low, high = blocks[0][0], blocks[-1][1]
    size = high - low
    if sum(b - a for a, b in blocks) != size or rows % size or low % size:
        raise RecipeError(
            f"the rows that this process holds, {blocks} of {rows}, are not one block of several "
            "equal ones: order the devices of the mesh so that those of a process are adjacent"
        )
    return low // size, rows // size


def to_device(batch: Batch, placement: Placement, *, rows: int | None = None) -> Batch:
    """This process's rows of a batch as global arrays, sharded over the batch axes of the mesh.

    batch: numpy arrays [rows / count, ...] of `plan.batch(step, process_shard(...))`. rows: number of rows of the whole
    batch; default: those of `batch`, for a single process.
    """
    sharding = placement.sharding("batch")

    def place(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] if rows is None else rows, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(place, batch)


def prefetch(
    plan: BatchPlan, placement: Placement, start: int, stop: int, *, depth: int = 2
) -> Generator[tuple[int, Batch], None, None]:
    """Yield (step, batch on the devices) for steps start .. stop - 1, prepared in a background thread.

    At most `depth` batches are prepared ahead, and the next epoch is packed during the present one in another thread.
    An exception in a thread is raised here with its traceback. The threads end when the iterator is closed or the loop
    is left.
    """
    shard = process_shard(placement, plan.batch_size)
    packed = -1  # the newest epoch that is packed or asked for

    def load(step: int) -> Batch:
        nonlocal packed
        epoch, _ = plan.locate(step)
        if packed <= epoch and plan.steps(epoch + 1) < stop:
            packed = epoch + 1
            packer.submit(plan.prepare, packed)
        return to_device(plan.batch(step, shard), placement, rows=plan.batch_size)

    pool, packer = ThreadPoolExecutor(1, THREAD), ThreadPoolExecutor(1, "gram-jax-packer")
    try:
        futures = ((step, pool.submit(load, step)) for step in range(start, stop))
        waiting = deque(itertools.islice(futures, depth))
        while waiting:
            step, future = waiting.popleft()
            batch = future.result()
            waiting.extend(itertools.islice(futures, 1))
            yield step, batch
    finally:
        pool.shutdown(cancel_futures=True)
        packer.shutdown(cancel_futures=True)
