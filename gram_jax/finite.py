"""Checks that numbers are finite: weights when they are loaded, logits before they become scores."""

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import tree
from gram_jax.errors import NonFiniteError
from gram_jax.tree import Tree


def check_weights(params: Tree, name: str) -> None:
    """Raises NonFiniteError, which lists the tensors, if a weight of the model `name` is NaN or infinite.

    Host arrays and those of CPUs are read in place; on other devices one program checks all tensors.
    """
    leaves = tree.flatten(params)
    if all(_on_cpu(leaf) for leaf in leaves.values()):
        counts = [_count_on_host(leaf) for leaf in leaves.values()]
    else:
        counts = jax.device_get(_counts(list(leaves.values())))
    if bad := {path: int(n) for path, n in zip(leaves, counts, strict=True) if n}:
        lines = [f"  {path}: {n:,} of {leaves[path].size:,}" for path, n in bad.items()]
        dtypes = ", ".join(sorted({str(leaves[path].dtype) for path in bad}))
        raise NonFiniteError(
            "\n".join([f"{name} has weights that are NaN or infinite in {dtypes}:", *lines[:20]])
            + ("\n  ..." if len(lines) > 20 else "")
            + "\nIts file is damaged, its training diverged, or a larger dtype is needed: choose an earlier "
            "checkpoint or another dtype, or get the file again"
        )


def check_finite(values: np.ndarray, what: str, of: str) -> np.ndarray:
    """The values, [n, ...]. Raises NonFiniteError if one is NaN or infinite. of: what a row belongs to."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad := int(np.count_nonzero(~finite)):
        raise NonFiniteError(
            f"{what} of {bad:,} of {len(values):,} {of} are NaN or infinite: the model's activations overflow. Try "
            "compute_dtype float32 (--compute-dtype float32), or other weights"
        )
    return values


def _on_cpu(leaf: jax.Array | np.ndarray) -> bool:
    return not isinstance(leaf, jax.Array) or all(d.platform == "cpu" for d in leaf.devices())


def _count_on_host(leaf: jax.Array | np.ndarray) -> int:
    """Number of non-finite elements in this process's part."""
    if isinstance(leaf, jax.Array):
        shards = [np.asarray(s.data) for s in leaf.addressable_shards if s.replica_id == 0]
        return sum(map(_count_on_host, shards))
    if leaf.dtype == jnp.bfloat16:  # through its bits, which is faster than the ufunc of ml_dtypes
        bits = leaf.view(np.uint16)
        return int(np.count_nonzero((bits & 0x7F80) == 0x7F80))
    return int(np.count_nonzero(~np.isfinite(leaf)))


@jax.jit
def _counts(leaves: list[jax.Array]) -> list[jax.Array]:
    return [(~jnp.isfinite(leaf)).sum(dtype=jnp.int32) for leaf in leaves]
