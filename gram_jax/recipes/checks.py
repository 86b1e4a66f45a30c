"""What no single value of a recipe shows: values that contradict each other, or that another one needs."""

from collections.abc import Iterator

from gram_jax.errors import RecipeError, nearest_multiple
from gram_jax.model.attention.choice import AttentionTask, refusals
from gram_jax.recipes.tables import Checkpoint, Recipe, Stage

# Keys that mean nothing in the other stages; all but attack_share, which has a default, are required in theirs.
STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "loss.chunk": ("write",),
    "loss.smoothing": ("judge",),
    "data.orders": ("write", "judge"),
    "data.attack_share": ("judge",),
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
            '"shorten" or "drop"'
        )
    if recipe.evaluate.every and not recipe.data.valid:
        yield f"[evaluate] every = {recipe.evaluate.every}: there is no data.valid to evaluate on"
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
    if (run.steps is None) == (run.epochs is None):
        found = "both" if run.steps is not None else "neither"
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
    optimizer, steps = recipe.optimizer, recipe.run.steps
    if optimizer.warmup >= 1 and optimizer.warmup != int(optimizer.warmup):
        yield (
            f"[optimizer] warmup = {optimizer.warmup}: expected a share below 1 or a whole number"
        )
    if steps is not None and optimizer.warmup >= max(steps, 1):
        yield f"[optimizer] warmup = {optimizer.warmup:g} leaves nothing of run.steps = {steps}"
    if recipe.model.dtype == "bfloat16" and optimizer.learning_rate < LEAST_BF16_LEARNING_RATE:
        yield (
            f'[model] dtype = "bfloat16" with learning_rate = {optimizer.learning_rate:g}: such '
            'small steps vanish in bfloat16. Use dtype = "float32" (compute may stay bfloat16) or '
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
    if problem := check_rows(recipe.batch.rows, recipe.batch.microbatches, shards):
        yield problem
    for problem in refusals(attention, _attention_task(recipe)):
        yield f'[execution] attention = "{attention}": {problem}'


def _attention_task(recipe: Recipe) -> AttentionTask:
    """What the recipe alone says of its attention, before model and devices are known."""
    sizes = recipe.mesh.whole
    return AttentionTask(
        packed=recipe.packed,
        length=recipe.batch.length,
        compute=recipe.execution.compute,
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
        f"batch.rows = {rows} is not a multiple of {unit} ({microbatches} microbatches x {shards} "
        f"batch shards): {nearest_multiple(rows, unit)}"
    )


def check_saves(saves: Checkpoint) -> str | None:
    """None where every step that is kept for good is one that is saved, else what to say."""
    if not saves.keep_every or (saves.every and saves.keep_every % saves.every == 0):
        return None
    found = f"every = {saves.every}" if saves.every else "every = 0 (saves only at the end)"
    return (
        f"[checkpoint] keep_every = {saves.keep_every}: expected a multiple of every, whose steps are "
        f"the ones that are saved; found {found}"
    )
