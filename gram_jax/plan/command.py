"""`gram-jax plan`: from what was asked to a plan that is printed."""

import dataclasses
import json
from pathlib import Path

from gram_jax.console import Console
from gram_jax.errors import CheckpointError, RecipeError
from gram_jax.interop.hf_config import config_from_hf
from gram_jax.interop.hf_files import CONFIG, read_json
from gram_jax.interop.models import model_config as config_of_model
from gram_jax.model.config import ModelConfig
from gram_jax.plan.models import PUBLISHED, published_config
from gram_jax.plan.planning import make_target, plan_scoring, plan_training
from gram_jax.plan.report import does_not_fit, plan_values, say_plan
from gram_jax.plan.search import largest_batch, what_would_fit
from gram_jax.plan.topology import Topology
from gram_jax.recipes.tables import Recipe


def run_plan(
    recipe: Recipe,
    topology: Topology,
    *,
    model_config: str | None,
    score: bool,
    pairs: int | None,
    slots: int | None,
    search: bool,
    advise: bool,
    as_json: bool,
) -> bool:
    """Make and print one plan; whether it fits. Progress goes to stderr."""
    if search and score:
        raise RecipeError("--search looks for batch.batch_size of training: leave --score out")
    if pairs is not None and not score:
        raise RecipeError("--pairs is of a scoring call: give --score with it")
    if slots is not None and (score or recipe.stage == "pretrain" or not recipe.batch.packing):
        raise RecipeError(
            f"--slots {slots} is of packed rows in training the judge or the baseline: leave it out with "
            "--score, with stage write, which has a target at every position, and with batch.packing = false"
        )
    console, progress = Console(quiet=as_json), Console(stderr=True)
    cfg, target = find_config(recipe, model_config), make_target(topology, recipe)
    absent_gpu = topology.chip is not None and topology.chip.platform == "cuda"
    if absent_gpu and recipe.execution.attention in ("auto", "cudnn"):
        progress.warn("cuDNN asks the GPU itself: the plan takes attention = blocked in its place")
        execution = dataclasses.replace(recipe.execution, attention="blocked")
        recipe = dataclasses.replace(recipe, execution=execution)
    advice = None
    if search:
        found = largest_batch(recipe, cfg, target, progress.say, slots=slots)
        if found is None:
            plan = plan_training(recipe, cfg, target, slots=slots)
            advice = "Not even the smallest batch fits with everything recomputed"
        else:
            chosen, plan = found
            advice = (
                f"Largest that fits, within a quarter: --set batch.batch_size={chosen.batch.batch_size} "
                f"--set execution.remat={chosen.execution.remat}"
            )
    elif score:
        plan = plan_scoring(recipe, cfg, target, pairs=pairs)
    else:
        plan = plan_training(recipe, cfg, target, slots=slots)
        if advise and not plan.fit.fits:
            progress.say(f"{does_not_fit(plan.fit)}; looking for what would")
            advice = what_would_fit(recipe, cfg, target, plan, slots=slots)
    say_plan(plan, console)
    if as_json:
        print(json.dumps(plan_values(plan) | {"advice": advice}, indent=2))
    elif advice:
        console.say(advice)
    return plan.fit.fits


def find_config(recipe: Recipe, named: str | None) -> ModelConfig:
    """The model's shape: of a config.json (or its folder), a published name, or the recipe's start."""
    if named is not None:
        return named_config(named)
    start = recipe.model.name_or_path
    if (known := published_config(start)) is not None and not Path(start).exists():
        return known
    try:
        return config_of_model(start)
    except CheckpointError as error:
        raise RecipeError(
            f"model.name_or_path = {start!r} is not there to read the model's shape from ({error}). Give "
            f"--model-config: a config.json, or one of {', '.join(PUBLISHED)}"
        ) from error


def named_config(named: str) -> ModelConfig:
    """The shape of a config.json (or its folder), or a published one. Raises RecipeError where it is neither."""
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
