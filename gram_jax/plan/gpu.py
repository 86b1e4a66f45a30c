"""NVIDIA GPUs that need not be present: XLA compiles for a description of one."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from gram_jax.errors import RecipeError
from gram_jax.plan.chips import Chip

PLUGINS = ("xla_cuda13", "xla_cuda12")

# What the compiler reads: compute capability, multiprocessors, shared memory of one and of a block
# (bytes), threads of one, second-level cache (bytes), clock (GHz), memory (bytes, as CUDA reports it).
_KINDS: dict[str, tuple[str, tuple[int, int], int, int, int, int, int, float, int]] = {
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 132, 233472, 232448, 2048, 52428800, 1.98, 84978434048),
    "h200": ("NVIDIA H200", (9, 0), 132, 233472, 232448, 2048, 62914560, 1.98, 150109880320),
    "rtx4090": ("NVIDIA GeForce RTX 4090", (8, 9), 128, 102400, 101376, 1536, 75497472, 2.52, 25250627584),
}  # fmt: skip


def gpu_devices(chip: Chip, count: int, machines: int) -> list[Any]:
    """`machines` machines with `count` GPUs each. Raises RecipeError if the compiler is missing."""
    if not compiler_installed():
        version = jax.__version__
        raise RecipeError(
            f"--topology {chip.name} needs XLA's compiler for CUDA, which is not installed. It needs "
            f"no GPU: pip install --no-deps jax-cuda13-pjrt=={version} jax-cuda13-plugin=={version}"
        )
    # Without a GPU nothing can be measured: use XLA's default kernels.
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    shape = f"1x{machines}x{count}"
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name=shape, topology=shape, target_config=_target(chip)
        ).devices
    except Exception as error:  # the back end's own class, which differs between versions
        raise RecipeError(f"--topology {chip.name}: XLA refuses it: {error}") from error


def compiler_installed() -> bool:
    """Whether one of JAX's plugins for CUDA is installed; the CUDA libraries need not be."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(f"jax_plugins.{name}") for name in PLUGINS
    )


def _target(chip: Chip) -> str:
    """XLA's description of a GPU as the text of its GpuTargetConfigProto."""
    name, (major, minor), cores, shared, optin, threads, cache, clock, memory = _KINDS[chip.name]
    return f"""
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
