"""A mixture of experts: a router sends each token to its best experts, and their weighted outputs are added.

The result is exact: an expert has no capacity and no token is dropped. The rows of all tokens are sorted by expert into
blocks of one shape, and a block is multiplied by the matrices of its expert. The work follows the number of tokens, and
the bits of a token's result do not depend on the other tokens. On a mesh each device sorts its own tokens and computes
those of its own experts (logical axis "experts"); one sum over the devices, as after a dense MLP, adds the parts.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from gram_jax.model.config import Experts, ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.matmul import contract, dot
from gram_jax.tree import Tree

# Rows of a block. 512 to 2,048 tokens to 8 of 64 experts, 512 x 256, float32, 2 CPU cores: 33 and 164 ms with 32 rows,
# 36 and 99 ms with 64, 40 and 288 ms with 16; all experts for every token take 192 and 776 ms.
BLOCK = 32
EXPERT_MATRICES = ("expert_gate", "expert_up", "expert_down")
ROWS, COLUMNS = 256, 1024  # of a block of the kernels on a TPU
TOGETHER = 64  # blocks of one product on a GPU, which reads a copy of their experts' matrices


class Routing(NamedTuple):
    """Where a router sends tokens. probabilities: f32 [B, T, E]; experts: i32 [B, T, k], best first; weights: f32
    [B, T, k].
    """

    probabilities: jax.Array
    experts: jax.Array
    weights: jax.Array


class ExpertLoad(NamedTuple):
    """Sums over the tokens of a batch, of each layer: assigned f32 [L, E], number of tokens at each expert;
    probability f32 [L, E], sum of the router's probabilities; tokens f32 [L].
    """

    assigned: jax.Array
    probability: jax.Array
    tokens: jax.Array


class _Blocks(NamedTuple):
    """Rows sorted by expert, each expert's part filled up to whole blocks. R rows, R / BLOCK blocks.

    token: i32 [R], the token of a row, beyond the last token for a row of padding. row: i32 [tokens * k], the row of
    each assignment, R for experts of other devices. expert: i32 [blocks]; used: number of blocks that hold tokens;
    sizes: i32 [E], rows of each expert.
    """

    token: jax.Array
    row: jax.Array
    expert: jax.Array
    used: jax.Array
    sizes: jax.Array


def route(h: jax.Array, router: jax.Array, experts: Experts) -> Routing:
    """The experts of each token of h [B, T, D]; router: [D, E]. In f32: a rounded logit changes the choice."""
    logits = dot("btd,de->bte", h.astype(jnp.float32), router.astype(jnp.float32))
    probabilities = jax.nn.softmax(logits, axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, experts.per_token)
    if experts.normalized:
        weights = weights / weights.sum(-1, keepdims=True)
    return Routing(probabilities, chosen.astype(jnp.int32), weights)


def mixture(
    h: jax.Array, weights: Tree, cfg: ModelConfig, execution: Execution
) -> tuple[jax.Array, Routing]:
    """(the experts' weighted outputs for the normed h [B, T, D], h's dtype; the routing of its tokens)."""
    assert cfg.experts is not None
    routing = route(h, weights["router"], cfg.experts)
    matrices = tuple(weights[name] for name in EXPERT_MATRICES)
    placement = execution.placement
    if placement.mesh.size == 1:
        return _local((), h, routing.experts, routing.weights, *matrices), routing
    rules, sizes = dict(placement.rules), placement.mesh.shape
    axes = tuple(axis for axis in rules["experts"] if sizes[axis] > 1)
    row = placement.spec(("batch", "time", None))
    matrix = placement.spec(("experts", None, None))
    out = jax.shard_map(
        partial(_local, axes),
        mesh=placement.mesh,
        in_specs=(row, row, row, matrix, matrix, matrix),
        out_specs=row,
        check_vma=False,
    )(h, routing.experts, routing.weights, *matrices)
    return out, routing


def _local(
    axes: tuple[str, ...],
    h: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """What one device computes. axes: mesh axes that shard the experts. gate, up: [E, D, F]; down: [E, F, D]."""
    if axes:
        experts = experts - gate.shape[0] * jax.lax.axis_index(axes)
    tokens = h.reshape(-1, h.shape[-1])
    blocks = _sort(experts.reshape(len(tokens), -1), gate.shape[0])
    rows = tokens.at[blocks.token].get(mode="fill", fill_value=0)
    rows = jax.nn.silu(grouped_matmul(rows, gate, blocks)) * grouped_matmul(rows, up, blocks)
    rows = grouped_matmul(rows, down, blocks)
    found = rows.at[blocks.row].get(mode="fill", fill_value=0).astype(jnp.float32)
    out = found.reshape(*weights.shape, -1) * weights[..., None]
    out = out.sum(-2).astype(h.dtype)
    return jax.lax.psum(out, axes) if axes else out


def _sort(experts: jax.Array, count: int) -> _Blocks:
    """The blocks of assignments i32 [tokens, k] to experts 0 to count - 1; other numbers are experts elsewhere."""
    size, k = experts.size, experts.shape[1]
    flat = jnp.where((experts >= 0) & (experts < count), experts, count).reshape(-1)
    most = size // BLOCK + min(count, size)
    together = min(TOGETHER, most)
    rows = -(-most // together) * together * BLOCK
    counts = jnp.bincount(flat, length=count)
    sizes = -(-counts // BLOCK) * BLOCK
    ends = jnp.cumsum(sizes)
    order = jnp.argsort(flat, stable=True)
    within = jnp.arange(size) - (jnp.cumsum(counts) - counts).at[flat[order]].get(mode="clip")
    at = (ends - sizes).at[flat[order]].get(mode="clip") + within
    at = jnp.where(flat[order] < count, at, rows).astype(jnp.int32)
    token = jnp.full(rows, size, jnp.int32).at[at].set((order // k).astype(jnp.int32), mode="drop")
    expert = jnp.searchsorted(ends, jnp.arange(rows // BLOCK) * BLOCK, side="right")
    expert = jnp.minimum(expert, count - 1).astype(jnp.int32)
    row = jnp.zeros(size, jnp.int32).at[order].set(at)
    return _Blocks(token, row, expert, (ends[-1] // BLOCK).astype(jnp.int32), sizes)


@jax.custom_vjp
def grouped_matmul(x: jax.Array, w: jax.Array, blocks: _Blocks) -> jax.Array:
    """Rows of x [R, D], each times the matrix of its expert in w [E, D, F]: [R, F], zeros after the used blocks."""
    return _multiply(x, w, blocks, 0)


def _forward(x: Any, w: Any, blocks: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    values = jax.tree.map(lambda part: part.value, blocks)
    # Frozen matrices (the base of a LoRA) have no gradient, so x is not kept.
    kept = x.value if w.perturbed else None
    return grouped_matmul(x.value, w.value, values), (kept, w.value, values)


def _backward(saved: tuple[Any, ...], d_y: jax.Array) -> tuple[Any, ...]:
    x, w, blocks = saved
    if isinstance(d_y, SymbolicZero):
        return None, None, None
    d_x = _multiply(d_y, w, blocks, 1)
    return d_x, None if x is None else _outer(x, d_y, w, blocks), None


grouped_matmul.defvjp(_forward, _backward, symbolic_zeros=True)


def _multiply(x: jax.Array, w: jax.Array, blocks: _Blocks, over: int) -> jax.Array:
    """Rows of x times the matrices of their experts, contracted over dimension `over` of these."""

    def by_blocks(together: int, x: jax.Array, w: jax.Array, blocks: _Blocks) -> jax.Array:
        product = jax.vmap(partial(contract, of_a=(1,), of_b=(over,)))

        def put(out: jax.Array, at: jax.Array, experts: jax.Array, rows: jax.Array) -> jax.Array:
            found = product(rows, jnp.take(w, experts, axis=0))
            found = found.reshape(-1, out.shape[1])
            return jax.lax.dynamic_update_slice_in_dim(out, found, at, 0)

        start = jnp.zeros((len(x), w.shape[2 - over]), x.dtype)
        return _over_blocks(put, start, blocks, together, x)

    def on_tpu(x: jax.Array, w: jax.Array, blocks: _Blocks) -> jax.Array:
        if x.dtype == jnp.float32:
            return _ragged_dot(x, w, blocks, over + 1, (0,))
        return grouped_kernel(x, w, blocks.sizes, transposed=over == 1)

    return _on_platform(by_blocks, on_tpu, x, w, blocks)


def _outer(x: jax.Array, d_y: jax.Array, w: jax.Array, blocks: _Blocks) -> jax.Array:
    """The gradient of w: x^T d_y summed over the rows of each expert."""

    def by_blocks(together: int, x: jax.Array, d_y: jax.Array, blocks: _Blocks) -> jax.Array:
        product = jax.vmap(partial(contract, of_a=(0,), of_b=(0,)))

        def add(
            d_w: jax.Array, _: jax.Array, experts: jax.Array, rows: jax.Array, d_rows: jax.Array
        ) -> jax.Array:
            return d_w.at[experts].add(product(rows, d_rows).astype(d_w.dtype))

        d_w = _over_blocks(add, jnp.zeros(w.shape, jnp.float32), blocks, together, x, d_y)
        return d_w.astype(w.dtype)

    def on_tpu(x: jax.Array, d_y: jax.Array, blocks: _Blocks) -> jax.Array:
        if x.dtype == jnp.float32:
            return _ragged_dot(x, d_y, blocks, 0, ()).astype(w.dtype)
        return outer_kernel(x, d_y, blocks.sizes).astype(w.dtype)

    return _on_platform(by_blocks, on_tpu, x, d_y, blocks)


def grouped_kernel(
    x: jax.Array, w: jax.Array, sizes: jax.Array, *, transposed: bool, interpret: bool = False
) -> jax.Array:
    """`grouped_matmul` of bfloat16 on a TPU: JAX's kernel of MegaBlocks (arXiv 2211.15841). transposed: w is [E, F, D].

    Rows after the groups are undefined. A ragged_dot would transpose a copy of w.
    """
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    tiles = _tiles(x.shape[0], x.shape[1], w.shape[1 if transposed else 2])
    return gmm(x, w, sizes, x.dtype, tiles, transpose_rhs=transposed, interpret=interpret)


def outer_kernel(
    x: jax.Array, d_y: jax.Array, sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """x^T d_y of each group of rows, [E, D, F] in x's dtype, summed in f32.

    A ragged_dot would multiply all rows for every expert.
    """
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tiles = _tiles(x.shape[0], x.shape[1], d_y.shape[1])
    return tgmm(x.swapaxes(0, 1), d_y, sizes, x.dtype, tiles, interpret=interpret)


def _tiles(rows: int, inner: int, outer: int) -> tuple[int, int, int]:
    """Sizes of the kernels' blocks; rows must be a multiple of the first."""
    return math.gcd(rows, ROWS), min(inner, COLUMNS), min(outer, COLUMNS)


