"""How a model is run: compute dtype, attention, rematerialisation, placement."""

from dataclasses import dataclass
from typing import Literal

from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.sharding import Placement, make_placement

Compute = Literal["float32", "bfloat16"]
AskedCompute = Literal["auto", "float32", "bfloat16"]
AttentionBackend = Literal["auto", "xla", "blocked", "cudnn", "splash", "ring"]
Remat = Literal["none", "full", "attention", "dots"]


@dataclass(frozen=True)
class Execution:
    """Hashable, so that it can be a static argument.

    compute_dtype: dtype of matrix products and of the residual stream; norms, rotary angles, softmax and losses run in
    float32. attention: a back end, or "auto" for the best that supports a shape (docs/attention.md). remat: what the
    backward pass recomputes ("none": nothing; "full": layers; "attention": all but attention's output; "dots": all
    but this and matrix products). packed: a row may hold several documents, which some back ends do not support.

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


def inference_execution(
    compute_dtype: AskedCompute, placement: Placement | None = None, *, packed: bool = False
) -> Execution:
    """How a loaded model is run; compiled programs are kept (compile_cache.py).

    compute_dtype "auto": float32 on a CPU, else bfloat16. Without a placement every device holds all weights and
    computes rows of its own.
    """
    keep_compiled_programs()
    placement = placement or make_placement({"data": -1})
    if compute_dtype == "auto":
        compute_dtype = "float32" if placement.platform == "cpu" else "bfloat16"
    return Execution(compute_dtype, "auto", "none", placement, packed)
