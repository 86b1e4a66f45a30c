"""The training state: one tree, created sharded, saved and restored."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from gram_jax import tree
from gram_jax.model.specs import param_shardings
from gram_jax.sharding import Placement
from gram_jax.tree import Tree


class TrainState(NamedTuple):
    """step, skipped: number of batches and of skipped ones, i32; in_a_row: skipped ones since the last good one, i32;
    params: trained weights. Frozen weights (the base of a LoRA) are not in it.
    """

    step: Any
    params: Any
    opt_state: Any
    skipped: Any
    in_a_row: Any


def abstract_state(
    specs: Tree, optimizer: optax.GradientTransformation, placement: Placement, dtype: str
) -> TrainState:
    """Shapes, dtypes and shardings of the state.

    Moments are sharded as their weights, as far as their shapes allow. Scalars are replicated over the mesh explicitly:
    by default Adam's count is created on one device, and the first step after a restore fails.
    """
    everywhere = placement.sharding()

    def weight(spec: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype), sharding=sharding)

    params = tree.map_with_path(
        lambda _, spec, sharding: weight(spec, sharding), specs, param_shardings(specs, placement)
    )
    shardings = {path: leaf.sharding for path, leaf in tree.walk(params)}

    def moment(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        # A moment's path in the state ends with its weight's path.
        own = "/".join(str(part.key) for part in path if isinstance(part, DictKey))
        sharding = _like(shardings[own], leaf.shape) if own in shardings else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shapes = jax.eval_shape(optimizer.init, params)
    opt_state = jax.tree_util.tree_map_with_path(moment, shapes)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(scalar, params, opt_state, scalar, scalar)


def _like(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of a weight for its moment, which is replicated along axes on which it is smaller."""
    if len(sharding.spec) != len(shape):
        return NamedSharding(sharding.mesh, PartitionSpec())

    def parts(axes: Any) -> int:
        names = axes if isinstance(axes, tuple) else (axes,) if axes is not None else ()
        return math.prod(sharding.mesh.shape[name] for name in names)

    spec = (
        axes if size % parts(axes) == 0 else None
        for axes, size in zip(sharding.spec, shape, strict=True)
    )
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def shardings_of(abstract: Any) -> Any:
    """The sharding of every leaf of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(
    params: Tree, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """The state before the first step. params: on the devices, sharded as in `abstract`."""
    start = jax.jit(optimizer.init, out_shardings=shardings_of(abstract.opt_state))
    zero = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=abstract.step.sharding)
    return TrainState(zero(), params, start(params), zero(), zero())
