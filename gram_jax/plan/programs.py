"""The programs that can be planned, from shapes alone: a training step and a call of the scorer."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.batch import BradleyTerryBatch, RationaleBatch, Sequences, TokenBatch, VerdictBatch
from gram_jax.errors import RecipeError, nearest_multiple
from gram_jax.judge.rationale import CLOSING_ROOM
from gram_jax.model.config import ModelConfig
from gram_jax.model.quantize import DTYPES, Weights, loaded_dtype, quantize
from gram_jax.model.specs import param_specs
from gram_jax.plan.flops import Flops, layer_weights, scoring_flops, training_flops
from gram_jax.plan.topology import PlanTarget
from gram_jax.recipes.checks import check_rows
from gram_jax.recipes.tables import Recipe
from gram_jax.scoring.engine import ScoringEngine
from gram_jax.sharding import Placement, check_divides
from gram_jax.training.optimizer import make_optimizer
from gram_jax.training.program import lower_step, make_execution
from gram_jax.training.stages import abstract_batch, abstract_frozen, trained_specs
from gram_jax.training.state import abstract_state

# Verdict labels and the number of steps are constants of a program that change neither its size nor its speed, so a
# plan needs no tokenizer and no data.
LABEL_IDS = (0, 1)
STEPS = 1000
# The data decides how many examples a packed row may hold; a plan assumes one per 256 positions.
POSITIONS_PER_EXAMPLE = 256


@dataclass(frozen=True)
class PlanRequest:
    """What to plan. slots: number of examples that a packed row may hold; None: one per POSITIONS_PER_EXAMPLE."""

    recipe: Recipe
    cfg: ModelConfig
    target: PlanTarget
    slots: int | None = None


@dataclass(frozen=True)
class Program:
    """A program before it is compiled.

    lower: returns it lowered. arguments: its arguments as shapes with shardings. tokens: positions over all devices.
    weight_reads: bytes of weights that a device reads besides its arguments. state_leaves: arrays of the state.
    kernel_passes: FLOPs of attention's kernels as a multiple of `flops.attention`.
    """

    name: str
    lower: Callable[[], Any]
    arguments: Any
    settings: Mapping[str, Any]
    tokens: int
    flops: Flops
    weight_reads: float = 0.0
    state_leaves: int = 0
    kernel_passes: float = 1.0


def training_program(
    request: PlanRequest,
    change: Mapping[str, Any] = {},
    *,
    label_ids: tuple[int, int] = LABEL_IDS,
) -> Program:
    """The training step of the recipe's stage. change: recipe keys to change, as in lower_step.

    Raises RecipeError if the mesh does not divide the model or the batch.
    """
    recipe, cfg, placement = request.recipe, request.cfg, request.target.placement
    batch, mesh, compute_dtype = recipe.batch, placement.mesh.shape, recipe.execution.compute_dtype
    accumulation = change.get(
        "batch.gradient_accumulation_steps", batch.gradient_accumulation_steps
    )
    remat = change.get("execution.remat", recipe.execution.remat)
    if problem := check_rows(batch.batch_size, accumulation, placement.batch_shards):
        raise RecipeError(problem)
    if batch.max_length % mesh["sequence"]:
        raise RecipeError(
            f"batch.max_length = {batch.max_length} over sequence = {mesh['sequence']}: "
            f"{nearest_multiple(batch.max_length, mesh['sequence'])}"
        )
    check_divides(tree.flatten(param_specs(cfg)), placement)
    # A warm-up in steps must end within the run.
    steps = recipe.run.max_steps or STEPS + int(recipe.optimizer.warmup_steps)
    specs = trained_specs(recipe, cfg)
    optimizer = make_optimizer(recipe.optimizer, steps, specs)
    state = abstract_state(specs, optimizer, placement, recipe.model.param_dtype)
    rows = abstract_batch(abstract_rows(recipe, request.slots), placement)
    targets = rows.targets.shape[1] if isinstance(rows, RationaleBatch) else 0
    moments = recipe.optimizer
    # Forward and backward pass read every layer's weights, gathered over fsdp, once per micro-batch.
    layer_bytes = layer_weights(cfg) * jnp.dtype(compute_dtype).itemsize / mesh["tensor"]
    return Program(
        name=f"train, stage {recipe.stage}",
        lower=lambda: lower_step(
            recipe, cfg, label_ids, optimizer, steps, placement, state, rows, change
        ),
        arguments=(state, abstract_frozen(recipe, cfg, placement), rows),
        settings={
            "batch_size": batch.batch_size,
            "max_length": batch.max_length,
            "gradient_accumulation_steps": accumulation,
            "remat": remat,
            "attention": recipe.execution.attention,
            "compute_dtype": compute_dtype,
            "param_dtype": recipe.model.param_dtype,
            "moments": f"{moments.first_moment_dtype}, {moments.second_moment_dtype}",
        },
        tokens=batch.batch_size * batch.max_length,
        flops=training_flops(recipe, cfg, targets),
        weight_reads=2 * accumulation * layer_bytes,
        state_leaves=len(jax.tree.leaves(state)),
        # Splash: two products forward, three for the gradient of q and four for those of k and v; flops.attention has
        # three times the forward pass, a recomputed one not included.
        kernel_passes=(2 + 3 + 4 + (2 if remat == "full" else 0)) / 6,
    )


def scoring_program(
    request: PlanRequest, *, pairs: int | None = None, weights: Weights = "auto"
) -> Program:
    """One call of the padded scoring program at the longest length.

    pairs: over all devices; by default as many as the scorer takes. weights: their format, as in Scorer.load.
    """
    recipe, cfg, placement = request.recipe, request.cfg, request.target.placement
    compute_dtype = recipe.execution.compute_dtype
    check_divides(tree.flatten(param_specs(cfg)), placement)
    if pairs and (problem := check_rows(pairs, 1, placement.batch_shards)):
        raise RecipeError(problem.replace("batch.batch_size", "--pairs"))
    held = loaded_dtype(weights, compute_dtype)
    params = _abstract_weights(cfg, placement, held, weights)
    execution, max_length = make_execution(recipe, placement, "none"), recipe.judge.max_length
    engine = ScoringEngine(params, cfg, LABEL_IDS, execution, max_length, "padded")
    length = engine.lengths[-1]
    if pairs:
        engine.tokens_per_call = pairs // placement.batch_shards * 2 * length
    program, arguments = engine.padded_program(length)
    pairs = engine.pairs_per_call(length)
    return Program(
        name="score",
        lower=lambda: program.lower(*arguments),
        arguments=(params, arguments[2]),
        settings={
            "pairs": pairs,
            "max_length": length,
            "attention": recipe.execution.attention,
            "compute_dtype": compute_dtype,
            "param_dtype": weights if weights in DTYPES else held,
        },
        tokens=2 * pairs * length,
        flops=scoring_flops(cfg, pairs, length),
    )


def _abstract_weights(cfg: ModelConfig, placement: Placement, held: str, weights: str) -> Any:
    """Shapes of the weights, read in the dtype `held` and quantized."""
    specs = tree.flatten(param_specs(cfg))
    whole = tree.unflatten(
        {path: jax.ShapeDtypeStruct(spec.shape, jnp.dtype(held)) for path, spec in specs.items()}
    )

    def placed(path: str, leaf: Any) -> Any:
        spec = specs[re.sub("(dynamic_)?scales/", "", path)]
        pairs = zip(spec.axes, leaf.shape, strict=True)
        axes = (axis if size > 1 else None for axis, size in pairs)  # of scales, some are 1
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement.sharding(*axes))

    return tree.map_with_path(placed, jax.eval_shape(partial(quantize, weights=weights), whole))


def abstract_rows(recipe: Recipe, slots: int | None = None) -> Any:
    """A batch of the recipe's stage as shapes."""
    batch = recipe.batch
    B, T = batch.batch_size, batch.max_length
    M = slots or (max(1, T // POSITIONS_PER_EXAMPLE) if batch.packing else 1)
    if not batch.packing and B == 1 and recipe.data.position_augmentation == "both":
        M = 2  # both orders share the only row
    integers, floats = (partial(jax.ShapeDtypeStruct, dtype=d) for d in (jnp.int32, jnp.float32))
    seqs = Sequences(*[integers((B, T))] * 3)
    if recipe.stage == "pretrain":
        return TokenBatch(seqs, integers((B, T)), floats((B, T)))
    if recipe.stage == "rationale":
        R = min(T, M * (recipe.judge.max_rationale + CLOSING_ROOM))
        written = integers((B, R)), integers((B, R)), floats((B, R))
        return RationaleBatch(seqs, *written, integers((B, M)), integers((B, M)), floats((B, M)))
    kind = VerdictBatch if recipe.stage == "finetune" else BradleyTerryBatch
    return kind(seqs, integers((B, M)), integers((B, M)), floats((B, M)))
