"""The mesh, and the rules that map each logical axis of an array to the mesh axes that shard it.

One device is a mesh of one, so there is one code path. Arrays name logical axes ("batch", "embed", "heads", ...);
a rules table maps them to the mesh axes data, fsdp, tensor, sequence. A new strategy is a new table.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gram_jax.errors import RecipeError, nearest

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# "embed_table" is the width of the embedding table and of the head. It is not sharded: a table that is sharded on
# both dimensions makes XLA re-materialise it at the lookup.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    # Positions of the residual stream and its norms, between the products of two blocks: divided among the devices of a
    # tensor group, too (sequence parallelism, arXiv 2205.05198).
    "residual_time": ("sequence", "tensor"),
    "layers": (),
    "vocab": ("tensor", "fsdp"),
    "embed_table": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_size": (),
    "mlp": ("tensor",),
    # Experts of a mixture are divided among the devices of an axis, and are whole on each.
    "experts": ("tensor",),
    "expert_mlp": (),
    "routes": (),
    "rank": (),
    "labels": (),
    # Rows and table during the lookup, for which the table's width is sharded over fsdp.
    "lookup_rows": ("data",),
    "lookup_vocab": ("tensor",),
    # axes of activations
    "act_embed": (),
    "act_heads": ("tensor",),
    "act_kv_heads": ("tensor",),
    "act_mlp": ("tensor",),
}


@dataclass(frozen=True)
class Placement:
    """A device mesh and the rules that map logical axes of arrays to its axes.

    Hashable, so it can be a static argument of a jitted function. mesh: axes data, fsdp, tensor and sequence. rules:
    (logical axis, mesh axes) pairs.

    >>> placement = make_placement({}, devices=jax.devices()[:1])
    >>> isinstance(placement, Placement), placement.sharding("batch").is_fully_replicated
    (True, True)
    """

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """PartitionSpec of an array whose dimensions carry these logical axes (None: not sharded)."""
        table = dict(self.rules)
        return PartitionSpec(*(table[axis] or None if axis is not None else None for axis in axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """NamedSharding for these logical axes; no axes at all means replicated."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Constrain the sharding of an activation inside a jitted function; does nothing on one device."""
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

    def gather(self, weight: jax.Array, *axes: str | None) -> jax.Array:
        """Gather weights with these logical axes along "embed"; does nothing on one device.

        Over a whole three-dimensional torus in two steps, because libtpu writes a single one as an all-reduce of
        zeros and the part of each device, which sends twice the bytes (docs/meshes.md).
        """
        if self.mesh.size == 1:
            return weight
        if (lines := lines_of_torus(self.mesh)) is not None:
            partly = NamedSharding(lines, self.spec(axes))
            weight = jax.lax.with_sharding_constraint(weight, partly)
        return self.constrain(weight, *(None if axis == "embed" else axis for axis in axes))

    def put(self, x: np.ndarray, *axes: str | None) -> jax.Array:
        """Put a host array, equal on every process of the job, on the devices of the mesh."""
        return jax.make_array_from_callback(x.shape, self.sharding(*axes), lambda at: x[at])

    def residual_time(self, length: int) -> str:
        """The logical axis of `length` positions of the residual stream: "time" if `tensor` does not divide them."""
        return "time" if length % self.shards("residual_time") else "residual_time"

    @property
    def divides_residual(self) -> bool:
        """Whether the residual stream has more shards than the inputs of products."""
        return self.shards("residual_time") > self.shards("time")

    @property
    def platform(self) -> str:
        """Platform of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    def shards(self, axis: str) -> int:
        """Number of shards of a logical axis."""
        return math.prod(self.mesh.shape[name] for name in dict(self.rules)[axis])

    @property
    def batch_shards(self) -> int:
        """Number of shards of the batch dimension."""
        return self.shards("batch")


@cache
def lines_of_torus(mesh: Mesh) -> Mesh | None:
    """The mesh with fsdp cut into fsdp and "line", devices in a row; None unless fsdp spans three dimensions."""
    shape = mesh.devices.shape
    along_fsdp = np.moveaxis(mesh.devices, 1, 0).reshape(shape[1], -1)[:, 0]
    if any(len(getattr(device, "coords", ())) < 3 for device in along_fsdp):
        return None
    coords = np.array([device.coords for device in along_fsdp])
    if min(len(set(of)) for of in coords.T) <= 2:
        return None
    away = coords != coords[0]
    along = int(np.argmax(away[np.argmax(away.any(1))]))  # the dimension of the first step
    line = int(np.argmax(np.delete(away, along, axis=1).any(1)))
    if shape[1] % line:
        return None
    devices = mesh.devices.reshape(shape[0], shape[1] // line, line, *shape[2:])
    axes = (*MESH_AXES[:2], "line", *MESH_AXES[2:])
    return Mesh(devices, axes, axis_types=(mesh.axis_types[0],) * len(axes))


def check_divides(weights: Mapping[str, Any], placement: Placement) -> None:
    """Raises RecipeError if the mesh does not divide every weight into equal shards.

    weights: by path, each with its shape and logical axes (a ParamSpec).
    """
    uneven, lines = {}, []
    for path, weight in weights.items():
        for axis, size in zip(weight.axes, weight.shape, strict=True):
            if size % placement.shards(axis):
                uneven.setdefault((axis, size), []).append(path)
    for (axis, size), paths in uneven.items():
        names = dict(placement.rules)[axis]
        over = " x ".join(f"{name} = {placement.mesh.shape[name]}" for name in names)
        works = [n for n in range(1, 2 * placement.mesh.size + 1) if size % n == 0]
        sizes = nearest(placement.shards(axis), works)
        lines.append(f"{', '.join(paths)}: {axis} {size} over {over}; {sizes}")
    if lines:
        raise RecipeError("[mesh] does not divide this model:\n  " + "\n  ".join(lines))


def make_placement(
    sizes: Mapping[str, int] | None = None,
    *,
    dcn: Mapping[str, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> Placement:
    """Make a mesh over devices, with the default rules.

    sizes: number of devices by axis, of which one may be -1 (the remaining devices); default {"fsdp": -1}. dcn: sizes
    of the same axes over granules, which are TPU slices or hosts that a slower data-center network connects. With it,
    `sizes` are those inside a granule, and the size of an axis is the product of both. devices: default all.

    Raises RecipeError if the product of `sizes` is not the number of devices, if the product of `dcn` is not the
    number of granules, or for several slices without `dcn`.

    >>> make_placement({"fsdp": -1}, devices=jax.devices()[:1]).mesh.size
    1
    """
    devices = list(jax.devices() if devices is None else devices)
    ici_sizes = {axis: 1 for axis in MESH_AXES} | dict({"fsdp": -1} if sizes is None else sizes)
    dcn_sizes = {axis: 1 for axis in MESH_AXES} | dict(dcn or {})
    if unknown := sorted((ici_sizes.keys() | dcn_sizes.keys()) - set(MESH_AXES)):
        raise RecipeError(f"unknown mesh axes {unknown}: the axes are {', '.join(MESH_AXES)}")
    parts = math.prod(dcn_sizes.values())
    _check_granules(granules_of(devices), _attribute(devices), dcn_sizes)
    here = len(devices) // parts
    free = [axis for axis, size in ici_sizes.items() if size == -1]
    fixed = math.prod(size for size in ici_sizes.values() if size != -1)
    if len(free) > 1 or fixed < 1 or here % fixed or (not free and fixed != here):
        where = f"{here} device(s)" + (f" of each of {parts} slices or hosts" if parts > 1 else "")
        works = [n for n in range(1, here + 1) if here % n == 0]
        raise RecipeError(
            f"mesh {_format_sizes(ici_sizes)} does not fit {where}: the sizes must multiply to {here}, and at most "
            f"one may be -1 (the remaining devices); {nearest(fixed, works)} for their product"
        )
    for axis in free:
        ici_sizes[axis] = here // fixed
    # Auto, not the new default Explicit: the rules are constraints and XLA's partitioner fills in the rest.
    types = (AxisType.Auto,) * len(MESH_AXES)
    if parts > 1:
        mesh = Mesh(hybrid_mesh(devices, ici_sizes, dcn_sizes), MESH_AXES, axis_types=types)
    else:
        shape = [ici_sizes[axis] for axis in MESH_AXES]
        # jax.make_mesh divides an axis of the torus among two of the mesh for v5e only, and raises an error for others.
        laid_out = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        mesh = Mesh(laid_out, MESH_AXES, axis_types=types)
    return Placement(mesh, tuple(RULES.items()))


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes for `make_placement` from "axis=size,...". Raises RecipeError for another form.

    >>> parse_mesh("tensor=4,fsdp=-1")
    {'tensor': 4, 'fsdp': -1}
    """
    found = re.findall(r"(\w+)=(-1|[1-9]\d*)(?:,|$)", text)
    if not found or ",".join(map("=".join, found)) != text or len(dict(found)) < len(found):
        raise RecipeError(
            f"mesh {text!r}: expected axis=size,... such as fsdp=4 or tensor=2,fsdp=-1, each axis once; the axes are "
            f"{', '.join(MESH_AXES)}"
        )
    return {axis: int(size) for axis, size in found}


