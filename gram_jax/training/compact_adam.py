"""Adam's moments in fewer bytes: 8 bits with a scale per block, bfloat16, or a factored second moment.

New moments are computed in float32 from the stored ones, used for the update unrounded, and then rounded. The rounding
is stochastic and unbiased: Adam's second moment changes by a thousandth of itself per step, less than the resolution of
8 bits or bfloat16, and rounding to the nearest value would freeze it. Its random bits are a hash of (step, position in
the array), so they are the same after a resume and on another mesh.

8 bits (similar to arXiv 2110.02861, with other codes): the sign and the square root of the first moment, the fourth
root of the second, both relative to the largest of a block of up to 128 neighbours along the last axis. A value of
1e-4 times its block's largest has two digits.

Factored (arXiv 1804.04235): the second moment as a product of means of squared gradients over a matrix's inputs and
over its outputs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from gram_jax import tree
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.model.specs import ParamSpec
from gram_jax.recipes.tables import MomentDtype, SecondMomentDtype
from gram_jax.tree import Tree

BLOCK = 128  # neighbours that share a scale: 4 bytes in 128
SMALL = 4096  # weights of an array below which its moments are float32
LOOPED = 2**22  # weights of an array from which on it is updated in parts


# The stored arrays of one weight's moment: (values,); (codes, scales f32 of each block) for 8 bits; (means over the
# outputs, means over the inputs), both f32, for a factored one.
Kept = tuple[jax.Array, ...]


class CompactAdamState(NamedTuple):
    """count: number of updates, i32. first, second: trees with a `Kept` for every weight."""

    count: Any
    first: Any
    second: Any


def scale_by_compact_adam(
    specs: Tree, *, b1: float, b2: float, eps: float, first: MomentDtype, second: SecondMomentDtype
) -> optax.GradientTransformation:
    """Adam's updates m / (sqrt(v) + eps), both moments with bias correction.

    specs: ParamSpec of every weight, which defines the inputs and outputs of a matrix.
    """
    kinds = ("signed" if first == "int8" else first, "unsigned" if second == "int8" else second)
    firsts, seconds = (
        tree.map_with_path(lambda path, spec, kind=kind: _store(kind, path, spec), specs)
        for kind in kinds
    )

    def init(params: Any) -> CompactAdamState:
        def zeros(stores: Tree) -> Any:
            return jax.tree.map(
                lambda x, store: tuple(jnp.zeros(*kept) for kept in store.shapes(x.shape)),
                params,
                stores,
            )

        return CompactAdamState(jnp.zeros((), jnp.int32), zeros(firsts), zeros(seconds))

    def update(grads: Any, state: CompactAdamState, params: Any = None) -> tuple[Any, Any]:
        count = state.count + 1
        correct_first, correct_second = (1 - b ** count.astype(jnp.float32) for b in (b1, b2))

        def leaf(
            path: str,
            g: jax.Array,
            m: Kept,
            v: Kept,
            spec: ParamSpec,
            one: FloatValues,
            two: FloatValues,
        ) -> tuple[jax.Array, Kept, Kept]:
            def part(number: Any, arrays: tuple[jax.Array, Kept, Kept]) -> Any:
                g, kept_m, kept_v = arrays
                bits = random_bits(g.shape, count, number)
                m, kept_m = one.update(kept_m, g, b1, bits)
                v, kept_v = two.update(kept_v, jnp.square(g), b2, bits)
                step = (m / correct_first) / (jnp.sqrt(v / correct_second) + eps)
                return step, kept_m, kept_v

            return _by_parts(part, (g.astype(jnp.float32), m, v), *_parts(spec, two))

        found = tree.map_with_path(leaf, grads, state.first, state.second, specs, firsts, seconds)
        steps, first, second = (
            jax.tree.map(lambda _, x, i=i: x[i], grads, found) for i in range(3)
        )
        return steps, CompactAdamState(count, first, second)

    return optax.GradientTransformation(init, cast(optax.TransformUpdateFn, update))


class FloatValues:
    """Values of a floating-point type."""

    def __init__(self, dtype: str):
        self.dtype = jnp.dtype(dtype)

    def shapes(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """(shape, dtype) of each stored array."""
        return ((shape, self.dtype),)

    def read(self, kept: Kept) -> jax.Array:
        return kept[0].astype(jnp.float32)

    def write(self, x: jax.Array, bits: jax.Array) -> Kept:
        """Round x stochastically with the random `bits`, u32."""
        if self.dtype == jnp.bfloat16:
            # bfloat16 is the upper half of float32; the lower half is the probability of rounding up.
            sums = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)
            x = jax.lax.bitcast_convert_type(sums & jnp.uint32(0xFFFF0000), jnp.float32)
        return (x.astype(self.dtype),)

    def update(
        self, kept: Kept, new: jax.Array, b: float, bits: jax.Array
    ) -> tuple[jax.Array, Kept]:
        """(the moving average with `new`, its stored form)."""
        x = b * self.read(kept) + (1 - b) * new
        return x, self.write(x, bits)


class EightBitCodes(FloatValues):
    """Codes of 8 bits: value = sign * scale * (code / top) ** power, scale the largest of each block."""

    def __init__(self, *, signed: bool):
        self.dtype = jnp.dtype(jnp.int8 if signed else jnp.uint8)
        self.signed, self.top, self.power = signed, 127 if signed else 255, 2 if signed else 4

    def shapes(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        return (shape, self.dtype), ((*shape[:-1], shape[-1] // block_size(shape[-1])), jnp.float32)

    def read(self, kept: Kept) -> jax.Array:
        code, scale = kept
        share = code.astype(jnp.float32) / self.top
        size = jnp.abs(share) ** self.power
        return _spread(scale, code.shape) * (jnp.sign(share) * size if self.signed else size)

    def write(self, x: jax.Array, bits: jax.Array) -> Kept:
        size = block_size(x.shape[-1])
        magnitude = jnp.abs(x) if self.signed else x
        scale = magnitude.reshape(*x.shape[:-1], -1, size).max(-1)
        share = magnitude / jnp.maximum(_spread(scale, x.shape), jnp.finfo(jnp.float32).tiny)
        root = jnp.sqrt(share) if self.power == 2 else jnp.sqrt(jnp.sqrt(share))
        below = jnp.clip(jnp.floor(root * self.top), 0, self.top - 1)
        low, high = (below / self.top) ** self.power, ((below + 1) / self.top) ** self.power
        likely = (share - low) / (high - low)
        code = below + (bits.astype(jnp.float32) * 2.0**-32 < likely)
        # Updates are divided by the second moment, so it is not rounded to 0.
        code = jnp.sign(x) * (code if self.signed else jnp.maximum(code, 1))
        return code.astype(self.dtype), scale


class FactoredMeans(FloatValues):
    """Means over outputs and over inputs of a matrix with `inputs` input dimensions after `stack` others."""

    def __init__(self, stack: int, inputs: int, dimensions: int):
        self.inputs = tuple(range(stack, stack + inputs))
        self.outputs = tuple(range(stack + inputs, dimensions))

    def shapes(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        rows, columns = (
            tuple(1 if i in over else n for i, n in enumerate(shape))
            for over in (self.outputs, self.inputs)
        )
        return (rows, jnp.float32), (columns, jnp.float32)

    def update(
        self, kept: Kept, new: jax.Array, b: float, bits: jax.Array
    ) -> tuple[jax.Array, Kept]:
        rows, columns = kept
        rows = b * rows + (1 - b) * new.mean(self.outputs, keepdims=True)
        columns = b * columns + (1 - b) * new.mean(self.inputs, keepdims=True)
        whole = jnp.maximum(rows.mean(self.inputs, keepdims=True), jnp.finfo(jnp.float32).tiny)
        return rows / whole * columns, (rows, columns)


def _store(kind: str, path: str, spec: ParamSpec) -> FloatValues:
    """The storage of a weight's moment; float32 for small arrays and for those that are not matrices."""
    if not spec.decays or math.prod(spec.shape) < SMALL or path.startswith("layers/lora/"):
        return FloatValues("float32")
    if kind in ("signed", "unsigned"):
        return EightBitCodes(signed=kind == "signed")
    if kind == "factored":
        stack = sum(axis in ("layers", "experts") for axis in spec.axes)
        return FactoredMeans(
            stack, NUM_CONTRACTED_DIMS.get(path.rpartition("/")[2], 1), len(spec.shape)
        )
    return FloatValues(kind)


