"""What is settled before a run's weights are there: the judge, the examples, the number of steps, the optimizer."""

from dataclasses import dataclass
from typing import Any

import optax

from gram_jax import tree
from gram_jax.attacks.augment import with_attacks
from gram_jax.console import Console
from gram_jax.data.batches import BatchPlan, make_batches
from gram_jax.data.examples import Examples
from gram_jax.distributed.collectives import assert_equal
from gram_jax.errors import RecipeError
from gram_jax.interop.models import load_spec, load_tokenizer, model_config
from gram_jax.judge.spec import JudgeSpec, check_tokenizer
from gram_jax.model.attention import backend_of
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_specs
from gram_jax.recipes.checks import check_rows
from gram_jax.recipes.tables import Recipe
from gram_jax.run.directory import (
    RunFolder,
    check_same_run,
    differing_fields,
    examples_fingerprint,
)
from gram_jax.run.metrics import check_wandb
from gram_jax.sharding import Placement, check_divides
from gram_jax.training.evaluation import evaluation_rows
from gram_jax.training.optimizer import make_optimizer
from gram_jax.training.program import make_execution
from gram_jax.training.stages import judge_spec, make_examples, read_pairs, trained_specs
from gram_jax.training.state import TrainState, abstract_state
from gram_jax.tree import Tree


@dataclass(frozen=True)
class Job:
    """Everything of a run that is settled before its weights are there."""

    recipe: Recipe
    folder: RunFolder
    placement: Placement
    cfg: ModelConfig
    tokenizer: Any
    spec: JudgeSpec
    plan: BatchPlan
    valid_plan: BatchPlan | None
    valid_records: list[Any]
    steps: int
    specs: Tree  # of the trained weights
    optimizer: optax.GradientTransformation
    abstract: TrainState


def prepare(recipe: Recipe, folder: RunFolder, placement: Placement, console: Console) -> Job:
    """Tokenizer and judge checked, examples made, steps counted, optimizer and schedule built."""
    batch = recipe.batch
    if problem := check_rows(
        batch.batch_size, batch.gradient_accumulation_steps, placement.batch_shards
    ):
        raise RecipeError(problem)
    if recipe.log.wandb:
        check_wandb()
    cfg, tokenizer, spec = _judge(recipe, console)
    check_divides(tree.flatten(param_specs(cfg)), placement)
    execution = make_execution(recipe, placement, recipe.execution.remat)
    backend = backend_of(execution, cfg, batch.max_length)  # refuses what it cannot do
    if recipe.execution.attention == "auto":
        console.say(f"attention: {backend}")
    with console.timed("read and encode the data"):
        plan = make_batches(
            training_examples(recipe, tokenizer, spec, console),
            rows=batch.batch_size,
            length=batch.max_length,
            seed=recipe.run.seed,
            pack=batch.packing,
        )
        steps = recipe.run.max_steps
        if steps is None:
            assert (
                recipe.run.num_train_epochs is not None
            )  # reading a recipe has made sure of one of the two
            steps = plan.steps(recipe.run.num_train_epochs)
        valid_records, valid_plan = _held_out(recipe, tokenizer, spec, placement)
    console.say(plan.report().to_text())
    examples = examples_fingerprint(plan.examples)
    assert_equal("set of training examples", [steps, examples, spec.hash])
    check_same_run(folder, steps, examples, spec)
    specs = trained_specs(recipe, cfg)
    optimizer = make_optimizer(recipe.optimizer, steps, specs)
    abstract = abstract_state(specs, optimizer, placement, recipe.model.param_dtype)
    return Job(
        recipe,
        folder,
        placement,
        cfg,
        tokenizer,
        spec,
        plan,
        valid_plan,
        valid_records,
        steps,
        specs,
        optimizer,
        abstract,
    )


def training_examples(
    recipe: Recipe, tokenizer: Any, spec: JudgeSpec, console: Console
) -> Examples:
    """Of data.train, with the recipe's share of attacks among them."""
    records, report = read_pairs(recipe, recipe.data.train, recipe.data.limit)
    if share := recipe.data.attack_share:
        plain = records
        records = with_attacks(plain, spec, share=share, seed=recipe.run.seed)
        count = sum(a is not b for a, b in zip(plain, records, strict=True))
        console.say(f"attacks: in place of {count:,} of {len(plain):,} rejected responses")
    return make_examples(recipe, records, report, tokenizer, spec)


def _judge(recipe: Recipe, console: Console) -> tuple[ModelConfig, Any, JudgeSpec]:
    """Config and tokenizer of the start, and the judge that the recipe asks for on them."""
    start = recipe.model.name_or_path
    cfg, tokenizer = model_config(start), load_tokenizer(start)
    spec, before = judge_spec(recipe, tokenizer), load_spec(start)
    if spec.max_length > cfg.context_length:
        raise RecipeError(
            f"judge.max_length = {spec.max_length} is more than the {cfg.context_length} positions "
            f"that {start} was made for"
        )
    if before is not None:
        check_tokenizer(before, tokenizer)
        if before.hash != spec.hash:
            console.warn(
                f"the judge of this recipe differs from that of {start} in "
                f"{', '.join(differing_fields(before, spec))}; training sets the recipe's"
            )
    return cfg, tokenizer, spec


def _held_out(
    recipe: Recipe, tokenizer: Any, spec: JudgeSpec, placement: Placement
) -> tuple[list[Any], BatchPlan | None]:
    if not recipe.data.valid:
        return [], None
    records, report = read_pairs(recipe, recipe.data.valid, recipe.evaluate.limit)
    examples = make_examples(recipe, records, report, tokenizer, spec)
    batch, shards = recipe.batch, placement.batch_shards
    per_unit = 1 if examples.together else examples.per_unit
    plan = make_batches(
        examples,
        rows=evaluation_rows(batch.batch_size, batch.gradient_accumulation_steps, shards, per_unit),
        length=batch.max_length,
        seed=recipe.run.seed,
        pack=batch.packing,
    )
    return records, plan