def local_placement(placement: Placement) -> Placement:
    """The part of a mesh on the devices of this process. Raises RecipeError if these are not a block of the mesh.

    >>> placement = make_placement({}, devices=jax.devices()[:1])
    >>> local_placement(placement) == placement
    True
    """
    if jax.process_count() == 1:
        return placement
    try:
        devices = placement.mesh.local_mesh.devices
    except ValueError as error:
        raise RecipeError(
            f"the devices of process {jax.process_index()} are not a block of the mesh: use [mesh] sizes that give "
            "every process a block"
        ) from error
    mesh = Mesh(devices, MESH_AXES, axis_types=placement.mesh.axis_types)
    return Placement(mesh, placement.rules)


def to_local(arrays: Any, placement: Placement) -> Any:
    """A tree of arrays on the devices of this process alone (`local_placement`), the whole of each array.

    What is sharded over processes is gathered; what is not is shared with the given arrays, without a copy. All
    processes call it.
    """
    if jax.process_count() == 1:
        return arrays
    mesh, here = placement.mesh, local_placement(placement).mesh
    blocks: dict[int, list[Any]] = {}
    for device in mesh.devices.flat:
        blocks.setdefault(device.process_index, []).append(device)
    devices = np.array(list(blocks.values())).reshape(-1, *here.devices.shape)
    axes = ("process", *MESH_AXES)
    whole = Mesh(devices, axes, axis_types=(mesh.axis_types[0], *mesh.axis_types))
    gathered = jax.device_put(
        arrays, jax.tree.map(lambda x: NamedSharding(whole, x.sharding.spec), arrays)
    )
    return jax.tree.map(
        lambda x: jax.make_array_from_single_device_arrays(
            x.shape,
            NamedSharding(here, x.sharding.spec),
            [shard.data for shard in x.addressable_shards],
        ),
        gathered,
    )


