"""A plan: a program compiled for devices that need not be present, and what the compiler says of it."""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from gram_jax.errors import is_out_of_memory
from gram_jax.plan.chips import link_bandwidth
from gram_jax.plan.collectives import Traffic, collectives
from gram_jax.plan.flops import Flops
from gram_jax.plan.programs import PlanRequest, Program, scoring_program, training_program
from gram_jax.plan.target import PlanTarget
from gram_jax.training.compiling import memory_of


@dataclass(frozen=True)
class MemoryFit:
    """Bytes on one device. Of a program that does not fit, less is known.

    arguments: weights, optimizer state and batch; temporaries: everything else that lives at the same time; peak: the
    compiler's estimate of the most at any moment; donated: part of the arguments that results overwrite; needed: sum of
    arguments, temporaries and results (without what they reuse), or peak if that is more.
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
        """Whether it compiled and needs no more than the device has."""
        compiled = self.temporaries is not None
        return compiled and (self.capacity is None or self.needed <= self.capacity)


@dataclass(frozen=True)
class ProgramPlan:
    """What compiling says of one program; gram_jax/plan/report.py shows it.

    tokens: positions of a step (or of a scoring call), over all devices. state: (arrays of the training state, those
    whose memory the results reuse). seconds: lower bounds of a step by resource. compile_seconds: with tracing.
    """

    program: str
    topology: str
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]
    tokens: int
    fit: MemoryFit
    state: tuple[int, int]
    traffic: Mapping[str, Traffic]
    flops: Flops
    seconds: Mapping[str, float]
    compile_seconds: float
    hlo: str = field(repr=False, default="")

    @property
    def bound(self) -> str | None:
        """The largest of the lower bounds; None if the chip is not known."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.seconds else None


def plan_training(request: PlanRequest, change: Mapping[str, Any] = {}) -> ProgramPlan:
    """The plan of a training step."""
    return make_plan(training_program(request, change), request.target)


def plan_scoring(request: PlanRequest, *, pairs: int | None = None) -> ProgramPlan:
    """The plan of a scoring call."""
    return make_plan(scoring_program(request, pairs=pairs), request.target)


def make_plan(program: Program, target: PlanTarget) -> ProgramPlan:
    """Compile a program for a target and read what it needs. A program that does not fit is a plan, too."""
    start = time.perf_counter()
    compiled, fit = _compile(program, target.capacity)
    took = time.perf_counter() - start
    hlo = "" if compiled is None else compiled.as_text()
    traffic = collectives(hlo, target.slices) if hlo else {}
    return ProgramPlan(
        program=program.name,
        topology=target.topology.name,
        mesh={name: size for name, size in target.placement.mesh.shape.items() if size > 1},
        settings=program.settings,
        tokens=program.tokens,
        fit=fit,
        state=(program.state_leaves, donated_leaves(hlo)),
        traffic=traffic,
        flops=program.flops,
        seconds=_bounds(program, target, fit, traffic) if hlo else {},
        compile_seconds=took,
        hlo=hlo,
    )


def _compile(program: Program, capacity: int | None) -> tuple[Any, MemoryFit]:
    """The compiled program, None if it runs out of memory, and its memory.

    Nothing is compiled if the arguments alone are too much.
    """
    arguments = bytes_on_a_device(program.arguments)
    if capacity is not None and arguments > capacity:
        return None, MemoryFit(arguments, None, 0, None, 0, arguments, capacity)
    try:
        compiled = program.lower().compile()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        needed = arguments + _temporaries_named(str(error))
        return None, MemoryFit(arguments, None, 0, None, 0, needed, capacity)
    found, memory = compiled.memory_analysis(), memory_of(compiled)
    assert memory is not None  # the compilers of all planned platforms report it
    peak = getattr(found, "peak_memory_in_bytes", 0) or None
    return compiled, MemoryFit(
        arguments=memory.arguments,
        temporaries=memory.temporaries,
        results=memory.results,
        peak=peak,
        donated=found.alias_size_in_bytes,
        # For a single chip libtpu may report no temporaries; its peak includes them.
        needed=max(memory.total, peak or 0),
        capacity=capacity,
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
    if not found:
        return 0
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def donated_leaves(hlo: str) -> int:
    """Number of arguments of a program that its results overwrite."""
    header = hlo.partition("\n")[0]
    start = header.find("input_output_alias={")
    if start < 0:
        return 0
    end = header.find("entry_computation_layout", start)
    return len(re.findall(r"\((\d+), \{", header[start : end if end > 0 else None]))


def _bounds(
    program: Program, target: PlanTarget, fit: MemoryFit, traffic: Mapping[str, Traffic]
) -> dict[str, float]:
    """Lower bounds of a step's seconds, by the resource that would be busy all the time."""
    chip = target.chip
    if chip is None:
        return {}
    peak = (
        chip.bf16_flops if program.compute_dtype == "bfloat16" else chip.f32_flops
    ) / chip.devices
    moved = fit.arguments + fit.results + fit.donated + program.weight_reads
    found = {
        "compute": program.flops.needed / target.devices / peak,
        "memory": moved / (chip.memory_bandwidth / chip.devices),
    }
    links = sum(t.links for t in traffic.values())
    # Devices of one chip communicate inside it, and no data sheet bounds that.
    if links and (bandwidth := link_bandwidth(chip, target.topology.shape)):
        found["interconnect"] = links / bandwidth
    if network := sum(t.network for t in traffic.values()):
        found["network"] = network / (chip.network_bandwidth / chip.devices)
    return found
