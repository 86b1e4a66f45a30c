"""How a model is run, apart from what it is: number format, attention, recomputation, placement."""

from dataclasses import dataclass
from typing import Literal

from gram_jax.sharding import Placement

AttentionBackend = Literal["blocked", "xla"]
Remat = Literal["none", "full", "dots"]


@dataclass(frozen=True)
class Execution:
    """Hashable, so that it can be closed over or passed as a static argument.

    compute: dtype of matrix products and of the residual stream; norms, rotary angles, softmax and
    losses always run in float32. remat: what the backward pass recomputes ("none": nothing; "full":
    whole layers; "dots": everything but matrix products).
    """

    compute: Literal["float32", "bfloat16"]
    attention: AttentionBackend
    remat: Remat
    placement: Placement
