"""What training changes, as one tree: born sharded, saved and restored as it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gram_jax import tree
from gram_jax.model.specs import param_shardings
from gram_jax.sharding import Placement
from gram_jax.tree import Tree


class TrainState(NamedTuple):
    """step: updates tried so far, i32; params: the trainable weights; skipped: left out, i32; in_a_row: of these, since
    the last one that was not, i32.

    Weights that are not trained (the base of a LoRA) are no part of it.
    """

    step: Any
    params: Any
    opt_state: Any
    skipped: Any
    in_a_row: Any


def abstract_state(
    specs: Tree, optimizer: optax.GradientTransformation, placement: Placement, dtype: str
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without any array.

    Moments lie as their weights do. Every scalar is replicated over the mesh by name: left to
    itself, Adam's count is born on one device, and the first step after a restore fails.
    """
    everywhere = placement.sharding()

    def weight(spec: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype), sharding=sharding)

    params = tree.map_with_path(
        lambda _, spec, sharding: weight(spec, sharding), specs, param_shardings(specs, placement)
    )
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=everywhere
        ),
    )
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(scalar, params, opt_state, scalar, scalar)


def shardings_of(abstract: Any) -> Any:
    """The sharding of every leaf of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(
    params: Tree, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """The state before the first step. params: on the devices, laid out as `abstract` says."""
    start = jax.jit(optimizer.init, out_shardings=shardings_of(abstract.opt_state))
    zero = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=abstract.step.sharding)
    return TrainState(zero(), params, start(params), zero(), zero())