def _parts(spec: ParamSpec, second: FloatValues) -> tuple[int, int]:
    """(axis, number of parts) of a weight's update: by layers, or by columns of a table, axes that no mesh shards."""
    if math.prod(spec.shape) < LOOPED:
        return 0, 1
    if spec.axes[0] == "layers":
        return 0, spec.shape[0]
    if spec.axes[-1] == "embed_table" and not isinstance(second, FactoredMeans):
        return len(spec.shape) - 1, spec.shape[-1] // block_size(spec.shape[-1])
    return 0, 1


def _by_parts(function: Callable[[Any, Any], Any], arrays: Any, axis: int, count: int) -> Any:
    """Apply function(part number, parts) to `count` parts of the arrays along `axis`, in place.

    arrays: a tree of arrays; results have the same tree and shapes. Without parts XLA holds float32 copies of both
    moments of a whole weight: 18.7 GB for a model of 1.7 billion weights.
    """
    if count == 1:
        return function(0, arrays)

    def cut(x: jax.Array, number: Any) -> jax.Array:
        size = x.shape[axis] // count
        return jax.lax.dynamic_slice_in_dim(x, number * size, size, axis)

    def put(x: jax.Array, new: jax.Array, number: Any) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new, number * (x.shape[axis] // count), axis)

    def body(number: Any, arrays: Any) -> Any:
        new = function(number, jax.tree.map(lambda x: cut(x, number), arrays))
        return jax.tree.map(lambda x, y: put(x, y, number), arrays, new)

    return jax.lax.fori_loop(0, count, body, arrays)


def block_size(length: int) -> int:
    """The largest divisor of `length` that is at most BLOCK.

    >>> block_size(4096), block_size(576), block_size(7)
    (128, 96, 7)
    """
    return max(size for size in range(1, min(length, BLOCK) + 1) if length % size == 0)


def _spread(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat the scale of each block for its elements."""
    blocks = (*scale.shape, shape[-1] // scale.shape[-1])
    return jnp.broadcast_to(scale[..., None], blocks).reshape(shape)


def random_bits(shape: tuple[int, ...], count: jax.Array, part: Any) -> jax.Array:
    """u32 for each element: a hash of its position, the step and the part (the mixer "lowbias32")."""
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = place + count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    x = x + jnp.asarray(part).astype(jnp.uint32) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
