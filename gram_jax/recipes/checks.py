"""What no single value of a recipe shows: values that contradict each other, or that another one needs."""

from collections.abc import Iterator

from gram_jax.errors import RecipeError, nearest_multiple
from gram_jax.model.attention.choice import AttentionTask, refusals
from gram_jax.recipes.tables import CheckpointConfig, Recipe, Stage

# Keys that mean nothing in the other stages; all but attack_share, which has a default, are required in theirs.
STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "loss.loss_chunk_size": ("pretrain",),
    "loss.label_smoothing": ("finetune",),
    "data.position_augmentation": ("pretrain", "finetune"),
    "data.attack_share": ("finetune",),
}

# Below this learning rate Adam's steps vanish in the rounding of bf16 weights: at 1e-5 a judge
# learned nothing.
LEAST_BF16_LEARNING_RATE = 1e-4


def cross_checks(recipe: Recipe) -> Iterator[str]:
    """A line for everything in which the values of a recipe do not go together."""
    yield from _length(recipe)
    yield from _stage(recipe)
    yield from _optimizer(recipe)
    if recipe.judge.labels is None and recipe.judge.template != "from-dataset":
        yield '[judge] labels is missing: such as ["A", "B"] (only "from-dataset" finds them itself)'
    if recipe.data.attack_share and recipe.data.overlong == "error":
        yield (
            '[data] attack_share makes pairs beyond the token budget, which overlong = "error" refuses: choose '
            '"truncate" or "drop"'
        )
    if recipe.evaluate.eval_steps and not recipe.data.valid:
        yield f"[evaluate] eval_steps = {recipe.evaluate.eval_steps}: there is no data.valid to evaluate on"
    if problem := check_saves(recipe.checkpoint):
        yield problem
    if recipe.lora is not None:
        try:
            _ = recipe.lora.config
        except RecipeError as error:
            yield f"[lora] {error}"
    yield from _devices(recipe)


def _length(recipe: Recipe) -> Iterator[str]:
    run = recipe.run
    if (run.max_steps is None) == (run.num_train_epochs is None):
        found = "both" if run.max_steps is not None else "neither"
        yield f"[run] needs exactly one of steps and epochs; found {found}"


def _stage(recipe: Recipe) -> Iterator[str]:
    """Keys that this stage needs, and keys that it does not know what to do with."""
    for key, stages in STAGES_OF.items():
        section, name = key.split(".")
        table = getattr(recipe, section)
        default = type(table).__dataclass_fields__[name].default
        given = getattr(table, name) != default
        if recipe.stage in stages and not given and default is None:
            yield f'[{section}] {name} is missing: stage "{recipe.stage}" needs it'
        if given and recipe.stage not in stages:
            yield f'[{section}] {name} means nothing in stage "{recipe.stage}": remove it'


def _optimizer(recipe: Recipe) -> Iterator[str]:
    optimizer, steps = recipe.optimizer, recipe.run.max_steps
    if optimizer.warmup_steps >= 1 and optimizer.warmup_steps != int(optimizer.warmup_steps):
        yield (
            f"[optimizer] warmup_steps = {optimizer.warmup_steps}: expected a share below 1 or a whole number"
        )
    if steps is not None and optimizer.warmup_steps >= max(steps, 1):
        yield f"[optimizer] warmup_steps = {optimizer.warmup_steps:g} leaves nothing of run.max_steps = {steps}"
    if (
        recipe.model.param_dtype == "bfloat16"
        and optimizer.learning_rate < LEAST_BF16_LEARNING_RATE
    ):
        yield (
            f'[model] param_dtype = "bfloat16" with learning_rate = {optimizer.learning_rate:g}: such '
            'small steps vanish in bfloat16. Use param_dtype = "float32" (compute_dtype may stay bfloat16) or '
            f"a learning rate of at least {LEAST_BF16_LEARNING_RATE:g}"
        )


def _devices(recipe: Recipe) -> Iterator[str]:
    """The mesh, and where that is sound what has to fit it: the rows and the attention."""
    sizes, attention = recipe.mesh.sizes, recipe.execution.attention
    if bad := {axis: size for axis, size in sizes.items() if size < 1 and size != -1}:
        yield f"[mesh] {bad}: expected sizes of at least 1, or -1 for what is left"
        return
    if list(sizes.values()).count(-1) > 1:
        free = ", ".join(axis for axis, size in sizes.items() if size == -1)
        yield f"[mesh] {free}: at most one size may be -1 (whatever is left)"
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
    """What the recipe alone says of its attention, before model and devices are known."""
    sizes = recipe.mesh.whole
    return AttentionTask(
        packed=recipe.packed,
        length=recipe.batch.max_length,
        compute=recipe.execution.compute_dtype,
        sequence=sizes["sequence"],
        tensor=sizes["tensor"],
    )


def check_rows(rows: int, microbatches: int, shards: int) -> str | None:
    """None where every microbatch has as many rows on every batch shard, else what to say.

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
    """None where every step that is kept for good is one that is saved, else what to say."""
    if not saves.keep_period or (saves.save_steps and saves.keep_period % saves.save_steps == 0):
        return None
    found = (
        f"save_steps = {saves.save_steps}"
        if saves.save_steps
        else "save_steps = 0 (saves only at the end)"
    )
    return (
        f"[checkpoint] keep_period = {saves.keep_period}: expected a multiple of save_steps, whose steps are "
        f"the ones that are saved; found {found}"
    )
