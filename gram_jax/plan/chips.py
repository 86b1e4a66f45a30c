"""Figures of the vendors' data sheets, from which a plan's bounds are computed."""

from dataclasses import dataclass
from typing import Any, Literal

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, dense peaks. Bandwidths are bytes per second; those of links count one direction.

    memory: bytes that a program may use, by the compiler's own limit; devices: JAX devices of the chip; links: number
    of neighbours it is wired to (0: a switch); clock: cycles a second of the compiler's estimates, None if unknown;
    int8, float8: peaks of these products as multiples of bf16_flops, 1 if the data sheet has none.
    """

    name: str
    platform: Literal["tpu", "cuda"]
    bf16_flops: float
    f32_flops: float  # TPU: six bfloat16 passes, as precision "highest" takes
    memory: int
    memory_bandwidth: float
    links: int
    link_bandwidth: float  # of one link; of all together if there is a switch
    network_bandwidth: float  # of one chip's share of its machine, to other slices or machines
    devices: int = 1
    clock: float | None = None
    int8: float = 1.0
    float8: float = 1.0


# TPUs: cloud.google.com/tpu/docs, pages v5e, v5p, v6e and tpu7x. "Bidirectional ICI bandwidth" there
# counts both directions of all links of a chip: 400, 1200, 800 and 1200 GB/s. The network is the
# pages' Gbit/s of a pod over its chips (v5e 6.4 T / 256, v6e 25.6 T / 256) or of a chip (50, 100).
# `memory` is what libtpu 0.0.42 names in its message when a program is too large. `clock` is the peak over the flops
# of a cycle: four matrix units of 128 x 128 on v5e, eight on v5p; for v6e, whose estimates reach 455,881 flops a
# cycle, two of 256 x 256 are assumed.
# GPUs: NVIDIA's data sheets (SXM; 900 GB/s of NVLink are 450 in one direction; a 400 Gbit/s card for
# each). RTX 4090: PCIe 4.0 x16, bf16 with f32 sums. `memory`: what CUDA reports less 0.6 GiB
# for its context; JAX takes three quarters of it unless XLA_PYTHON_CLIENT_MEM_FRACTION is larger.
_CHIPS = (
    Chip("v5e", "tpu", 197e12, 197e12 / 6, int(15.75 * GIB), 819e9, 4, 50e9, 3.125e9, clock=1.503e9, int8=2),
    Chip("v5p", "tpu", 459e12, 459e12 / 6, int(95.74 * GIB), 2765e9, 6, 100e9, 6.25e9, clock=1.75e9, int8=2),
    Chip("v6e", "tpu", 918e12, 918e12 / 6, int(31.25 * GIB), 1638e9, 4, 100e9, 12.5e9, clock=1.751e9, int8=2),
    Chip("tpu7x", "tpu", 2307e12, 2307e12 / 6, int(189.5 * GIB), 7380e9, 6, 100e9, 12.5e9, 2, float8=2),
    Chip("h100", "cuda", 989e12, 67e12, int(78.5 * GIB), 3350e9, 0, 450e9, 50e9, int8=2, float8=2),
    Chip("h200", "cuda", 989e12, 67e12, int(139.2 * GIB), 4800e9, 0, 450e9, 50e9, int8=2, float8=2),
    Chip("rtx4090", "cuda", 165e12, 82.6e12, int(22.9 * GIB), 1008e9, 0, 32e9, 3e9, int8=4, float8=2),
)  # fmt: skip
CHIPS = {chip.name: chip for chip in _CHIPS}
# How JAX names the TPUs.
_TPU_KINDS = {"tpuv5lite": "v5e", "tpuv5": "v5p", "tpuv5p": "v5p", "tpuv6lite": "v6e"}


def chip_of(device: Any) -> Chip | None:
    """The data sheet of a device of this machine; None if there is none (a CPU)."""
    kind: str = device.device_kind.lower().replace(" ", "").replace("tpuv7x", "tpu7x")
    if kind.startswith("tpu"):
        return CHIPS.get(_TPU_KINDS.get(kind, kind))
    return next((chip for chip in _CHIPS if chip.platform == "cuda" and chip.name in kind), None)


def link_bandwidth(chip: Chip, shape: tuple[int, ...]) -> float:
    """Bytes a second that may reach one device from the others of its slice; shape: () if it is not known.

    An axis of 2 wires a chip to one neighbour, a longer one to two; at the edge of a slice that does
    not close into a ring there are fewer, so this is the most that any chip has. 0 for a single chip.
    """
    if chip.links == 0:
        return chip.link_bandwidth
    wired = sum(min(2, size - 1) for size in shape) if shape else chip.links
    return min(wired, chip.links) * chip.link_bandwidth / chip.devices
