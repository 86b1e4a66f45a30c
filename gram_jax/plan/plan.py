"""A plan: a program compiled for devices that need not be present, and what the compiler reports."""

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from gram_jax.compiler import explain_compiler_options
from gram_jax.errors import is_out_of_memory
from gram_jax.plan.chips import Chip, link_bandwidth
from gram_jax.plan.collectives import Traffic, collectives
from gram_jax.plan.cycles import HEAD, PRODUCTS, Operation, operations, pallas_calls
from gram_jax.plan.hlo import parse_hlo
from gram_jax.plan.programs import PlanRequest, Program, training_program
from gram_jax.plan.topology import PlanTarget
from gram_jax.training.compiling import memory_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryFit:
    """Bytes on one device. Of a program that does not fit, less is known.

    arguments: weights, optimizer state and batch; temporaries: everything else that lives at the same time, None if
    nothing was compiled; peak: the compiler's estimate of the most at any moment; donated: part of the arguments that
    results overwrite; needed: sum of arguments, temporaries and results (without what they reuse), or peak if that is
    more.
    """

    arguments: int
    needed: int
    capacity: int | None
    temporaries: int | None = None
    results: int = 0
    peak: int | None = None
    donated: int = 0

    @property
    def fits(self) -> bool:
        """Whether it compiled and needs no more than the device has."""
        compiled = self.temporaries is not None
        return compiled and (self.capacity is None or self.needed <= self.capacity)


# Share of the bf16 peak at which attention's kernels are assumed to run.
KERNEL_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Estimate:
    """Estimated time of a step on one device in seconds, from the compiler's schedule.

    operations: the most expensive first. by_kind: their summed times by KINDS (plan/cycles.py). kernels: attention's
    kernels at KERNEL_EFFICIENCY, because the compiler has no estimate of them. links: all collectives at full link
    speed. synchronous: the part of `links` that cannot overlap with other work. products_efficiency: the layers'
    products, including recomputed ones, as a share of the peak. efficiency: model FLOPs of the layers as a share of the
    peak, over all time except the head's.
    """

    operations: tuple[Operation, ...]
    by_kind: Mapping[str, float]
    kernels: float
    links: float
    synchronous: float
    products_efficiency: float
    efficiency: float

    @property
    def compiled(self) -> float:
        """The compiler's own sum."""
        return sum(self.by_kind.values())

    @property
    def forecast(self) -> tuple[float, float]:
        """(if all asynchronous collectives overlap with other work, if no collective does)."""
        work = self.compiled + self.kernels
        return work + self.synchronous, work + self.links


@dataclass(frozen=True)
class ProgramPlan:
    """The compiler's figures for a program; gram_jax/plan/report.py renders them.

    donated: number of arguments that the results overwrite. seconds: lower bounds of a step by resource, {} if the chip
    is not known. estimate: None of other compilers than libtpu. compiled: the program itself, None if it does not fit.
    compile_seconds: with tracing.
    """

    program: Program
    target: PlanTarget
    fit: MemoryFit
    donated: int
    traffic: Mapping[str, Traffic]
    seconds: Mapping[str, float]
    estimate: Estimate | None
    compile_seconds: float
    hlo: str = field(repr=False)
    compiled: Any = field(repr=False)

    @property
    def bound(self) -> str | None:
        """The resource of the largest lower bound."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of all devices at the largest bound; padding counts as tokens."""
        return self.program.tokens / self.seconds[self.bound] if self.bound else None


def plan_training(request: PlanRequest, change: Mapping[str, Any] = {}) -> ProgramPlan:
    """The plan of a training step."""
    return make_plan(training_program(request, change), request.target)


def make_plan(program: Program, target: PlanTarget) -> ProgramPlan:
    """Compile a program for a target and read what it needs. A program that does not fit is a plan, too."""
    start = time.perf_counter()
    settings = ", ".join(f"{name} {value}" for name, value in program.settings.items())
    logger.info("compiling, which may take minutes: %s", settings)
    compiled, fit = _compile(program, target.capacity)
    took = time.perf_counter() - start
    hlo = "" if compiled is None else compiled.as_text()
    parsed = parse_hlo(hlo)
    traffic = collectives(parsed, target.slices) if hlo else {}
    seconds = _bounds(program, target, fit, traffic) if hlo else {}
    kernels = pallas_calls(parsed) > 0
    estimate = _estimate(program, target, operations(parsed), seconds, traffic, kernels=kernels)
    donated = donated_leaves(hlo)
    return ProgramPlan(
        program, target, fit, donated, traffic, seconds, estimate, took, hlo, compiled
    )


