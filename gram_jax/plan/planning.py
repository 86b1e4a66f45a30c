"""A plan: the program of a recipe compiled for devices that need not be there, and what it says."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.batch import BradleyTerryBatch, Sequences, TokenBatch, VerdictBatch
from gram_jax.errors import RecipeError, is_out_of_memory, nearest_multiple
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_specs
from gram_jax.plan.chips import Chip, link_bandwidth
from gram_jax.plan.collectives import Traffic, collectives
from gram_jax.plan.flops import Flops, layer_weights, scoring_flops, training_flops
from gram_jax.plan.topology import Topology, devices_of, local_chip
from gram_jax.recipes.checks import check_rows
from gram_jax.recipes.tables import Recipe
from gram_jax.scoring.engine import ScoringEngine, default_tokens_per_call
from gram_jax.scoring.padded import padded_lengths
from gram_jax.sharding import Placement, check_divides
from gram_jax.training.compiling import free_bytes, memory_of
from gram_jax.training.optimizer import make_optimizer
from gram_jax.training.program import lower_step, make_execution, placement_of
from gram_jax.training.stages import abstract_batch, abstract_frozen, trained_specs
from gram_jax.training.state import abstract_state

# Verdict labels and the length of a run are constants of the program: they change neither its size
# nor its speed, so a plan needs no tokenizer and no data.
LABEL_IDS = (0, 1)
STEPS = 1000
# Where rows are packed, the data decides how many examples a row may hold; a plan takes one for so
# many positions.
POSITIONS_PER_EXAMPLE = 256


@dataclass(frozen=True)
class Target:
    """Where a plan is made for: a topology, the mesh over it, and what its chips are."""

    topology: Topology
    placement: Placement
    chip: Chip | None

    @property
    def devices(self) -> int:
        """Of the whole mesh."""
        return self.placement.mesh.size

    @property
    def capacity(self) -> int | None:
        """Bytes that a program may use on one device; None where nobody knows."""
        if self.topology.chip is None or self.chip is None:
            return free_bytes(self.placement)
        return self.chip.memory // self.chip.devices

    @property
    def slices(self) -> list[int]:
        """The slice of every device, in the order in which the program numbers them."""
        return [getattr(d, "slice_index", 0) or 0 for d in self.placement.mesh.devices.flat]


@dataclass(frozen=True)
class Fit:
    """Bytes on one device. Of a program that does not fit the compiler says less.

    arguments: weights, optimizer state and batch; temporaries: everything else that lives at the
    same time; peak: the most at any moment, as the compiler reckons; donated: of the arguments, what
    is overwritten by results; needed: the sum of the first three (results beside what they reuse), or
    peak where that is more.
    """

    arguments: int
    temporaries: int | None
    results: int
    peak: int | None
    donated: int
    needed: int
    capacity: int | None

    @property
    def fits(self) -> bool:
        """Whether the compiler took it, and it is no more than the device has."""
        known = self.temporaries is not None
        return known and (self.capacity is None or self.needed <= self.capacity)


@dataclass(frozen=True)
class Plan:
    """What compiling says of one program; see `gram_jax/plan/report.py` for it in words.

    tokens: positions of a step (or of a call of the scorer), over all devices. state: (leaves of the
    training state, those whose memory the results take over). seconds: lower bounds of a step by
    what sets them. compile_seconds: with tracing.
    """

    program: str
    topology: str
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]
    tokens: int
    fit: Fit
    state: tuple[int, int]
    traffic: Mapping[str, Traffic]
    flops: Flops
    seconds: Mapping[str, float]
    compile_seconds: float
    hlo: str = dataclasses.field(repr=False, default="")

    @property
    def bound(self) -> str | None:
        """Which of the lower bounds is the largest; None where the chip is not known."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.seconds else None


def make_target(topology: Topology, recipe: Recipe) -> Target:
    """The recipe's mesh over the devices of a topology."""
    devices = devices_of(topology)
    try:
        placement = placement_of(recipe, devices)
    except ValueError as error:  # JAX's own, for devices that make no such mesh
        raise RecipeError(f"no mesh over {topology.name}: {error}") from error
    chip = topology.chip or local_chip(placement.mesh.devices.flat[0])
    return Target(topology, placement, chip)


