"""Devices to compile for: of this machine, or of a slice that need not be present."""

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
from gram_jax.plan.chips import CHIPS, Chip

LOCAL = "local"
TPUS = [name for name, chip in CHIPS.items() if chip.platform == "tpu"]
# libtpu 0.0.42 ends the process on a program for more ("pr_mapper.NumSlices() < kMaxNumSlices", 512).
MOST_SLICES = 511


@dataclass(frozen=True)
class Topology:
    """`slices` slices of the shape `shape` of one chip. chip None: the devices of this machine."""

    chip: Chip | None
    shape: tuple[int, ...]
    slices: int

    @property
    def name(self) -> str:
        """As in --topology: "v5e:4x4", "2xv5e:16x16", "h200:8", "local"."""
        if self.chip is None:
            return LOCAL
        several = f"{self.slices}x" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"


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
    dimensions = {4: 2, 6: 3}.get(chip.links, 1)
    if chip.platform == "tpu" and math.prod(shape) == 1:
        shape = (1,) * dimensions
    if len(shape) != dimensions or min(shape) < 1:
        wanted = {1: "8", 2: "4x4", 3: "2x2x1"}[dimensions]
        raise RecipeError(
            f"--topology {text}: {chip.name} needs {dimensions} size(s), such as {chip.name}:{wanted}"
        )
    written = int(found[1]) if found[1] else None
    if slices is not None and written not in (None, slices):
        raise RecipeError(f"--topology {text} has {written} slices, --slices says {slices}")
    count = next((n for n in (written, slices) if n is not None), 1)
    if count < 1 or (chip.platform == "tpu" and count > MOST_SLICES):
        raise RecipeError(
            f"--topology {text}: {count} slices, expected 1 to {MOST_SLICES}, such as 2x{chip.name}:"
            f"{'x'.join(map(str, shape))}"
        )
    return Topology(chip, shape, count)


def devices_of(topology: Topology) -> list[Any]:
    """The devices, for a mesh; those of an absent slice can be compiled for, not used.

    Raises RecipeError if the compiler is not installed or does not know the shape.
    """
    if topology.chip is None:
        return jax.devices()
    if topology.chip.platform == "cuda":
        from gram_jax.plan.gpu import gpu_devices

        return gpu_devices(topology.chip, topology.shape[0], topology.slices)
    return _tpu_devices(topology, topology.chip)


def _tpu_devices(topology: Topology, chip: Chip) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise RecipeError(
            f"--topology {topology.name} needs libtpu, the compiler for TPUs, which is not "
            f'installed. It needs no TPU: pip install "jax[tpu]"{_pinned()}'
        )
    # Read when libtpu is loaded: no TPU VM is asked for its metadata, and two plans may be made at
    # the same time (without the second a lock file stops the later one). The third spares a warning.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    options: dict[str, Any] = {}
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # the back end's own class, which differs between versions
        raise RecipeError(f"--topology {topology.name}: libtpu refuses it: {error}") from error


def _pinned() -> str:
    """The version of libtpu that this JAX pins, if its metadata states it."""
    for need in requires("jax") or ():
        if need.startswith("libtpu"):
            return f" (it pins {need.split(';')[0].strip()})"
    return ""


def local_chip(device: Any) -> Chip | None:
    """The data sheet of a present device; None if there is none (a CPU)."""
    kind = device.device_kind.lower().replace(" ", "")
    names = {
        "tpuv5lite": "v5e",
        "tpuv5": "v5p",
        "tpuv5p": "v5p",
        "tpuv6lite": "v6e",
        "tpu7x": "tpu7x",
        "tpuv7x": "tpu7x",
    }
    if kind in names:
        return CHIPS[names[kind]]
    return next((CHIPS[name] for name in ("h100", "h200", "rtx4090") if name in kind), None)
