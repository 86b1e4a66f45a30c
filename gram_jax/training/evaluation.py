"""How well the weights of the moment do on held-out data."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax

from gram_jax.data.batches import BatchPlan
from gram_jax.data.feed import prefetch
from gram_jax.sharding import Placement
from gram_jax.tree import Tree


def held_out_metrics(
    eval_step: Any,
    params: Tree,
    frozen: Tree,
    plan: BatchPlan,
    placement: Placement,
    between: Callable[[], None],
) -> dict[str, float]:
    """The objective's metrics over all examples of `plan`, each example once: sums over counts.

    between: called before every batch; it ends the evaluation by raising.
    """
    totals: Any = None
    with closing(prefetch(plan, placement, 0, plan.steps_per_epoch)) as batches:
        for _, batch in batches:
            between()
            found = eval_step(params, frozen, batch)
            totals = found if totals is None else jax.tree.map(jax.numpy.add, totals, found)
    return {name: float(a) / float(b) for name, (a, b) in jax.device_get(totals).items() if b}


def evaluation_rows(rows: int, microbatches: int, shards: int, per_unit: int) -> int:
    """Rows of a held-out batch: as many as a micro-batch of training, which is known to fit.

    >>> evaluation_rows(16, 4, 1, 2), evaluation_rows(3, 3, 1, 2)
    (4, 2)
    """
    size = max(rows // microbatches, shards)
    return size if size % per_unit == 0 else size * per_unit
