"""What fits: changes to a recipe that make it fit, and the largest batch that does."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gram_jax.model.config import ModelConfig
from gram_jax.plan.planning import Plan, Target, plan_training
from gram_jax.recipes.tables import Recipe
from gram_jax.training.program import lower_memory_alternatives

REMATS = ("none", "dots", "full")  # cheapest first: nothing, all but products, all is recomputed
# Rows of one micro-batch on one device that are tried, at most a quarter apart: 1, 2, 3, ... 8, 10, 12, 14, 16, 20, ...
SIZES = sorted({1, 2, 3} | {quarters << power for quarters in (4, 5, 6, 7) for power in range(14)})
Say = Callable[[str], None]


def what_would_fit(
    recipe: Recipe, cfg: ModelConfig, target: Target, too_large: Plan, *, slots: int | None = None
) -> str:
    """Advice about a plan that does not fit, after trying: one compilation for every change.

    slots: see plan_training.
    """
    fit = too_large.fit
    if fit.capacity is not None and fit.arguments > fit.capacity:
        return (
            "Weights, optimizer state and batch alone are more than a device has: more devices "
            "under [mesh] fsdp, leaner optimizer state or weights, [lora], or a smaller model"
        )
    for change in lower_memory_alternatives(recipe, target.placement):
        if plan_training(recipe, cfg, target, slots=slots, change=change).fit.fits:
            return f"What would fit: {_keys(change)}"
    return (
        'Neither more microbatches nor remat = "full" is enough: a smaller batch.batch_size, a shorter '
        "batch.max_length, more devices under [mesh] fsdp, [lora], or a smaller model"
    )


def largest_batch(
    recipe: Recipe,
    cfg: ModelConfig,
    target: Target,
    say: Say = lambda _: None,
    *,
    slots: int | None = None,
) -> tuple[Recipe, Plan] | None:
    """The recipe with the most batch.batch_size that fit under full recomputation, then with the least recomputation.

    Rows are SIZES times microbatches times batch shards, bisected up to where the residual stream
    alone, which full recomputation keeps at every layer, is more than a device has. None where not
    even the smallest batch fits. slots: see plan_training.
    """
    unit = recipe.batch.gradient_accumulation_steps * target.placement.batch_shards
    tried: dict[tuple[int, str], Plan] = {}

    def attempt(at: int, remat: str) -> Plan:
        if (at, remat) not in tried:
            rows = unit * SIZES[at]
            changed = _with(recipe, rows, remat)
            tried[at, remat] = plan = plan_training(changed, cfg, target, slots=slots)
            verdict = "fits" if plan.fit.fits else "does not fit"
            say(f'batch.batch_size = {rows}, remat = "{remat}": {verdict}')
        return tried[at, remat]

    if not attempt(0, "full").fit.fits:
        return None
    most = _most(recipe, cfg, target)
    low, high = 0, sum(size <= most for size in SIZES)  # the first that is not worth trying
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if attempt(middle, "full").fit.fits else (low, middle)
    for remat in REMATS:
        if (plan := attempt(low, remat)).fit.fits:
            return _with(recipe, unit * SIZES[low], remat), plan
    raise AssertionError("the full recomputation that fitted before does not fit now")


def _most(recipe: Recipe, cfg: ModelConfig, target: Target) -> int:
    """More rows of one micro-batch on one device cannot fit."""
    width = 2 if recipe.execution.compute_dtype == "bfloat16" else 4
    row = cfg.layers * recipe.batch.max_length * cfg.embed_size * width
    row //= target.placement.mesh.shape["sequence"]
    return SIZES[-1] if target.capacity is None else target.capacity // row


def _with(recipe: Recipe, rows: int, remat: str) -> Recipe:
    return dataclasses.replace(
        recipe,
        batch=dataclasses.replace(recipe.batch, batch_size=rows),
        execution=dataclasses.replace(recipe.execution, remat=remat),
    )


def _keys(change: Mapping[str, Any]) -> str:
    texts = {key: f'"{v}"' if isinstance(v, str) else str(v) for key, v in change.items()}
    return ", ".join(f"{key} = {text}" for key, text in texts.items())
