"""How a model is run, apart from what it is: number format, attention, recomputation, placement."""

from dataclasses import dataclass
from typing import Literal

from gram_jax.sharding import Placement

Compute = Literal["float32", "bfloat16"]
AskedCompute = Literal["auto", "float32", "bfloat16"]
AttentionBackend = Literal["auto", "xla", "blocked", "cudnn", "splash", "ring"]
Remat = Literal["none", "full", "dots"]


@dataclass(frozen=True)
class Execution:
    """Hashable, so that it can be closed over or passed as a static argument.

    compute_dtype: dtype of matrix products and of the residual stream; norms, rotary angles, softmax and
    losses always run in float32. attention: a back end, or "auto" for the best that can do a shape
    (docs/attention.md). remat: what the backward pass recomputes ("none": nothing; "full": whole
    layers; "dots": everything but matrix products). packed: a row may hold several documents; some
    back ends cannot keep these apart, so False is a promise.

    >>> import jax
    >>> from gram_jax.sharding import make_placement
    >>> placement = make_placement({}, devices=jax.devices()[:1])
    >>> hash(Execution("float32", "auto", "none", placement)) == hash(Execution("float32", "auto", "none", placement))
    True
    """

    compute_dtype: Compute
    attention: AttentionBackend
    remat: Remat
    placement: Placement
    packed: bool = True
