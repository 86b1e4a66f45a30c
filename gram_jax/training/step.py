"""One training step: gradients of sums over micro-batches, divided once, given to the optimizer, which clips."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from gram_jax import tree
from gram_jax.compiler import Options, compiler_options
from gram_jax.sharding import Placement
from gram_jax.training.objectives import Metrics, Objective
from gram_jax.training.state import TrainState
from gram_jax.tree import Tree


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state_shardings: TrainState,
    placement: Placement,
    *,
    microbatches: int,
    max_skipped: int,
    options: Options | None = None,
) -> Any:
    """The jitted step: (state, frozen weights, batch) -> (state, metrics); the state is donated.

    The objective's loss is a sum and its metrics are (sum, count) pairs; metrics["loss"] counts the weights. The
    gradient is that of the mean over the whole batch for any `microbatches`.

    Metrics are those of the objective and, each with count 1: grad_norm (before clipping), learning_rate, num_tokens
    (of this batch), bad (1 if loss or gradient are not finite), skipped and skipped_in_a_row (batches, from the state).

    A bad batch is skipped: weights and optimizer state keep every bit, and state.skipped counts it. After more than
    `max_skipped` in a row no batch changes the state, step number included, so the loop can read the metrics one step
    late and still has the last good state.

    options: changes to the compiler's options for the chip.
    """

    def update(grads: Tree, params: Tree, opt_state: Any) -> tuple[Tree, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return cast(Tree, optax.apply_updates(params, updates)), opt_state

    def step(state: TrainState, frozen: Tree, batch: Any) -> tuple[TrainState, Metrics]:
        def loss_sum(params: Tree, part: Any) -> tuple[jax.Array, Metrics]:
            return objective(tree.merge(params, frozen), part)

        gradient = jax.value_and_grad(loss_sum, has_aux=True)
        (_, metrics), summed = _over_microbatches(
            gradient, state.params, batch, microbatches, placement
        )
        weight = metrics["loss"][1]
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)  # a batch of weight 0 has gradient 0
        grads = jax.tree.map(
            lambda g, sharding: jax.lax.with_sharding_constraint(g * scale, sharding),
            summed,
            state_shardings.params,
        )
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"][0])
        running = state.in_a_row <= max_skipped

        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
        # jnp.where over both states would copy the old moments: a quarter of the memory of a step of SmolLM2-135M with
        # 2 x 512 tokens.
        params, opt_state = jax.lax.cond(
            finite & running, update, lambda _, *old: old, grads, state.params, state.opt_state
        )
        skipped = state.skipped + (~finite & running)
        in_a_row = jnp.where(finite & running, 0, state.in_a_row + (~finite & running))
        new = TrainState(
            state.step + (in_a_row <= max_skipped).astype(jnp.int32),
            params,
            opt_state,
            skipped.astype(jnp.int32),
            in_a_row.astype(jnp.int32),
        )
        tokens = jnp.sum(batch.seqs.segments > 0)
        extra = {
            "grad_norm": norm,
            "learning_rate": schedule(state.step - state.skipped),  # as the optimizer counts
            "num_tokens": tokens,
            "bad": ~finite,
            "skipped": new.skipped,
            "skipped_in_a_row": new.in_a_row,
        }
        one = jnp.float32(1)
        metrics |= {name: (jnp.asarray(x, jnp.float32), one) for name, x in extra.items()}
        return new, metrics

    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(state_shardings, placement.sharding()),
        compiler_options=compiler_options(placement, options),
    )


def make_eval_step(objective: Objective, placement: Placement) -> Any:
    """The jitted (params, frozen weights, batch) -> metrics of an objective, (sum, count) each."""

    def step(params: Tree, frozen: Tree, batch: Any) -> Metrics:
        return objective(tree.merge(params, frozen), batch)[1]

    return jax.jit(
        step,
        out_shardings=placement.sharding(),
        compiler_options=compiler_options(placement),
    )


def _over_microbatches(
    gradient: Any, params: Tree, batch: Any, count: int, placement: Placement
) -> Any:
    """The sum of `gradient` over the micro-batches in f32; one of them is in memory at a time."""
    if count == 1:
        return gradient(params, batch)
    parts = jax.tree.map(lambda x: _split(x, count, placement), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    start = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
        jax.eval_shape(gradient, params, first),
    )

    def add(total: Any, part: Any) -> tuple[Any, None]:
        found = gradient(params, part)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, found), None

    return jax.lax.scan(add, start, parts)[0]


def _split(x: jax.Array, count: int, placement: Placement) -> jax.Array:
    """[B, ...] as [count, B / count, ...]: part i has the rows i, i + count, ...; each device splits its own rows."""
    parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
    return placement.constrain(parts, None, "batch", *(None for _ in x.shape[1:]))
