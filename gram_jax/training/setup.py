"""Set up a run before its weights are loaded: judge, examples, number of steps, optimizer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optax

from gram_jax import tree
from gram_jax.data.batches import BatchPlan
from gram_jax.data.examples import Examples
from gram_jax.data.overlap import count_overlap
from gram_jax.data.reading import check_source
from gram_jax.distributed.collectives import assert_equal, broadcast_object
from gram_jax.errors import DataError, RecipeError
from gram_jax.interop.models import load_spec, load_tokenizer, model_config
from gram_jax.interop.resolve import pin_step
from gram_jax.judge.spec import JudgeSpec, check_tokenizer
from gram_jax.model.attention import backend_of
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_specs
from gram_jax.progress import ProgressFactory, log_time, no_progress
from gram_jax.recipes.checks import check_rows
from gram_jax.recipes.tables import Recipe
from gram_jax.run.directory import (
    RunDirectory,
    check_same_data,
    check_same_judge,
    differing_fields,
)
from gram_jax.run.metrics import check_writers
from gram_jax.sharding import Placement, check_divides
from gram_jax.training.examples import training_examples, training_records
from gram_jax.training.optimizer import make_optimizer
from gram_jax.training.program import make_execution
from gram_jax.training.stages import (
    judge_spec,
    pair_kind,
    read_pairs,
    stage_examples,
    trained_specs,
)
from gram_jax.training.state import TrainState, abstract_state
from gram_jax.tree import Tree

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSetup:
    """A run before its weights are loaded.

    start: name of the model that the run began with, with a step if it is a run, which may continue. examples:
    fingerprint of the training data. specs, abstract: of the trained weights and of the state.
    """

    recipe: Recipe
    placement: Placement
    start: str
    cfg: ModelConfig
    tokenizer: Any
    spec: JudgeSpec
    plan: BatchPlan
    valid_plan: BatchPlan | None
    valid_records: list[Any]
    steps: int
    examples: str
    specs: Tree
    optimizer: optax.GradientTransformation
    abstract: TrainState


def set_up(
    recipe: Recipe,
    directory: RunDirectory,
    placement: Placement,
    *,
    progress: ProgressFactory = no_progress,
) -> TrainSetup:
    """Check what needs no data, make the examples, count the steps, build the optimizer.

    Raises RecipeError or JudgeError if the run in the directory began with other data or another judge.
    """
    batch = recipe.batch
    if problem := check_rows(
        batch.batch_size, batch.gradient_accumulation_steps, placement.batch_shards
    ):
        raise RecipeError(problem)
    check_writers(tensorboard=recipe.log.tensorboard, wandb=recipe.log.wandb)
    found = directory.info.get("start") or pin_step(recipe.model.name_or_path)
    start = broadcast_object(found)  # a run may save a step while the processes look
    cfg, tokenizer, spec = _judge(recipe)
    if recipe.stage == "bradley_terry" and cfg.head in ("labels", "margin"):
        raise RecipeError(
            f"{recipe.model.name_or_path} is a classifier of verdicts (head {cfg.head!r}); stage bradley_terry trains "
            "a scalar head: start from the language model that it was made from, or from a scalar reward model"
        )
    check_divides(tree.flatten(param_specs(cfg)), placement)
    execution = make_execution(recipe, placement, recipe.execution.remat)
    backend = backend_of(execution, cfg, batch.max_length)  # raises if there is none
    if recipe.execution.attention == "auto":
        logger.info("attention: %s", backend)
    check_same_judge(directory, spec)
    specs = trained_specs(recipe, cfg)
    if recipe.run.max_steps is not None:
        make_optimizer(recipe.optimizer, recipe.run.max_steps, specs)  # raises for its values
    for source in (*recipe.data.train, *recipe.data.valid):
        check_source(source, pair_kind(recipe), schema=recipe.data.schema, map=recipe.data.map)
    with log_time(logger, "read and encode the data"):
        training = training_examples(recipe, tokenizer, spec, progress=progress)
        valid_records, valid_plan = _held_out(recipe, tokenizer, spec, placement)
        _check_overlap(recipe, valid_records)
    with log_time(logger, "pack the first epoch"):
        plan = _batches(recipe, training, batch.batch_size, passes=recipe.data.passes)
        report = plan.report()
    logger.info("%s", report.to_text())
    epochs = recipe.run.num_train_epochs
    steps = plan.steps(epochs) if epochs is not None else recipe.run.max_steps
    assert steps is not None  # a recipe has one of the two
    examples = training.fingerprint()
    assert_equal("set of training examples", [steps, examples, spec.hash])
    check_same_data(directory, steps=steps, examples=examples)
    optimizer = make_optimizer(recipe.optimizer, steps, specs)
    return TrainSetup(
        recipe=recipe,
        placement=placement,
        start=start,
        cfg=cfg,
        tokenizer=tokenizer,
        spec=spec,
        plan=plan,
        valid_plan=valid_plan,
        valid_records=valid_records,
        steps=steps,
        examples=examples,
        specs=specs,
        optimizer=optimizer,
        abstract=abstract_state(specs, optimizer, placement, recipe.model.param_dtype),
    )


def prepare_data(recipe: Recipe, *, progress: ProgressFactory = no_progress) -> BatchPlan:
    """Encode the training data, into the token cache unless they are small, and plan their batches. Uses no device."""
    _, tokenizer, spec = _judge(recipe)
    examples = training_examples(recipe, tokenizer, spec, progress=progress)
    return _batches(recipe, examples, recipe.batch.batch_size, passes=recipe.data.passes)


def _check_overlap(recipe: Recipe, held_out: Sequence[Any]) -> None:
    """Raises DataError if more of the evaluation pairs are training pairs than the recipe allows."""
    if not held_out:
        return
    shared = count_overlap(training_records(recipe).as_read(), held_out)
    if not shared:
        return
    share, most = shared / len(held_out), recipe.data.max_overlap
    text = (
        f"{shared:,} of the {len(held_out):,} pairs of data.valid ({share:.2%}) are in data.train"
    )
    if share > most:
        raise DataError(
            f"{text}: expected at most a share of {most:g}. Leave them out, or raise data.max_overlap"
        )
    logger.warning("%s", text)


def _batches(
    recipe: Recipe,
    examples: Examples,
    batch_size: int,
    *,
    passes: Mapping[str, float] | None = None,
) -> BatchPlan:
    batch = recipe.batch
    return BatchPlan(
        examples,
        batch_size=batch_size,
        max_length=batch.max_length,
        seed=recipe.run.seed,
        packing=batch.packing,
        passes=passes,
        together=recipe.loss.order_consistency > 0,
    )


def _judge(recipe: Recipe) -> tuple[ModelConfig, Any, JudgeSpec]:
    """Config and tokenizer of the start, and the recipe's judge on that tokenizer."""
    start = recipe.model.name_or_path
    cfg, tokenizer = model_config(start), load_tokenizer(start)
    spec, before = judge_spec(recipe, tokenizer), load_spec(start)
    if spec.max_length > cfg.context_length:
        raise RecipeError(
            f"judge.max_length = {spec.max_length} is more than the {cfg.context_length} positions of {start}"
        )
    if before is not None:
        check_tokenizer(before, tokenizer)
        if before.hash != spec.hash:
            logger.warning(
                "the judge of this recipe differs from that of %s in %s; the run takes the recipe's",
                start,
                ", ".join(differing_fields(before, spec)),
            )
    return cfg, tokenizer, spec


def _held_out(
    recipe: Recipe, tokenizer: Any, spec: JudgeSpec, placement: Placement
) -> tuple[list[Any], BatchPlan | None]:
    if not recipe.data.valid:
        return [], None
    records, report = read_pairs(recipe, recipe.data.valid, recipe.evaluate.limit)
    examples = stage_examples(recipe, records, report, tokenizer, spec)
    # As many rows as a micro-batch of training, which is known to fit.
    batch, unit = recipe.batch, 1 if examples.together else examples.per_unit
    rows = max(batch.batch_size // batch.gradient_accumulation_steps, placement.batch_shards)
    rows = rows if rows % unit == 0 else rows * unit
    return records, _batches(recipe, examples, rows)
