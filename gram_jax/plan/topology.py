"""Devices to compile for: those of this machine, or slices that need not be present; and a recipe's mesh over them."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from importlib.metadata import requires
from typing import Any

import jax
from jax.experimental import topologies

from gram_jax.errors import RecipeError
from gram_jax.plan.chips import CHIPS, Chip, chip_of
from gram_jax.recipes.tables import Recipe
from gram_jax.sharding import Placement
from gram_jax.training.compiling import free_bytes
from gram_jax.training.program import placement_of

LOCAL = "local"
# libtpu 0.0.42 ends the process on a program for more ("pr_mapper.NumSlices() < kMaxNumSlices", 512).
MOST_SLICES = 511
# By number of links, an example of a shape.
EXAMPLES = {0: "8", 4: "4x4", 6: "2x2x1"}

# What the compiler for CUDA reads: compute capability, multiprocessors, shared memory of one and of a block
# (bytes), threads of one, second-level cache (bytes), clock (GHz), memory (bytes, as CUDA reports it).
_GPUS: dict[str, tuple[str, tuple[int, int], int, int, int, int, int, float, int]] = {
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 132, 233472, 232448, 2048, 52428800, 1.98, 84978434048),
    "h200": ("NVIDIA H200", (9, 0), 132, 233472, 232448, 2048, 62914560, 1.98, 150109880320),
    "rtx4090": ("NVIDIA GeForce RTX 4090", (8, 9), 128, 102400, 101376, 1536, 75497472, 2.52, 25250627584),
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """`slices` slices of the shape `shape` of one chip. chip None: the devices of this machine."""

    chip: Chip | None
    shape: tuple[int, ...]
    slices: int

    @property
    def shape_text(self) -> str:
        """The shape as text, such as "4x4"."""
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        """The name for --topology: "v5e:4x4", "2xv5e:16x16", "h200:8", "local"."""
        if self.chip is None:
            return LOCAL
        several = f"{self.slices}x" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{self.shape_text}"


@dataclass(frozen=True)
class PlanTarget:
    """A topology and the recipe's mesh over it. chip: None if it is not known."""

    topology: Topology
    placement: Placement
    chip: Chip | None

    @property
    def capacity(self) -> int | None:
        """Bytes that a program may use on one device; None if unknown."""
        if self.topology.chip is None or self.chip is None:
            return free_bytes(self.placement)
        return self.chip.memory // self.chip.devices

    @property
    def slices(self) -> list[int]:
        """The slice of every device, in the order in which the program numbers them."""
        return [getattr(d, "slice_index", 0) or 0 for d in self.placement.mesh.devices.flat]


def make_target(topology: Topology, recipe: Recipe) -> PlanTarget:
    """The recipe's mesh over the devices of a topology."""
    try:
        placement = placement_of(recipe, devices_of(topology))
    except ValueError as error:  # JAX's own, for devices that make no such mesh
        raise RecipeError(f"no mesh over {topology.name}: {error}") from error
    chip = topology.chip or chip_of(placement.mesh.devices.flat[0])
    return PlanTarget(topology, placement, chip)


