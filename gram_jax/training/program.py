"""The program of a training step from shapes alone, for runs and for `gram-jax plan`."""

from collections.abc import Mapping, Sequence
from typing import Any

import optax

from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution, Remat
from gram_jax.recipes.tables import Recipe
from gram_jax.sharding import Placement, make_placement
from gram_jax.training.optimizer import make_schedule
from gram_jax.training.stages import abstract_frozen, make_objective
from gram_jax.training.state import TrainState, shardings_of
from gram_jax.training.step import make_train_step


def lower_step(
    recipe: Recipe,
    cfg: ModelConfig,
    label_ids: tuple[int, int],
    optimizer: optax.GradientTransformation,
    steps: int,
    placement: Placement,
    state: TrainState,
    batch: Any,
    change: Mapping[str, Any],
) -> Any:
    """The lowered step of a recipe.

    label_ids: of the judge's two verdicts. steps: of the whole run, for the schedule. state, batch: abstract, with
    shardings. change: values for "execution.remat" and "batch.gradient_accumulation_steps" instead of the recipe's.
    """
    execution = make_execution(
        recipe, placement, change.get("execution.remat", recipe.execution.remat)
    )
    step = make_train_step(
        make_objective(recipe, cfg, execution, label_ids),
        optimizer,
        make_schedule(recipe.optimizer, steps),
        shardings_of(state),
        placement,
        microbatches=change.get(
            "batch.gradient_accumulation_steps", recipe.batch.gradient_accumulation_steps
        ),
        max_skipped=recipe.run.max_skipped,
        options=recipe.execution.compiler_options,
    )
    return step.lower(state, abstract_frozen(recipe, cfg, placement), batch)


def placement_of(recipe: Recipe, devices: Sequence[Any] | None = None) -> Placement:
    """The recipe's mesh over these devices, default all."""
    mesh = recipe.mesh
    return make_placement(mesh.sizes, dcn=mesh.dcn_sizes, devices=devices)


def make_execution(recipe: Recipe, placement: Placement, remat: Remat) -> Execution:
    """The recipe's execution of the model."""
    config = recipe.execution
    return Execution(config.compute_dtype, config.attention, remat, placement, packed=recipe.packed)


def memory_saving_changes(recipe: Recipe, placement: Placement) -> list[dict[str, Any]]:
    """Changes to a recipe that reduce memory and keep the results, cheapest first."""
    batch, shards = recipe.batch, placement.batch_shards
    counts = [
        batch.gradient_accumulation_steps * n
        for n in (2, 4, 8, 16)
        if batch.batch_size % (batch.gradient_accumulation_steps * n * shards) == 0
    ]
    changes: list[dict[str, Any]] = [{"batch.gradient_accumulation_steps": n} for n in counts[:2]]
    if recipe.execution.remat != "full":
        changes += [
            {"execution.remat": "full", **({"batch.gradient_accumulation_steps": n} if n else {})}
            for n in (0, *counts)
        ]
    return changes or [{"batch.gradient_accumulation_steps": n} for n in counts]
