"""Ahead-of-time compilation of the step: its memory, whether that fits, and which changes would fit."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gram_jax.compiler import explain_compiler_options
from gram_jax.errors import (
    DoesNotFitError,
    explain_out_of_memory,
    in_short,
    is_out_of_memory,
)
from gram_jax.formatting import format_bytes
from gram_jax.sharding import Placement


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: arguments (weights, moments, batch), temporaries, results without a donated buffer."""

    arguments: int
    temporaries: int
    results: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.arguments + self.temporaries + self.results

    def to_text(self) -> str:
        """Text for the log."""
        return (
            f"{format_bytes(self.arguments)} of weights, optimizer state and batch, "
            f"{format_bytes(self.temporaries)} of temporaries"
        )


def memory_of(compiled: Any) -> Memory | None:
    """The compiler's estimate for a program; None if the back end has none."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        results=max(found.output_size_in_bytes - found.alias_size_in_bytes, 0),
    )


def free_bytes(placement: Placement) -> int | None:
    """Free bytes of the fullest device of the mesh; for CPUs, of the machine. None: unknown."""
    devices = [d for d in placement.mesh.devices.flat if d.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        machine = _available_memory()
        return None if machine is None else machine // len(devices)
    stats = [device.memory_stats() or {} for device in devices]
    if not all("bytes_limit" in s and "bytes_in_use" in s for s in stats):
        return None
    return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)


def _available_memory() -> int | None:
    """Free memory of the machine, or of this process's control group if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The kernel frees inactive file pages under pressure.
        available = min(available, limit - used + int(cached.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    return available


def compile_step(
    make: Callable[[Mapping[str, Any]], Any],
    placement: Placement,
    alternatives: Sequence[Mapping[str, Any]],
) -> tuple[Any, Memory | None]:
    """Compile the step before its arguments are allocated, and compare its memory with what is free.

    make: the lowered step under changed recipe keys, {} for none. alternatives: changes to try if it does not fit,
    cheapest first. Raises DoesNotFitError with the first two that fit, RecipeError for wrong compiler options.
    """
    free = free_bytes(placement)
    with explain_compiler_options():
        try:
            compiled = make({}).compile()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFitError(_advice(make, alternatives, free, str(error))) from error
    memory = memory_of(compiled)
    if memory is not None and free is not None and memory.total > free:
        found = f"it needs {memory.to_text()}, and {format_bytes(free)} are free"
        if memory.arguments > free:
            raise DoesNotFitError(
                f"this model does not fit the memory: {found}. Its weights and moments alone do not fit: try [lora], "
                'optimizer.first_moment_dtype = "bfloat16", a smaller model, or more devices under [mesh] fsdp.'
            )
        raise DoesNotFitError(_advice(make, alternatives, free, found))
    return compiled, memory


def explain_step_memory(memory: Memory | None) -> AbstractContextManager[None]:
    """Raises DoesNotFitError if the block, which runs the step, runs out of memory."""
    return explain_out_of_memory(
        f"the step needs {memory.to_text()}" if memory else "the step does not fit",
        'Try, in this order: batch.gradient_accumulation_steps twice as many; execution.remat = "full"; '
        "a smaller batch.batch_size or a shorter batch.max_length; more devices under [mesh] fsdp; [lora].",
    )


def _advice(
    make: Callable[[Mapping[str, Any]], Any],
    alternatives: Sequence[Mapping[str, Any]],
    free: int | None,
    found: str,
) -> str:
    lines = [f"this step does not fit the memory: {in_short(found)}", "What would fit:"]
    fitting = 0
    for change in alternatives:
        try:
            memory = memory_of(make(change).compile())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            continue
        if memory is None or (free is not None and memory.total > free):
            continue
        keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in change.items())
        lines.append(f"  {keys}: {memory.to_text()}")
        fitting += 1
        if fitting == 2:
            break
    if not fitting:
        lines[-1] = (
            'Neither more microbatches nor remat = "full" is enough: try a shorter batch.max_length, a smaller model, '
            "[lora], or more devices under [mesh] fsdp."
        )
    return "\n".join(lines)