def read_topology(text: str, slices: int | None = None) -> Topology:
    """The topology of a name. Raises RecipeError for any other text.

    >>> read_topology("2xv5e:16x16").slices, read_topology("v5p:4x4x4").shape
    (2, (4, 4, 4))
    """
    if text == LOCAL:
        if slices not in (None, 1):
            raise RecipeError(
                f"--slices {slices} with --topology local, the devices of this machine: name a chip and a "
                "shape, such as v5e:4x4"
            )
        return Topology(None, (), 1)
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(?::(\d+(?:x\d+)*))?", text)
    chip = CHIPS.get(found[2]) if found else None
    if found is None or chip is None:
        raise RecipeError(
            f"--topology {text}: expected local, or a chip and a shape such as v5e:4x4, v5p:2x2x1, "
            f"2xv5e:16x16 (two slices) or h200:8; known chips: {', '.join(CHIPS)}"
        )
    shape = tuple(int(size) for size in (found[3] or "1").split("x"))
    example = EXAMPLES[chip.links]
    dimensions = example.count("x") + 1
    if math.prod(shape) == 1:
        shape = (1,) * dimensions
    if len(shape) != dimensions or min(shape) < 1:
        raise RecipeError(
            f"--topology {text}: {chip.name} needs {dimensions} size(s), such as {chip.name}:{example}"
        )
    written = int(found[1]) if found[1] else None
    if slices is not None and written not in (None, slices):
        raise RecipeError(f"--topology {text} has {written} slices, --slices is {slices}")
    count = next((n for n in (written, slices) if n is not None), 1)
    if count < 1 or (chip.platform == "tpu" and count > MOST_SLICES):
        raise RecipeError(
            f"--topology {text}: {count} slices, expected 1 to {MOST_SLICES}, such as "
            f"{Topology(chip, shape, 2).name}"
        )
    return Topology(chip, shape, count)


def devices_of(topology: Topology) -> list[Any]:
    """The devices, for a mesh; those of an absent slice can be compiled for, not used.

    Raises RecipeError if the compiler is not installed or does not support the shape.
    """
    chip = topology.chip
    if chip is None:
        return jax.devices()
    name, options = (_cuda if chip.platform == "cuda" else _tpu)(topology, chip)
    try:
        return topologies.get_topology_desc(name, chip.platform, **options).devices
    except Exception as error:  # the back end's own class, which differs between versions
        raise RecipeError(
            f"--topology {topology.name}: the compiler rejects it: {error}"
        ) from error


def _tpu(topology: Topology, chip: Chip) -> tuple[str, dict[str, Any]]:
    """libtpu's name of a slice, and its options."""
    if importlib.util.find_spec("libtpu") is None:
        pinned = [need.split(";")[0] for need in requires("jax") or () if need.startswith("libtpu")]
        raise RecipeError(
            f"--topology {topology.name} needs libtpu, the compiler for TPUs, which is not installed. It needs no TPU: "
            f'pip install "jax[tpu]" ({", ".join(pinned)})'
        )
    # Read when libtpu is loaded: it queries no metadata of a TPU VM, and two plans may be made at
    # the same time (without the second a lock file stops the later one). The third spares a warning.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    options: dict[str, Any] = {}
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    return f"{chip.name}:{topology.shape_text}", options


def cuda_compiler_installed() -> bool:
    """Whether one of JAX's plugins for CUDA is installed; the CUDA libraries need not be."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (13, 12)
    )


def _cuda(topology: Topology, chip: Chip) -> tuple[str, dict[str, Any]]:
    """XLA's name of `slices` machines of GPUs, and the GPU as the text of its GpuTargetConfigProto."""
    if not cuda_compiler_installed():
        version = jax.__version__
        raise RecipeError(
            f"--topology {chip.name} needs XLA's compiler for CUDA, which is not installed. It needs "
            f"no GPU: pip install --no-deps jax-cuda13-pjrt=={version} jax-cuda13-plugin=={version}"
        )
    # Without a GPU nothing can be measured: use XLA's default kernels.
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    name, (major, minor), cores, shared, optin, threads, cache, clock, memory = _GPUS[chip.name]
    target = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
          shared_memory_per_block: 49152 shared_memory_per_core: {shared}
          shared_memory_per_block_optin: {optin} core_count: {cores} fpus_per_core: 128
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {int(chip.memory_bandwidth)} l2_cache_size: {cache}
          clock_rate_ghz: {clock} device_memory_size: {memory}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
        runtime_version {{ major: 13 }} device_description_str: "{name}"
    """
    shape = f"1x{topology.slices}x{topology.shape_text}"
    return shape, {"topology": shape, "target_config": target}