def _compile(program: Program, capacity: int | None) -> tuple[Any, MemoryFit]:
    """The compiled program, None if it runs out of memory, and its memory.

    Nothing is compiled if the arguments alone are too large.
    """
    arguments = bytes_on_a_device(program.arguments)
    if capacity is not None and arguments > capacity:
        return None, MemoryFit(arguments, arguments, capacity)
    with explain_compiler_options():
        try:
            compiled = program.lower().compile()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            needed = arguments + _temporaries_named(str(error))
            return None, MemoryFit(arguments, needed, capacity)
    found, memory = compiled.memory_analysis(), memory_of(compiled)
    assert memory is not None  # the compilers of all planned platforms report it
    peak = getattr(found, "peak_memory_in_bytes", 0) or None
    return compiled, MemoryFit(
        arguments=memory.arguments,
        # For a single chip libtpu may report no temporaries; its peak includes them.
        needed=max(memory.total, peak or 0),
        capacity=capacity,
        temporaries=memory.temporaries,
        results=memory.results,
        peak=peak,
        donated=found.alias_size_in_bytes,
    )


def bytes_on_a_device(abstract: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )


def _temporaries_named(failure: str) -> int:
    """Bytes of temporaries that an out-of-memory message of the compiler names; 0 if it names none."""
    found = re.search(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)", failure)
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0


def donated_leaves(hlo: str) -> int:
    """Number of arguments of a program that its results overwrite."""
    aliases = hlo.partition("\n")[0].partition("input_output_alias={")[2]
    return len(re.findall(r"\((\d+), \{", aliases.partition("entry_computation_layout")[0]))


def _bounds(
    program: Program, target: PlanTarget, fit: MemoryFit, traffic: Mapping[str, Traffic]
) -> dict[str, float]:
    """Lower bounds of a step's seconds, by the resource that would be busy all the time."""
    chip = target.chip
    if chip is None:
        return {}
    peak, layers = _peak(program, chip), program.flops.layers
    needed = layers / _faster(program, chip) + program.flops.needed - layers
    moved = fit.arguments + fit.results + fit.donated + program.weight_reads
    found = {
        "compute": needed / target.placement.mesh.size / peak,
        "memory": moved / (chip.memory_bandwidth / chip.devices),
    }
    links = sum(t.links for t in traffic.values())
    # Devices of one chip communicate inside it, and no data sheet bounds that.
    if links and (bandwidth := link_bandwidth(chip, target.topology.shape)):
        found["interconnect"] = links / bandwidth
    if network := sum(t.network for t in traffic.values()):
        found["network"] = network / (chip.network_bandwidth / chip.devices)
    return found


def _peak(program: Program, chip: Chip) -> float:
    """FLOP/s of one device in the program's compute type."""
    f32 = program.settings["compute_dtype"] == "float32"
    return (chip.f32_flops if f32 else chip.bf16_flops) / chip.devices


def _faster(program: Program, chip: Chip) -> float:
    """Peak of the layers' products over `_peak`."""
    eight = {"int8_dynamic": chip.int8, "float8_dynamic": chip.float8}
    found = eight.get(program.settings["param_dtype"], 0.0) * chip.bf16_flops / chip.devices
    return max(1.0, found / _peak(program, chip))


def _estimate(
    program: Program,
    target: PlanTarget,
    found: Sequence[Operation],
    bounds: Mapping[str, float],
    traffic: Mapping[str, Traffic],
    *,
    kernels: bool,
) -> Estimate | None:
    chip = target.chip
    if chip is None or chip.clock is None or not found:
        return None
    by_kind: dict[str, float] = {}
    for one in found:
        by_kind[one.kind] = by_kind.get(one.kind, 0.0) + one.cycles / chip.clock
    rate = target.placement.mesh.size * _peak(program, chip)
    layers = program.flops.layers / rate / _faster(program, chip)
    total = sum(by_kind.values())
    repeats = program.settings.get("remat") in ("attention", "full")
    executed = layers * (4 / 3 if repeats else 1)
    attention = program.flops.attention * program.kernel_passes / rate
    moved = Traffic()
    for one in traffic.values():
        moved += one
    shares = {
        "interconnect": (moved.asynchronous_links, moved.links),
        "network": (moved.asynchronous_network, moved.network),
    }
    links = {name: bounds[name] for name in shares if name in bounds}
    return Estimate(
        tuple(found),
        by_kind,
        kernels=attention / KERNEL_EFFICIENCY if kernels else 0.0,
        links=sum(links.values()),
        synchronous=sum(
            seconds * (1 - shares[name][0] / shares[name][1]) for name, seconds in links.items()
        ),
        products_efficiency=executed / by_kind[PRODUCTS] if PRODUCTS in by_kind else 0.0,
        efficiency=layers / (total - by_kind.get(HEAD, 0.0)),
    )
