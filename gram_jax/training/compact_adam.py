"""Adam's moments in fewer bytes: 8 bits with a scale per block, bfloat16, or a factored second moment.

New moments are computed in float32 from what is stored, used for the update as they are, and only then rounded. The
rounding is random and right on average: Adam's second moment changes by a thousandth of itself per step, less than
8 bits or bfloat16 can show, and rounding to the nearest value would freeze it. The dice are a hash of (step, place in
the array), so that a resumed run and another mesh throw the same.

8 bits (in the manner of arXiv 2110.02861, with codes of our own): of the first moment, the sign and the square root of
its size, of the second, the fourth root, both against the largest of a block of up to 128 neighbours along the last
axis. So what is a ten-thousandth of its block's largest still has two digits.

Factored (arXiv 1804.04235): means of squared gradients over a matrix's inputs and over its outputs, whose product
stands for the full second moment.
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
SMALL = 4096  # weights of an array below which its moments stay as they are
LOOPED = 2**22  # weights of an array from which on it is updated part by part


# The arrays that keep a moment of one weight: (values,); (codes, scales f32 of each block) for 8 bits; (means over its
# outputs, means over its inputs), both f32, for a factored one.
Kept = tuple[jax.Array, ...]


class CompactAdamState(NamedTuple):
    """count: number of updates, i32. first, second: trees with the `Kept` of every weight."""

    count: Any
    first: Any
    second: Any


def scale_by_compact_adam(
    specs: Tree, *, b1: float, b2: float, eps: float, first: MomentDtype, second: SecondMomentDtype
) -> optax.GradientTransformation:
    """Gradients to Adam's updates m / (sqrt(v) + eps), both moments corrected for their start at zero.

    specs: ParamSpec of every weight, which says what a matrix's inputs and outputs are.
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
            path: str, g: jax.Array, m: Kept, v: Kept, spec: ParamSpec, one: _Plain, two: _Plain
        ) -> tuple[jax.Array, Kept, Kept]:
            def part(number: Any, arrays: tuple[jax.Array, Kept, Kept]) -> Any:
                g, kept_m, kept_v = arrays
                dice = _dice(g.shape, count, number)
                m, kept_m = one.follow(kept_m, g, b1, dice)
                v, kept_v = two.follow(kept_v, jnp.square(g), b2, dice)
                step = (m / correct_first) / (jnp.sqrt(v / correct_second) + eps)
                return step, kept_m, kept_v

            return _by_parts(part, (g.astype(jnp.float32), m, v), *_parts(spec, two))

        found = tree.map_with_path(leaf, grads, state.first, state.second, specs, firsts, seconds)
        steps, first, second = (
            jax.tree.map(lambda _, x, i=i: x[i], grads, found) for i in range(3)
        )
        return steps, CompactAdamState(count, first, second)

    return optax.GradientTransformation(init, cast(optax.TransformUpdateFn, update))


