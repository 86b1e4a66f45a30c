"""Changes to a recipe that make it fit, the largest batch that fits, and the fastest mesh."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gram_jax.errors import RecipeError
from gram_jax.plan.plan import ProgramPlan, plan_training
from gram_jax.plan.programs import PlanRequest
from gram_jax.plan.topology import make_target
from gram_jax.sharding import MESH_AXES
from gram_jax.training.program import memory_saving_changes

logger = logging.getLogger(__name__)

# Cheapest first: nothing, all but products and attention, all but attention, all is recomputed.
REMATS = ("none", "dots", "attention", "full")
WIDEST_AXIS = 8  # of a searched axis
# Rows of one micro-batch on one device, at most a quarter apart: 1, 2, 3, ... 8, 10, 12, 14, 16, 20, ...
SIZES = sorted({1, 2, 3} | {quarters << power for quarters in (4, 5, 6, 7) for power in range(14)})


def what_would_fit(request: PlanRequest, too_large: ProgramPlan) -> str:
    """Advice about a plan that does not fit; compiles every change that it tries."""
    fit = too_large.fit
    if fit.capacity is not None and fit.arguments > fit.capacity:
        return (
            "Weights, optimizer state and batch alone are more than a device has: try more devices under [mesh] fsdp, "
            "smaller types of optimizer state or weights, [lora], or a smaller model"
        )
    for change in memory_saving_changes(request.recipe, request.target.placement):
        if plan_training(request, change).fit.fits:
            texts = {key: f'"{v}"' if isinstance(v, str) else v for key, v in change.items()}
            return f"What would fit: {', '.join(f'{key} = {v}' for key, v in texts.items())}"
    return (
        'Neither more gradient_accumulation_steps nor remat = "full" is enough: try a smaller batch.batch_size, a '
        "shorter batch.max_length, more devices under [mesh] fsdp, [lora], or a smaller model"
    )


def largest_batch(request: PlanRequest) -> tuple[PlanRequest, ProgramPlan] | None:
    """The largest batch_size that fits under full recomputation, then the least recomputation that fits.

    Candidates are SIZES times gradient accumulation steps times batch shards, bisected up to the size of which the
    residual stream alone, which full recomputation keeps at every layer, is more than a device has. None if not even
    the smallest batch fits.
    """
    recipe, placement = request.recipe, request.target.placement
    unit = recipe.batch.gradient_accumulation_steps * placement.batch_shards
    tried: dict[tuple[int, str], tuple[PlanRequest, ProgramPlan]] = {}

    def attempt(at: int, remat: str) -> bool:
        if (at, remat) not in tried:
            batch = replace(recipe.batch, batch_size=unit * SIZES[at])
            execution = replace(recipe.execution, remat=remat)
            changed = replace(request, recipe=replace(recipe, batch=batch, execution=execution))
            tried[at, remat] = changed, plan_training(changed)
            verdict = "fits" if tried[at, remat][1].fit.fits else "does not fit"
            logger.info('batch_size = %d, remat = "%s": %s', unit * SIZES[at], remat, verdict)
        return tried[at, remat][1].fit.fits

    if not attempt(0, "full"):
        return None
    most = _most_rows(request)
    low, high = 0, sum(size <= most for size in SIZES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if attempt(middle, "full") else (low, middle)
    return next(tried[low, remat] for remat in REMATS if attempt(low, remat))


def fastest_meshes(request: PlanRequest, axes: Sequence[str]) -> list[ProgramPlan]:
    """Plans of the same step on every mesh of the topology that the model and the batch allow, the fastest first.

    axes: may have sizes of 1, 2, 4 ... WIDEST_AXIS; fsdp has the remaining devices, other axes 1. The time is that of
    `step_seconds`; plans that do not fit come last.
    """
    topology, mesh = request.target.topology, request.recipe.mesh
    devices = request.target.placement.mesh.size // math.prod(mesh.dcn_sizes.values())
    plans = []
    for sizes in _meshes(devices, axes):
        recipe = replace(request.recipe, mesh=replace(mesh, **sizes))
        try:
            target = make_target(topology, recipe)
            plan = plan_training(replace(request, recipe=recipe, target=target))
        except RecipeError as error:
            logger.info("%s: %s", sizes, str(error).splitlines()[0])
            continue
        plans.append(plan)
    return sorted(plans, key=lambda plan: (not plan.fit.fits, step_seconds(plan) or 0.0))


def step_seconds(plan: ProgramPlan) -> float | None:
    """The forecast if no collective is hidden; without an estimate the largest bound, None if there is none."""
    if plan.estimate is not None:
        return plan.estimate.forecast[1]
    return plan.seconds[plan.bound] if plan.bound else None


def _meshes(devices: int, axes: Sequence[str]) -> Iterator[dict[str, int]]:
    powers = [2**n for n in range(WIDEST_AXIS.bit_length())]
    for chosen in itertools.product(powers, repeat=len(axes)):
        if devices % math.prod(chosen) == 0:
            rest = {"fsdp": devices // math.prod(chosen)}
            yield dict.fromkeys(MESH_AXES, 1) | rest | dict(zip(axes, chosen, strict=True))


def _most_rows(request: PlanRequest) -> int:
    """Upper bound of the rows of one micro-batch on one device."""
    recipe, cfg, target = request.recipe, request.cfg, request.target
    width = 2 if recipe.execution.compute_dtype == "bfloat16" else 4
    row = cfg.layers * recipe.batch.max_length * cfg.embed_size * width
    row //= target.placement.mesh.shape["sequence"]
    return SIZES[-1] if target.capacity is None else target.capacity // row
