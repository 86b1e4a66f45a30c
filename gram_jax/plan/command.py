"""`gram-jax plan`: from options to a plan and advice."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from gram_jax.errors import CheckpointError, RecipeError
from gram_jax.files import read_json
from gram_jax.interop.hf_config import config_from_hf
from gram_jax.interop.hf_files import CONFIG
from gram_jax.interop.models import model_config
from gram_jax.model.config import ModelConfig
from gram_jax.model.quantize import Weights
from gram_jax.plan.models import PUBLISHED, published_config
from gram_jax.plan.plan import ProgramPlan, make_plan, plan_training
from gram_jax.plan.programs import PlanRequest, scoring_program
from gram_jax.plan.report import does_not_fit, mesh_line
from gram_jax.plan.search import fastest_meshes, largest_batch, what_would_fit
from gram_jax.plan.topology import Topology, make_target
from gram_jax.recipes.tables import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanOptions:
    """model_config: a config.json or a published shape. score: plan scoring, of `pairs` pairs in a call, with weights
    in the format `weights`. slots: number of examples that a packed row may hold. search: for the largest batch.
    search_mesh: for the fastest sizes of these axes. advise: look for changes that would fit.
    """

    model_config: str | None = None
    score: bool = False
    pairs: int | None = None
    weights: Weights = "auto"
    slots: int | None = None
    search: bool = False
    search_mesh: tuple[str, ...] = ()
    advise: bool = False


def run_plan(
    recipe: Recipe, topology: Topology, options: PlanOptions
) -> tuple[ProgramPlan, str | None]:
    """The plan and advice about it, if any. Raises RecipeError for options that contradict the program."""
    if options.score and (options.search or options.search_mesh):
        raise RecipeError("--search and --search-mesh plan training: leave out --score")
    if options.search and options.search_mesh:
        raise RecipeError(
            "--search changes the batch and --search-mesh compares meshes at one batch: give one of them"
        )
    if options.pairs is not None and not options.score:
        raise RecipeError("--pairs applies to a scoring call: add --score")
    if options.weights != "auto" and not options.score:
        raise RecipeError(
            f"--weights {options.weights} applies to a scoring call: add --score. Training has model.param_dtype"
        )
    unpacked = recipe.stage == "pretrain" or not recipe.batch.packing
    if options.slots is not None and (options.score or unpacked):
        raise RecipeError(
            f"--slots {options.slots} needs packed rows of verdicts or rankings: leave it out with --score, with stage "
            "pretrain, which has a target at every position, and with batch.packing = false"
        )
    absent_gpu = topology.chip is not None and topology.chip.platform == "cuda"
    if absent_gpu and recipe.execution.attention in ("auto", "cudnn"):
        logger.warning("cuDNN needs the GPU itself: the plan uses attention = blocked instead")
        recipe = replace(recipe, execution=replace(recipe.execution, attention="blocked"))
    cfg = (
        _recipe_config(recipe)
        if options.model_config is None
        else named_config(options.model_config)
    )
    request = PlanRequest(recipe, cfg, make_target(topology, recipe), options.slots)
    if options.score:
        program = scoring_program(request, pairs=options.pairs, weights=options.weights)
        return make_plan(program, request.target), None
    if options.search and (found := largest_batch(request)) is not None:
        chosen, plan = found[0].recipe, found[1]
        return plan, (
            f"Largest that fits, within a quarter: --set batch.batch_size={chosen.batch.batch_size} "
            f"--set execution.remat={chosen.execution.remat}"
        )
    if options.search_mesh:
        plans = fastest_meshes(request, options.search_mesh)
        if not plans:
            raise RecipeError("--search-mesh: no mesh divides the model and the batch")
        return plans[0], "\n".join(["Meshes, the fastest first:", *map(mesh_line, plans)])
    plan = plan_training(request)
    if options.search:
        return plan, "Not even the smallest batch fits with everything recomputed"
    if plan.fit.fits or not options.advise:
        return plan, None
    logger.info("%s; looking for changes that would fit", does_not_fit(plan.fit))
    return plan, what_would_fit(request, plan)


def _recipe_config(recipe: Recipe) -> ModelConfig:
    """The shape of the recipe's model, which may be a published name."""
    start = recipe.model.name_or_path
    if (known := published_config(start)) is not None and not Path(start).exists():
        return known
    try:
        return model_config(start)
    except CheckpointError as error:
        why = str(error).splitlines()[0]
        raise RecipeError(
            f"the model's shape cannot be read: model.name_or_path = {why}\nGive --model-config: a config.json, or one "
            f"of {', '.join(PUBLISHED)}"
        ) from error


def named_config(named: str) -> ModelConfig:
    """The shape of a config.json (or its folder), or a published one. Raises RecipeError if it is neither."""
    path = Path(named)
    if path.is_dir():
        path = path / CONFIG
    if path.is_file():
        return config_from_hf(read_json(path))
    if (known := published_config(named)) is not None:
        return known
    raise RecipeError(
        f"--model-config {named}: expected a config.json, a folder with one, or one of "
        f"{', '.join(PUBLISHED)}"
    )
