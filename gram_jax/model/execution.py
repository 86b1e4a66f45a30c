"""Execution: compute dtype, attention back end, rematerialisation and placement of a model."""

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
    """How a model is executed. Hashable, so it can be a static argument of a jitted function.

    compute_dtype: dtype of matrix products and of the residual stream; norms, rotary angles, softmax and losses use
    float32. attention: a back end, or "auto" for the best one that supports a shape (docs/attention.md). remat: what
    the backward pass recomputes, "none", "full" (whole layers), "attention" (all but the attention output) or "dots"
    (all but that and matrix products). placement: mesh and sharding rules. packed: whether a row may hold several
    documents, which some back ends do not support.

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
    """Execution for inference. Compiled programs are cached on disk (compile_cache.py).

    compute_dtype: "auto" is float32 on CPUs, else bfloat16. placement: by default every device holds all weights and
    computes its own rows.
    """
    keep_compiled_programs()
    placement = placement or make_placement({"data": -1})
    if compute_dtype == "auto":
        compute_dtype = "float32" if placement.platform == "cpu" else "bfloat16"
    return Execution(compute_dtype, "auto", "none", placement, packed)
