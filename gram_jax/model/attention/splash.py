"""Splash attention: JAX's Pallas kernel for TPUs, with segment ids and without repeated key-value heads.

The kernel computes the causal mask and skips blocks of keys that are wholly in the future. Blocks of another document
are computed and then masked.
"""

from typing import Any, cast

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gram_jax.model.attention.choice import LANES
from gram_jax.model.attention.masked import ATTENTION_OUTPUT

# Maximum number of keys and of queries in a block. Not tuned: no TPU was available, and libtpu has no estimate of the
# time of a Pallas kernel.
BLOCK = 512

# Tests set this to interpret the kernel without a TPU.
INTERPRET = False


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segments: jax.Array,
    k_segments: jax.Array,
    axes: tuple[str, ...],
    mesh: Mesh,
) -> jax.Array:
    """q: [B, T, N, H], scaled; k, v: [B, S, K, H]; segments: i32 [B, T], [B, S]. Returns [B, T, N, H].

    Inside shard_map, q is this device's part of rows that are sharded over the mesh axes `axes`, and k and v are whole
    (S = T times the devices); else S = T. T is a multiple of LANES. The backward pass keeps q, k, v, the output and a
    log-sum-exp.
    """
    # 0.2 s, needed on TPUs only
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    (_, T, N, _), S = q.shape, k.shape[1]
    # The largest multiple of LANES that divides T.
    size = max(size for size in range(LANES, BLOCK + 1, LANES) if T % size == 0)
    sizes = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([kernels.CausalMask((S, S))] * N),
        block_sizes=kernels.BlockSizes(**dict.fromkeys(sizes, size)),
        head_shards=1,
        q_seq_shards=S // T,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=INTERPRET,
    )
    if T < S:
        kernel = _own_part(kernel, axes, mesh)
    heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
    ids = kernels.SegmentIds(q_segments, k_segments)
    # The declared type includes residuals, which are returned on request only.
    return cast(jax.Array, jax.vmap(kernel)(*heads_first, ids)).swapaxes(1, 2)


def _own_part(kernel: Any, axes: tuple[str, ...], mesh: Mesh) -> Any:
    """The kernel with this device's part of its tables of blocks."""
    specs = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, axes)))
    parts, own = jax.lax.axis_size(axes), jax.lax.axis_index(axes)

    def cut(table: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = next(i for i, over in enumerate(spec) if over is not None)
        size = table.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(table, own * size, size, axis)

    return jax.tree.map(cut, kernel, specs)
