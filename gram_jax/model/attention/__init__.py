"""Causal grouped-query attention over packed rows, by several back ends with one definition.

Position t sees position s if s <= t and both belong to the same segment. Padding (segment 0) sees padding, so that its
rows stay finite. The softmax runs in f32; products take q's dtype and accumulate in f32.

On a mesh every device computes the rows and heads that it holds (shard_map). If the logical axis "time" is sharded,
"ring" passes keys and values round; the other back ends gather those of the whole row first (docs/attention.md).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gram_jax.model.attention import splash
from gram_jax.model.attention.blocked import Block, blocked_attention
from gram_jax.model.attention.choice import INTERPRETED, AttentionTask, resolve_backend
from gram_jax.model.attention.cudnn import cudnn_attention
from gram_jax.model.attention.masked import (
    ATTENTION_OUTPUT,
    causal_segment_mask,
    masked_attention,
)
from gram_jax.model.attention.ring import ring_attention
from gram_jax.model.attention.splash import splash_attention
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.layer_types import Window
from gram_jax.sharding import Placement

__all__ = ["ATTENTION_OUTPUT", "attention", "attention_task", "backend_of"]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    execution: Execution,
    *,
    window: Window = None,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v by the back end that the execution names.

    q: [B, T, N, H]; k, v: [B, T, K, H]; segments: i32 [B, T]; window: number of keys that a query sees; softcap: of the
    scores. Returns [B, T, N, H]. Raises RecipeError if the back end does not support it.
    """
    placement = execution.placement
    _, T, K, H = k.shape
    task = attention_task(
        execution,
        length=T,
        kv_heads=K,
        head_size=H,
        compute_dtype=str(q.dtype),
        window=window is not None,
        softcap=softcap is not None,
    )
    local = _local(resolve_backend(execution.attention, task), softcap, placement)
    if placement.mesh.size == 1:
        return local(q, k, v, segments, window)
    heads = placement.spec(("batch", "time", "act_heads", "head_size"))
    kv_heads = placement.spec(("batch", "time", "act_kv_heads", "head_size"))
    return jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(
            heads,
            kv_heads,
            kv_heads,
            placement.spec(("batch", "time")),
            None if window is None else placement.spec(()),
        ),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, segments, None if window is None else jnp.asarray(window))


def backend_of(execution: Execution, cfg: ModelConfig, length: int) -> str:
    """The back end for rows of this length. Raises RecipeError if it does not support them."""
    task = attention_task(
        execution,
        length=length,
        kv_heads=cfg.kv_heads,
        head_size=cfg.head_size,
        compute_dtype=execution.compute_dtype,
        window=(cfg.traits.window or length) < length,
        softcap=cfg.traits.attention_softcap is not None,
    )
    return resolve_backend(execution.attention, task)


def attention_task(
    execution: Execution,
    *,
    length: int,
    kv_heads: int,
    head_size: int,
    compute_dtype: str,
    window: bool = False,
    softcap: bool = False,
) -> AttentionTask:
    """What rows of this length require of a back end."""
    placement = execution.placement
    device = placement.mesh.devices.flat[0]
    capability = (
        getattr(device, "compute_capability", None) or ""
    )  # of a CUDA device, such as "9.0"
    return AttentionTask(
        platform=INTERPRETED if splash.INTERPRET else device.platform,
        capability=tuple(map(int, capability.split("."))) if capability else None,
        packed=execution.packed,
        length=length,
        kv_heads=kv_heads,
        head_size=head_size,
        compute_dtype=compute_dtype,
        sequence=placement.shards("time"),
        tensor=placement.shards("act_kv_heads"),
        window=window,
        softcap=softcap,
    )


def _local(backend: str, softcap: float | None, placement: Placement) -> Callable[..., jax.Array]:
    """What one device computes, as a function of its parts of (q, k, v, segments) and the window."""
    axes, parts = dict(placement.rules)["time"], placement.shards("time")

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: Window
    ) -> jax.Array:
        B, T, N, H = q.shape
        K = k.shape[2]
        q = q * (1 / math.sqrt(H))
        if backend == "cudnn":
            return cudnn_attention(q, k, v)
        k_segments, start = segments, 0
        if parts > 1 and backend != "ring":
            k, v, k_segments = (
                jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (k, v, segments)
            )
            start = T * jax.lax.axis_index(axes)
        if backend == "splash":
            return splash_attention(q, k, v, segments, k_segments, axes, placement.mesh)
        if backend == "xla":
            visible = causal_segment_mask(segments, k_segments, start, window)
            return masked_attention(q, k, v, visible, 1.0, softcap)
        q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
        k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        if backend == "ring":
            out: jax.Array = ring_attention(q, k, v, segments, axes, parts)
        else:
            out = blocked_attention(Block(q, k, v, segments, k_segments, start, window), softcap)
        return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)

    return local