def _ragged_dot(
    x: jax.Array, w: jax.Array, blocks: _Blocks, over: int, group: tuple[int, ...]
) -> jax.Array:
    """XLA's product of groups of rows; group: the dimension of w that counts them, if w has one."""
    contracted = (1 if group else 0,), (over,)
    numbers = jax.lax.RaggedDotDimensionNumbers((contracted, ((), ())), (0,), group)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.ragged_dot_general(
        x, w, blocks.sizes, numbers, precision=precision, preferred_element_type=jnp.float32
    )


def _on_platform(by_blocks: Callable, on_tpu: Callable, *args: Any) -> jax.Array:
    # On a CPU a ragged_dot multiplies every row by every expert: 1.6 s instead of 33 ms (BLOCK).
    together = min(TOGETHER, len(args[0]) // BLOCK)
    return jax.lax.platform_dependent(
        *args, tpu=on_tpu, cpu=partial(by_blocks, 1), default=partial(by_blocks, together)
    )


def _over_blocks(
    step: Callable, start: jax.Array, blocks: _Blocks, together: int, *rows: jax.Array
) -> jax.Array:
    """start after step(result, first row, experts, the blocks of each of `rows`), some used blocks at a time."""
    size = together * BLOCK

    def body(number: jax.Array, result: jax.Array) -> jax.Array:
        at = number * size
        here = (jax.lax.dynamic_slice_in_dim(x, at, size) for x in rows)
        here = (x.reshape(together, BLOCK, -1) for x in here)
        experts = jax.lax.dynamic_slice_in_dim(blocks.expert, number * together, together)
        return step(result, at, experts, *here)

    return jax.lax.fori_loop(0, -(-blocks.used // together), body, start)


def load(routing: Routing, counted: jax.Array) -> ExpertLoad:
    """The load of one layer's experts. counted: bool [B, T], tokens that are not padding."""
    count, weight = routing.probabilities.shape[-1], counted.astype(jnp.float32)
    chosen = jax.nn.one_hot(routing.experts, count, dtype=jnp.float32).sum(2)
    assigned, probability = (
        jnp.einsum("bte,bt->e", x, weight, precision="highest")
        for x in (chosen, routing.probabilities)
    )
    return ExpertLoad(assigned, probability, weight.sum())


def balance_loss(found: ExpertLoad) -> jax.Array:
    """E sum_e f_e p_e with f_e the share of tokens that e reads, p_e its mean probability (arXiv 2101.03961, eq. 4).

    Over all layers at once, as transformers computes it. k, the number of experts of a token, if they are balanced.
    """
    tokens = jnp.maximum(found.tokens.sum(), 1.0)
    shares, means = found.assigned.sum(0) / tokens, found.probability.sum(0) / tokens
    return found.assigned.shape[1] * jnp.sum(shares * means)


def max_load(found: ExpertLoad) -> jax.Array:
    """Tokens of the busiest expert relative to the mean, averaged over layers: 1 balanced, E / k all at the same."""
    mean = jnp.maximum(found.assigned.mean(1), 1.0 / found.assigned.shape[1])
    return jnp.mean(found.assigned.max(1) / mean)
