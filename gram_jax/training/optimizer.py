"""AdamW with warm-up, schedule, decay mask and global-norm clipping from a recipe."""

import math

import jax.numpy as jnp
import optax

from gram_jax import tree
from gram_jax.errors import RecipeError
from gram_jax.recipes.tables import OptimizerConfig
from gram_jax.training.compact_adam import scale_by_compact_adam
from gram_jax.tree import Tree


def warmup_steps(optimizer: OptimizerConfig, steps: int) -> int:
    """Warm-up steps of a run of `steps`; a fraction is rounded up, as in the reference code."""
    if optimizer.warmup_steps >= 1:
        return int(optimizer.warmup_steps)
    return math.ceil(optimizer.warmup_steps * steps)


def make_schedule(optimizer: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of step s = 0, 1, ...: linear warm-up over w steps, then to 0 at `steps`.

    In the warm-up it is peak (s + 1) / (w + 1), so the first step is not 0 and step w is the first at the peak. After
    it, with x = (s - w) / (steps - w): peak (1 + cos(pi x)) / 2 ("cosine"), peak (1 - x) ("linear") or the peak
    ("constant").
    """
    peak, warmup = optimizer.learning_rate, warmup_steps(optimizer, steps)
    rest = steps - warmup
    if rest < 1:
        raise RecipeError(
            f"optimizer.warmup_steps = {optimizer.warmup_steps:g} takes {warmup} steps of a run of {steps}: "
            "nothing is left to train at the peak"
        )
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }[optimizer.lr_scheduler_type]()
    if not warmup:
        return after
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    optimizer: OptimizerConfig, steps: int, specs: Tree
) -> optax.GradientTransformation:
    """Clipping to the global norm unless max_grad_norm is 0, then AdamW on the schedule.

    specs: ParamSpec of every trained weight; weight decay applies to those whose spec decays, the matrices.
    """
    schedule = make_schedule(optimizer, steps)
    decays = tree.map_with_path(lambda _, spec: spec.decays, specs)
    if optimizer.first_moment_dtype != "int8" and optimizer.second_moment_dtype == "float32":
        adamw = optax.adamw(
            schedule,
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            mask=decays,
            mu_dtype=jnp.dtype(optimizer.first_moment_dtype),
        )
    else:
        adamw = optax.chain(
            scale_by_compact_adam(
                specs,
                b1=optimizer.b1,
                b2=optimizer.b2,
                eps=optimizer.eps,
                first=optimizer.first_moment_dtype,
                second=optimizer.second_moment_dtype,
            ),
            optax.add_decayed_weights(optimizer.weight_decay, mask=decays),
            optax.scale_by_learning_rate(schedule),
        )
    if not optimizer.max_grad_norm:
        return adamw
    return optax.chain(optax.clip_by_global_norm(optimizer.max_grad_norm), adamw)