def plan_training(
    recipe: Recipe,
    cfg: ModelConfig,
    target: Target,
    *,
    slots: int | None = None,
    change: Mapping[str, Any] = {},
) -> Plan:
    """The training step of the recipe's stage. slots: examples that a packed row may hold.

    change: as lower_step takes it. Raises RecipeError where the mesh does not divide model or batch.
    """
    batch, placement = recipe.batch, target.placement
    microbatches = change.get(
        "batch.gradient_accumulation_steps", batch.gradient_accumulation_steps
    )
    if problem := check_rows(batch.batch_size, microbatches, placement.batch_shards):
        raise RecipeError(problem)
    if batch.max_length % (parts := placement.mesh.shape["sequence"]):
        raise RecipeError(
            f"batch.max_length = {batch.max_length} over sequence = {parts}: "
            f"{nearest_multiple(batch.max_length, parts)}"
        )
    check_divides(tree.flatten(param_specs(cfg)), placement)
    # A warm-up that is written as steps has to end within the run.
    steps = recipe.run.max_steps or STEPS + int(recipe.optimizer.warmup_steps)
    specs = trained_specs(recipe, cfg)
    optimizer = make_optimizer(recipe.optimizer, steps, specs)
    state = abstract_state(specs, optimizer, placement, recipe.model.param_dtype)
    rows = abstract_batch(abstract_rows(recipe, slots), placement)
    frozen = abstract_frozen(recipe, cfg, placement)
    start = time.perf_counter()
    compiled, failure = _compile(
        lambda: lower_step(
            recipe, cfg, LABEL_IDS, optimizer, steps, placement, state, rows, change
        ),
        (state, frozen, rows),
        target,
    )
    took = time.perf_counter() - start
    settings = {
        "rows": batch.batch_size,
        "length": batch.max_length,
        "microbatches": microbatches,
        "remat": change.get("execution.remat", recipe.execution.remat),
        "attention": recipe.execution.attention,
        "compute": recipe.execution.compute_dtype,
        "weights": recipe.model.param_dtype,
        "moments": f"{recipe.optimizer.first_moment_dtype}, {recipe.optimizer.second_moment_dtype}",
    }
    flops = training_flops(recipe, cfg)
    # Forward and backward pass read every layer's weights once a micro-batch, whole along fsdp.
    passes = 2 * microbatches
    return _plan(
        f"train, stage {recipe.stage}",
        target,
        settings,
        batch.batch_size * batch.max_length,
        (state, frozen, rows),
        compiled,
        failure,
        flops,
        passes * _layer_bytes(cfg, target, recipe.execution.compute_dtype),
        took,
        leaves=len(jax.tree.leaves(state)),
        compute=recipe.execution.compute_dtype,
    )


def plan_scoring(
    recipe: Recipe, cfg: ModelConfig, target: Target, *, pairs: int | None = None
) -> Plan:
    """One call of the padded program (scoring/engine.py) at the recipe's token budget, weights in the compute type.

    pairs: over all devices; by default as many as a call of the scorer has.
    """
    placement, compute = target.placement, recipe.execution.compute_dtype
    check_divides(tree.flatten(param_specs(cfg)), placement)
    weights = tree.map_with_path(
        lambda _, spec: jax.ShapeDtypeStruct(
            spec.shape, jnp.dtype(compute), sharding=placement.sharding(*spec.axes)
        ),
        param_specs(cfg),
    )
    execution = make_execution(recipe, placement, "none")
    max_length = recipe.judge.max_length
    tokens_per_call = default_tokens_per_call(execution, "padded")
    if pairs is not None:
        if problem := check_rows(pairs, 1, placement.batch_shards):
            raise RecipeError(problem.replace("batch.batch_size", "--pairs"))
        tokens_per_call = 2 * padded_lengths(max_length)[-1] * pairs // placement.batch_shards
    engine = ScoringEngine(
        weights, cfg, LABEL_IDS, execution, max_length, "padded", tokens_per_call
    )
    length = engine.lengths[-1]
    pairs = engine.pairs_per_call(length)
    program, arguments = engine.padded_program(length)
    batch = arguments[2]
    start = time.perf_counter()
    compiled, failure = _compile(
        lambda: program.lower(*arguments),
        (weights, batch),
        target,
    )
    took = time.perf_counter() - start
    settings = {
        "pairs": pairs,
        "length": length,
        "attention": recipe.execution.attention,
        "compute": compute,
        "weights": compute,
    }
    return _plan(
        "score",
        target,
        settings,
        2 * pairs * length,
        (weights, batch),
        compiled,
        failure,
        scoring_flops(cfg, pairs, length),
        0.0,
        took,
        leaves=0,
        compute=compute,
    )