def _check_granules(
    granules: Mapping[int, Sequence[Any]], attribute: str, dcn_sizes: Mapping[str, int]
) -> None:
    parts, count = math.prod(dcn_sizes.values()), sum(map(len, granules.values()))
    if parts == 1 and attribute == "slice_index":
        raise RecipeError(
            f"the {count} devices are in {len(granules)} slices, between which the network is slow, and the recipe "
            f"does not state which axis crosses it: expected [mesh.dcn], such as data = {len(granules)} "
            f"(--set mesh.dcn.data={len(granules)})"
        )
    if parts > 1 and len(granules) != parts:
        counts = sorted({len(devices) for devices in granules.values()})
        raise RecipeError(
            f"[mesh.dcn] {_format_sizes(dcn_sizes)} multiplies to {parts}, and the {count} devices are in "
            f"{len(granules)} slices or hosts (of {' or '.join(map(str, counts))} devices): the sizes must multiply "
            "to their number"
        )


def hybrid_mesh(
    devices: Sequence[Any], ici_sizes: Mapping[str, int], dcn_sizes: Mapping[str, int]
) -> Any:
    """Devices as an array over MESH_AXES; neighbours along an axis share a granule within `ici_sizes`."""
    return mesh_utils.create_hybrid_device_mesh(
        [ici_sizes[axis] for axis in MESH_AXES],
        [dcn_sizes[axis] for axis in MESH_AXES],
        list(devices),
        process_is_granule=_attribute(devices) == "process_index",
        allow_split_physical_axes=True,
    )


def granules_of(devices: Sequence[Any]) -> dict[int, list[Any]]:
    """The devices by slice; by host (process) if there is at most one slice."""
    attribute = _attribute(devices)
    found: dict[int, list[Any]] = {}
    for device in devices:
        found.setdefault(getattr(device, attribute), []).append(device)
    return found


def _attribute(devices: Sequence[Any]) -> str:
    slices = {getattr(device, "slice_index", None) for device in devices}
    return "slice_index" if len(slices) > 1 else "process_index"


def _format_sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} = {size}" for axis, size in sizes.items() if size != 1) or "1"
