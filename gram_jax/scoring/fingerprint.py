"""Fingerprints of weights, which state to which model a file of results belongs."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import tree
from gram_jax.model.execution import Execution
from gram_jax.model.quantize import format_of
from gram_jax.scoring.text_scorer import ScorerIdentity
from gram_jax.tree import Tree


def weights_fingerprint(params: Tree) -> str:
    """16 hex digits computed from every element of every tensor, its position, path, shape and dtype.

    The value does not depend on the mesh: the checksums are integer sums, which are exact in any order.
    """
    leaves = dict(sorted(tree.flatten(params).items()))
    sums = jax.device_get(_checksums(list(leaves.values())))
    digest = hashlib.sha256()
    for (path, leaf), checksum in zip(leaves.items(), sums, strict=True):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode() + np.asarray(checksum).tobytes())
    return digest.hexdigest()[:16]


def local_identity(params: Tree, execution: Execution, program: str) -> ScorerIdentity:
    """The identity of a scorer whose model is in this process, or sharded over those of a job."""
    sizes = execution.placement.mesh.shape
    # Products are summed in parts over these axes. Over fsdp the weights are gathered first.
    parts = [f", {axis} {sizes[axis]}" for axis in ("tensor", "sequence") if sizes[axis] > 1]
    return ScorerIdentity(
        fingerprint=weights_fingerprint(params),
        weights=format_of(params),
        compute_dtype=execution.compute_dtype,
        device=execution.placement.mesh.devices.flat[0].device_kind,
        program=program + "".join(parts),
    )


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: jax.Array) -> jax.Array:
    """Two sums over hashed (element, position), u32 [2]: any one changed element changes the first."""
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{jnp.dtype(leaf.dtype).itemsize * 8}")
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(
            jnp.uint32, leaf.shape, axis
        )
    hashed = _mix(bits.astype(jnp.uint32) ^ _mix(position))
    return jnp.stack([x.sum(dtype=jnp.uint32) for x in (hashed, hashed * (2 * position + 1))])


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3, a bijection of u32 in which every bit of the input moves half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