def abstract_rows(recipe: Recipe, slots: int | None = None) -> Any:
    """A batch of the recipe's stage as shapes. slots: see plan_training."""
    B, T = recipe.batch.batch_size, recipe.batch.max_length
    M = slots or (max(1, T // POSITIONS_PER_EXAMPLE) if recipe.batch.packing else 1)
    if not recipe.batch.packing and B == 1 and recipe.data.position_augmentation == "both":
        M = 2  # both orders share the only row
    seqs = Sequences(*(_array(B, T) for _ in range(3)))
    weights = _array(B, M, dtype="float32")
    if recipe.stage == "pretrain":
        return TokenBatch(seqs, _array(B, T), _array(B, T, dtype="float32"))
    if recipe.stage == "finetune":
        return VerdictBatch(seqs, _array(B, M), _array(B, M), weights)
    return BradleyTerryBatch(seqs, _array(B, M), _array(B, M), weights)


def bytes_on_a_device(abstract: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def _compile(lower: Any, arguments: Any, target: Target) -> tuple[Any, str | None]:
    """(the compiled program, None), or (None, the compiler's words) where it ran out of memory.

    Where the arguments alone are too much nothing is compiled, and there are no words.
    """
    if target.capacity is not None and bytes_on_a_device(arguments) > target.capacity:
        return None, ""
    try:
        return lower().compile(), None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error)


def _plan(
    program: str,
    target: Target,
    settings: Mapping[str, Any],
    tokens: int,
    arguments: Any,
    compiled: Any,
    failure: str | None,
    flops: Flops,
    weight_reads: float,
    took: float,
    *,
    leaves: int,
    compute: str,
) -> Plan:
    hlo = "" if compiled is None else compiled.as_text()
    fit = _fit(compiled, failure, bytes_on_a_device(arguments), target.capacity)
    traffic = collectives(hlo, target.slices) if hlo else {}
    moved = fit.arguments + fit.results + fit.donated + weight_reads
    return Plan(
        program=program,
        topology=target.topology.name,
        mesh={name: size for name, size in target.placement.mesh.shape.items() if size > 1},
        settings=settings,
        tokens=tokens,
        fit=fit,
        state=(leaves, donated_leaves(hlo)),
        traffic=traffic,
        flops=flops,
        seconds=_bounds(target, flops, moved, traffic, compute) if hlo else {},
        compile_seconds=took,
        hlo=hlo,
    )


def _fit(compiled: Any, failure: str | None, arguments: int, capacity: int | None) -> Fit:
    if compiled is None:
        needed = arguments + _bytes_named(failure or "")
        return Fit(arguments, None, 0, None, 0, needed, capacity)
    found, memory = compiled.memory_analysis(), memory_of(compiled)
    assert memory is not None  # the compilers of all platforms that are planned for say it
    peak = getattr(found, "peak_memory_in_bytes", 0) or None
    return Fit(
        arguments=memory.arguments,
        temporaries=memory.temporaries,
        results=memory.results,
        peak=peak,
        donated=found.alias_size_in_bytes,
        # For a single chip libtpu may name no temporaries at all; its peak has them.
        needed=max(memory.total, peak or 0),
        capacity=capacity,
    )


def _bytes_named(failure: str) -> int:
    """What the compiler says that the temporaries of a too large program take; 0 if it does not."""
    found = re.search(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)", failure)
    if not found:
        return 0
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def donated_leaves(hlo: str) -> int:
    """How many arguments of a program are overwritten by its results."""
    header = hlo.partition("\n")[0]
    start = header.find("input_output_alias={")
    if start < 0:
        return 0
    end = header.find("entry_computation_layout", start)
    return len(re.findall(r"\((\d+), \{", header[start : end if end > 0 else None]))


def _layer_bytes(cfg: ModelConfig, target: Target, compute: str) -> float:
    """Bytes of the layers' matrices as one device multiplies by them."""
    return layer_weights(cfg) * jnp.dtype(compute).itemsize / target.placement.mesh.shape["tensor"]


def _bounds(
    target: Target, flops: Flops, moved: float, traffic: Mapping[str, Traffic], compute: str
) -> dict[str, float]:
    """Seconds that a step takes at least, by what would have to be busy all the time."""
    chip = target.chip
    if chip is None:
        return {}
    peak = (chip.bf16_flops if compute == "bfloat16" else chip.f32_flops) / chip.devices
    found = {
        "compute": flops.needed / target.devices / peak,
        "memory": moved / (chip.memory_bandwidth / chip.devices),
    }
    links = sum(t.links for t in traffic.values())
    # Two devices of one chip meet inside it, where no data sheet sets a bound.
    if links and (bandwidth := link_bandwidth(chip, target.topology.shape)):
        found["interconnect"] = links / bandwidth
    if network := sum(t.network for t in traffic.values()):
        found["network"] = network / (chip.network_bandwidth / chip.devices)
    return found


def _array(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
