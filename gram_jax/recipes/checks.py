"""Checks across the keys of a recipe: values that contradict each other, and keys that another value requires."""

from collections.abc import Iterator

from gram_jax.errors import RecipeError, nearest_multiple
from gram_jax.model.attention.choice import AttentionTask, refusals
from gram_jax.recipes.rl import RlRecipe
from gram_jax.recipes.tables import AdapterConfig, CheckpointConfig, Recipe, Stage

# Keys of certain stages only. They are required there, except attack_share, which has a default.
STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "loss.loss_chunk_size": ("pretrain",),
    "loss.label_smoothing": ("finetune",),
    "data.position_augmentation": ("pretrain", "finetune"),
    "data.attack_share": ("finetune",),
}

# Below this learning rate Adam's updates are lost in the rounding of bf16 weights: at 1e-5 a judge
# did not learn.
LEAST_BF16_LEARNING_RATE = 1e-4


def check_recipe(recipe: Recipe) -> Iterator[str]:
    """One line for each contradiction in a training recipe."""
    yield from _length(recipe)
    yield from _stage(recipe)
    yield from _optimizer(recipe)
    if recipe.judge.labels is None and recipe.judge.template != "from-dataset":
        yield '[judge] labels is missing: expected two such as ["A", "B"] (only "from-dataset" has its own)'
    if recipe.data.attack_share and recipe.data.overlong == "error":
        yield (
            '[data] attack_share lengthens pairs beyond judge.max_length, and overlong = "error" rejects these: '
            'use "truncate" or "drop"'
        )
    if recipe.evaluate.eval_steps and not recipe.data.valid:
        yield f"[evaluate] eval_steps = {recipe.evaluate.eval_steps}: data.valid is missing"
    if problem := check_saves(recipe.checkpoint):
        yield problem
    yield from _lora(recipe.lora)
    yield from _devices(recipe)


def check_rl_recipe(recipe: RlRecipe) -> Iterator[str]:
    """One line for each contradiction in an RL recipe."""
    sampling, algorithm, reward = recipe.sampling, recipe.algorithm, recipe.reward
    if sampling.num_generations < 2:
        alone = f"[sampling] num_generations = {sampling.num_generations}: expected at least 2 for"
        if algorithm.kind != "ppo":
            yield f'{alone} [algorithm] kind = "{algorithm.kind}", whose baseline is the group'
        if reward.compare_with in ("group", "neighbors"):
            yield f'{alone} [reward] compare_with = "{reward.compare_with}"'
        if reward.scale == "normalized":
            yield f'{alone} [reward] scale = "normalized", which is 0 for a group of 1'
    if reward.references and reward.compare_with != "reference":
        yield f'[reward] references are for compare_with = "reference", found "{reward.compare_with}"'
    if algorithm.kl_target and (algorithm.kind == "grpo" or not algorithm.kl_coef):
        yield (
            f"[algorithm] kl_target = {algorithm.kl_target}: expected ppo or rloo, and a kl_coef above 0; "
            f"found {algorithm.kind} and kl_coef = {algorithm.kl_coef}"
        )
    if problem := check_saves(recipe.checkpoint):
        yield problem
    yield from _lora(recipe.lora)
    unit = algorithm.num_mini_batches * algorithm.gradient_accumulation_steps
    if recipe.rows % unit:
        yield (
            f"[algorithm] num_mini_batches = {algorithm.num_mini_batches} x gradient_accumulation_steps = "
            f"{algorithm.gradient_accumulation_steps} do not divide the {recipe.rows} responses of a step"
        )


def _lora(lora: AdapterConfig | None) -> Iterator[str]:
    if lora is not None:
        try:
            _ = lora.config
        except RecipeError as error:
            yield f"[lora] {error}"


def _length(recipe: Recipe) -> Iterator[str]:
    run = recipe.run
    if (run.max_steps is None) == (run.num_train_epochs is None):
        found = "both" if run.max_steps is not None else "neither"
        yield f"[run] expected exactly one of max_steps and num_train_epochs; found {found}"


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


def _optimizer(recipe: Recipe) -> Iterator[str]:
    optimizer, steps = recipe.optimizer, recipe.run.max_steps
    if optimizer.warmup_steps >= 1 and optimizer.warmup_steps != int(optimizer.warmup_steps):
        yield (
            f"[optimizer] warmup_steps = {optimizer.warmup_steps}: expected a ratio below 1 or a whole number of steps"
        )
    if steps is not None and optimizer.warmup_steps >= max(steps, 1):
        yield f"[optimizer] warmup_steps = {optimizer.warmup_steps:g} is not less than run.max_steps = {steps}"
    if (
        recipe.model.param_dtype == "bfloat16"
        and optimizer.learning_rate < LEAST_BF16_LEARNING_RATE
    ):
        yield (
            f'[model] param_dtype = "bfloat16" with learning_rate = {optimizer.learning_rate:g}: such '
            'small updates are lost in bfloat16. Use param_dtype = "float32" (compute_dtype may stay bfloat16) or '
            f"a learning rate of at least {LEAST_BF16_LEARNING_RATE:g}"
        )


def _devices(recipe: Recipe) -> Iterator[str]:
    """The mesh; if it is valid, the batch size and the attention back end on it."""
    sizes, attention = recipe.mesh.sizes, recipe.execution.attention
    if bad := {axis: size for axis, size in sizes.items() if size < 1 and size != -1}:
        yield f"[mesh] {bad}: expected sizes of at least 1, or -1 for the remaining devices"
        return
    if list(sizes.values()).count(-1) > 1:
        free = ", ".join(axis for axis, size in sizes.items() if size == -1)
        yield f"[mesh] {free}: at most one size may be -1"
        return
    whole = recipe.mesh.whole
    shards = (whole["data"] or 1) * (whole["fsdp"] or 1)
    if problem := check_rows(
        recipe.batch.batch_size, recipe.batch.gradient_accumulation_steps, shards
    ):
        yield problem
    for problem in refusals(attention, _attention_task(recipe)):
        yield f'[execution] attention = "{attention}": {problem}'


def _attention_task(recipe: Recipe) -> AttentionTask:
    """The attention task as far as the recipe states it, before model and devices are known."""
    sizes = recipe.mesh.whole
    return AttentionTask(
        packed=recipe.packed,
        length=recipe.batch.max_length,
        compute_dtype=recipe.execution.compute_dtype,
        sequence=sizes["sequence"],
        tensor=sizes["tensor"],
    )


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


def check_saves(saves: CheckpointConfig) -> str | None:
    """An error message if steps are to be kept that are not saved, else None."""
    if not saves.keep_period or (saves.save_steps and saves.keep_period % saves.save_steps == 0):
        return None
    found = (
        f"save_steps = {saves.save_steps}"
        if saves.save_steps
        else "save_steps = 0 (only the last step is saved)"
    )
    return (
        f"[checkpoint] keep_period = {saves.keep_period}: expected a multiple of save_steps, since only "
        f"these steps are saved; found {found}"
    )
