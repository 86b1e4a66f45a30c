"""The devices of this machine: their speed in a matrix product, and memory in use."""

import resource
import sys
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gram_jax.plan.chips import chip_of
from gram_jax.sharding import Placement

PRODUCT_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the square matrices
PRODUCT_RUNS = 8


@dataclass(frozen=True)
class MachineInfo:
    """ceiling: measured FLOP/s of a matrix product, over all devices; peak: of the data sheet, or None."""

    devices: int
    kind: str
    compute_dtype: str
    ceiling: float
    peak: float | None


def measure_machine(placement: Placement, compute_dtype: str) -> MachineInfo:
    """The devices of a mesh, and the speed of a matrix product on one of them."""
    devices = placement.mesh.devices
    first = devices.flat[0]
    chip, peak = chip_of(first), None
    if chip is not None:
        peak = chip.f32_flops if compute_dtype == "float32" else chip.bf16_flops
        peak *= devices.size / chip.devices
    # Fake CPU devices share one machine, of which one product reaches the ceiling.
    count = 1 if first.platform == "cpu" else devices.size
    ceiling = matmul_flops(first.platform, compute_dtype) * count
    return MachineInfo(devices.size, first.device_kind, compute_dtype, ceiling, peak)


def matmul_flops(platform: str, compute_dtype: str) -> float:
    """FLOP/s of a square matrix product on one device, the best of PRODUCT_RUNS."""
    size = PRODUCT_SIZE.get(platform, PRODUCT_SIZE["gpu"])
    a, b = jax.random.normal(jax.random.key(0), (2, size, size)).astype(compute_dtype)
    precision = "highest" if compute_dtype == "float32" else "default"
    matmul = jax.jit(lambda a, b: jnp.dot(a, b, precision=precision))
    jax.block_until_ready(matmul(a, b))  # warm-up
    seconds = []
    for _ in range(PRODUCT_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(matmul(a, b))
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def peak_memory() -> tuple[str, int]:
    """("of a device" or "of the process", peak bytes in use): the fullest device if devices report it."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if known := [found["peak_bytes_in_use"] for found in stats if found.get("peak_bytes_in_use")]:
        return "of a device", max(known)
    unit = 1 if sys.platform == "darwin" else 1024
    return "of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
