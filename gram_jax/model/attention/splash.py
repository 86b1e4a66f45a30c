"""Splash attention: JAX's Pallas kernel for TPUs, with segment ids and without repeated key-value heads.

The causal mask is computed inside the kernel; blocks of keys that are wholly in the future are
neither loaded nor multiplied. Blocks of another document are multiplied and then masked.
"""

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as kernels

from gram_jax.model.attention.scores import KEPT

LANES = 128  # the kernel's blocks are multiples of a TPU's vector lanes
BLOCK = 512  # keys and queries of a block at most

# Tests set this to run the kernel step by step where there is no TPU.
INTERPRET = False


def splash_attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """q: [B, T, N, H], scaled; k, v: [B, T, K, H]; segments: i32 [B, T]. Returns [B, T, N, H].

    T is a multiple of LANES. The backward pass keeps q, k, v, the output and a log-sum-exp.
    """
    _, T, N, _ = q.shape
    size = block_size(T)
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([kernels.CausalMask((T, T))] * N),
        block_sizes=kernels.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        residual_checkpoint_name=KEPT,
        interpret=INTERPRET,
    )
    heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
    ids = kernels.SegmentIds(segments, segments)
    return jax.vmap(kernel)(*heads_first, ids).swapaxes(1, 2)


def block_size(T: int) -> int:
    """The largest multiple of LANES that divides T, at most BLOCK.

    >>> block_size(2048), block_size(640), block_size(384)
    (512, 128, 384)
    """
    return max(size for size in range(LANES, BLOCK + 1, LANES) if T % size == 0)
