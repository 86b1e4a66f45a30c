"""Checks across the tables of a recipe: values that contradict each other, and keys that another value requires."""

from collections.abc import Iterator

from gram_jax.data.examples import Stage
from gram_jax.errors import RecipeError, nearest_multiple
from gram_jax.files import check_local
from gram_jax.model.attention.choice import AttentionTask, refusals
from gram_jax.recipes.rl import RlRecipe
from gram_jax.recipes.tables import BaseModelConfig, OptimizerConfig, Recipe

# Keys of certain stages only. They are required there, except those with a default.
STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "loss.loss_chunk_size": ("pretrain", "rationale"),
    "loss.label_smoothing": ("finetune", "rationale"),
    "loss.order_consistency": ("finetune",),
    "loss.verdict_weight": ("rationale",),
    "loss.rationale_weight": ("rationale",),
    "judge.rationale": ("rationale",),
    "data.position_augmentation": ("pretrain", "finetune", "rationale"),
    "data.attack_share": ("finetune",),
    "data.pretraining_layout": ("pretrain",),
}

# Keys of [reward] kind = "judge". With kind = "label" the judge's own specification renders the prompt.
JUDGE_KEYS = {
    "reward": ("compare_with", "references", "scale", "length_penalty", "num_devices"),
    "policy": ("system",),
}

# At a smaller learning rate, Adam's updates are lost in the rounding of bf16 weights: at 1e-5 a judge did not learn.
LEAST_BF16_LEARNING_RATE = 1e-4


def check_recipe(recipe: Recipe) -> Iterator[str]:
    """One line for each contradiction in a training recipe."""
    check_local(recipe.run.output_dir, "run.output_dir", RecipeError)
    check_local(recipe.data.cache_dir or "", "data.cache_dir", RecipeError)
    yield from _stage(recipe)
    warmup, steps = recipe.optimizer.warmup_steps, recipe.run.max_steps
    if steps is not None and warmup >= steps:
        yield f"[optimizer] warmup_steps = {warmup:g} is not less than run.max_steps = {steps}"
    yield from _master_weights("model", recipe.model, recipe.optimizer)
    if recipe.stage == "rationale" and recipe.data.position_augmentation == "both":
        yield '[data] position_augmentation = "both": a rationale is of one order, use "hash" or "fixed"'
    if recipe.judge.labels is None and recipe.judge.template != "from-dataset":
        yield '[judge] labels is missing: expected two labels such as ["A", "B"] (only "from-dataset" has its own)'
    if recipe.data.attack_share and recipe.data.overlong == "error":
        yield (
            '[data] attack_share lengthens pairs beyond judge.max_length, and overlong = "error" rejects these: '
            'use "truncate" or "drop"'
        )
    if recipe.loss.order_consistency and recipe.data.position_augmentation != "both":
        yield '[loss] order_consistency compares both orders of a pair: data.position_augmentation = "both" is required'
    if recipe.loss.order_consistency and recipe.data.attack_share:
        yield "[loss] order_consistency allows pairs without labels, data.attack_share needs labels: use one of them"
    if any(source.weight != 1 for source in recipe.data.valid):
        yield "[data] valid: a weight is not used by evaluation sources: remove it"
    if recipe.evaluate.eval_steps and not recipe.data.valid:
        yield f"[evaluate] eval_steps = {recipe.evaluate.eval_steps}: data.valid is missing"
    yield from _devices(recipe)


def check_rl_recipe(recipe: RlRecipe) -> Iterator[str]:
    """One line for each contradiction in an RL recipe."""
    check_local(recipe.run.output_dir, "run.output_dir", RecipeError)
    sampling, algorithm, reward = recipe.sampling, recipe.algorithm, recipe.reward
    if sampling.num_generations < 2:
        alone = f"[sampling] num_generations = {sampling.num_generations}: expected at least 2 for"
        if algorithm.kind != "ppo":
            yield f'{alone} [algorithm] kind = "{algorithm.kind}", whose baseline is the group'
        if reward.compare_with in ("group", "neighbors"):
            yield f'{alone} [reward] compare_with = "{reward.compare_with}"'
        if reward.scale == "normalized":
            yield f'{alone} [reward] scale = "normalized", which is 0 for a group of 1'
    unit = algorithm.num_mini_batches * algorithm.gradient_accumulation_steps
    if recipe.rows % unit:
        yield (
            f"[algorithm] num_mini_batches = {algorithm.num_mini_batches} x gradient_accumulation_steps = "
            f"{algorithm.gradient_accumulation_steps} do not divide the {recipe.rows} responses of a step"
        )

    yield from _master_weights("policy", recipe.policy, recipe.optimizer)
    if reward.kind == "label":
        yield from _judge_keys(recipe)


def _judge_keys(recipe: RlRecipe) -> Iterator[str]:
    """Keys of a reward of kind "judge", which kind "label" does not use."""
    for table, names in JUDGE_KEYS.items():
        found = getattr(recipe, table)
        for name in names:
            if getattr(found, name) != type(found).__dataclass_fields__[name].default:
                yield f'[{table}] {name} is not used by [reward] kind = "label": remove it'


def _stage(recipe: Recipe) -> Iterator[str]:
    """Keys that this stage requires, and keys that it does not use."""
    for key, stages in STAGES_OF.items():
        section, name = key.split(".")
        table = getattr(recipe, section)
        default = type(table).__dataclass_fields__[name].default
        given = getattr(table, name) != default
        if recipe.stage in stages and not given and default is None:
            yield f'[{section}] {name} is missing: stage "{recipe.stage}" requires it'
        if given and recipe.stage not in stages:
            yield f'[{section}] {name} is not used by stage "{recipe.stage}": remove it'


def _master_weights(
    table: str, model: BaseModelConfig, optimizer: OptimizerConfig
) -> Iterator[str]:
    rate = optimizer.learning_rate
    if model.param_dtype == "bfloat16" and rate < LEAST_BF16_LEARNING_RATE:
        yield (
            f'[{table}] param_dtype = "bfloat16" with learning_rate = {rate:g}: such small updates are lost in '
            'bfloat16. Use param_dtype = "float32" (compute_dtype may stay bfloat16) or a learning rate of at least '
            f"{LEAST_BF16_LEARNING_RATE:g}"
        )


def _devices(recipe: Recipe) -> Iterator[str]:
    """The batch size and the attention back end on the mesh, as far as these are known before devices and model are."""
    sizes, batch, execution = recipe.mesh.whole, recipe.batch, recipe.execution
    shards = (sizes["data"] or 1) * (sizes["fsdp"] or 1)
    if problem := check_rows(batch.batch_size, batch.gradient_accumulation_steps, shards):
        yield problem
    task = AttentionTask(
        packed=recipe.packed,
        length=batch.max_length,
        compute_dtype=execution.compute_dtype,
        sequence=sizes["sequence"],
        tensor=sizes["tensor"],
    )
    for problem in refusals(execution.attention, task):
        yield f'[execution] attention = "{execution.attention}": {problem}'


def check_rows(rows: int, microbatches: int, shards: int) -> str | None:
    """An error message if the rows do not divide evenly into microbatches and batch shards, else None.

    >>> check_rows(8, 2, 2)
    >>> print(check_rows(10, 2, 2).split(": ")[1])
    the nearest valid sizes are 8 and 12
    """
    unit = microbatches * shards
    if rows % unit == 0:
        return None
    return (
        f"batch.batch_size = {rows} is not a multiple of {unit} ({microbatches} microbatches x {shards} "
        f"batch shards): {nearest_multiple(rows, unit)}"
    )