class _Plain:
    """Values of a floating-point type."""

    def __init__(self, dtype: str):
        self.dtype = jnp.dtype(dtype)

    def shapes(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """(shape, dtype) of each array that is kept."""
        return ((shape, self.dtype),)

    def read(self, kept: Kept) -> jax.Array:
        return kept[0].astype(jnp.float32)

    def write(self, x: jax.Array, dice: jax.Array) -> Kept:
        if self.dtype == jnp.bfloat16:
            # bfloat16 is the upper half of float32: the lower half decides how likely the next value is
            bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (dice >> 16)
            x = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
        return (x.astype(self.dtype),)

    def follow(
        self, kept: Kept, new: jax.Array, b: float, dice: jax.Array
    ) -> tuple[jax.Array, Kept]:
        """(the moving mean after `new`, what is kept of it)."""
        x = b * self.read(kept) + (1 - b) * new
        return x, self.write(x, dice)


class _Codes(_Plain):
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

    def write(self, x: jax.Array, dice: jax.Array) -> Kept:
        size = block_size(x.shape[-1])
        magnitude = jnp.abs(x) if self.signed else x
        scale = magnitude.reshape(*x.shape[:-1], -1, size).max(-1)
        share = magnitude / jnp.maximum(_spread(scale, x.shape), jnp.finfo(jnp.float32).tiny)
        root = jnp.sqrt(share) if self.power == 2 else jnp.sqrt(jnp.sqrt(share))
        below = jnp.clip(jnp.floor(root * self.top), 0, self.top - 1)
        low, high = (below / self.top) ** self.power, ((below + 1) / self.top) ** self.power
        likely = (share - low) / (high - low)
        code = below + (dice.astype(jnp.float32) * 2.0**-32 < likely)
        # A second moment is never rounded to 0, by which updates would be divided.
        code = jnp.sign(x) * (code if self.signed else jnp.maximum(code, 1))
        return code.astype(self.dtype), scale


class _Factors(_Plain):
    """Means over outputs and over inputs; a matrix has `inputs` dimensions of inputs after `stack` others."""

    def __init__(self, stack: int, inputs: int, dimensions: int):
        self.inputs = tuple(range(stack, stack + inputs))
        self.outputs = tuple(range(stack + inputs, dimensions))

    def shapes(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        rows, columns = (
            tuple(1 if i in over else n for i, n in enumerate(shape))
            for over in (self.outputs, self.inputs)
        )
        return (rows, jnp.float32), (columns, jnp.float32)

    def follow(
        self, kept: Kept, new: jax.Array, b: float, dice: jax.Array
    ) -> tuple[jax.Array, Kept]:
        rows, columns = kept
        rows = b * rows + (1 - b) * new.mean(self.outputs, keepdims=True)
        columns = b * columns + (1 - b) * new.mean(self.inputs, keepdims=True)
        whole = jnp.maximum(rows.mean(self.inputs, keepdims=True), jnp.finfo(jnp.float32).tiny)
        return rows / whole * columns, (rows, columns)


def _store(kind: str, path: str, spec: ParamSpec) -> _Plain:
    """How a moment of this weight is kept: small arrays, and all that are no matrices, as float32."""
    if not spec.decays or math.prod(spec.shape) < SMALL or path.startswith("layers/lora/"):
        return _Plain("float32")
    if kind in ("signed", "unsigned"):
        return _Codes(signed=kind == "signed")
    if kind == "factored":
        stack = int(spec.axes[0] == "layers")
        return _Factors(stack, NUM_CONTRACTED_DIMS.get(path.rpartition("/")[2], 1), len(spec.shape))
    return _Plain(kind)


def _parts(spec: ParamSpec, second: _Plain) -> tuple[int, int]:
    """(axis, number of parts) in which a weight is updated: layer by layer, tables by columns.

    Along these axes no mesh cuts a weight.
    """
    if math.prod(spec.shape) < LOOPED:
        return 0, 1
    if spec.axes[0] == "layers":
        return 0, spec.shape[0]
    if spec.axes[-1] == "embed_table" and not isinstance(second, _Factors):
        return len(spec.shape) - 1, spec.shape[-1] // block_size(spec.shape[-1])
    return 0, 1


def _by_parts(function: Callable[[Any, Any], Any], arrays: Any, axis: int, count: int) -> Any:
    """function(number of the part, parts of the arrays along `axis`), its results in their place.

    arrays: any tree of arrays; the results are a tree of the same shapes. They overwrite the arrays
    one part after the other. Left to itself XLA holds float32 copies of both moments of a whole
    weight: 18.7 GB of a model with 1.7 billion weights.
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
    """The largest part of at most BLOCK into which an axis of this length can be cut evenly.

    >>> block_size(4096), block_size(576), block_size(7)
    (128, 96, 7)
    """
    return max(size for size in range(1, min(length, BLOCK) + 1) if length % size == 0)


def _spread(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A scale per block as one per element."""
    blocks = (*scale.shape, shape[-1] // scale.shape[-1])
    return jnp.broadcast_to(scale[..., None], blocks).reshape(shape)


def _dice(shape: tuple[int, ...], count: jax.Array, part: Any) -> jax.Array:
    """u32 for each element: a hash of its place, the step and the part (the mixer "lowbias32")."""
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = place + count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    x = x + jnp.asarray(part).astype(jnp.uint32) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
