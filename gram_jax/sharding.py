"""The mesh, and the rules that say which mesh axes each logical axis of an array is spread over.

One device is a mesh of one, so there is one code path. Arrays name logical axes ("batch", "embed", "heads", ...);
a rules table maps them to the mesh axes data, fsdp, tensor, sequence. A new strategy is a new table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gram_jax.errors import RecipeError

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# "embed_table" is the width of the embedding table and of the head. It stays whole: a table that is sharded on
# both dimensions makes XLA re-materialise it at the lookup.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "layers": (),
    "vocab": ("tensor", "fsdp"),
    "embed_table": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_size": (),
    "mlp": ("tensor",),
    "rank": (),
    # rows and table while the one is looked up in the other, whose width is cut over fsdp meanwhile
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
    """A mesh and its rules: hashable, so that it can be a static argument of a jitted function."""

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """PartitionSpec of an array whose dimensions carry these logical axes (None: not spread)."""
        table = dict(self.rules)
        return PartitionSpec(*(table[axis] or None if axis is not None else None for axis in axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """NamedSharding for these logical axes; no axes at all means replicated."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """State inside a jitted function how an activation is spread. Nothing to say on one device."""
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

    @property
    def batch_shards(self) -> int:
        """Number of parts that the batch dimension is cut into."""
        return math.prod(self.mesh.shape[axis] for axis in dict(self.rules)["batch"])


def check_divides(weights: Mapping[str, Any], placement: Placement) -> None:
    """Raises RecipeError where the mesh does not cut every weight into equal parts.

    weights: by path, each with its shape and logical axes (a ParamSpec).
    """
    rules, uneven = dict(placement.rules), {}
    for path, weight in weights.items():
        for axis, size in zip(weight.axes, weight.shape, strict=True):
            if size % math.prod(placement.mesh.shape[over] for over in rules[axis]):
                uneven.setdefault((axis, size), []).append(path)
    if not uneven:
        return
    lines = []
    for (axis, size), paths in uneven.items():
        over = " x ".join(f"{name} = {placement.mesh.shape[name]}" for name in rules[axis])
        parts = math.prod(placement.mesh.shape[name] for name in rules[axis])
        works = [n for n in range(1, 2 * placement.mesh.size + 1) if size % n == 0]
        lines.append(f"{', '.join(paths)}: {axis} {size} over {over}; {nearest(parts, works)}")
    raise RecipeError("[mesh] does not divide this model:\n  " + "\n  ".join(lines))


def make_placement(
    sizes: Mapping[str, int] | None = None,
    *,
    between: Mapping[str, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> Placement:
    """Mesh of the given axis sizes (one of them may be -1: whatever is left) over `devices`, default all.

    Without sizes every device holds a part of the batch and of the weights ({"fsdp": -1}). between:
    sizes of the same axes over slices or hosts, between which the network is slow; an axis is as
    large as both of its sizes multiplied. Raises RecipeError where the sizes do not multiply to the
    number of devices, or those of `between` to the number of slices or hosts; several slices need it.
    """
    devices = list(jax.devices() if devices is None else devices)
    inside = {axis: 1 for axis in MESH_AXES} | dict({"fsdp": -1} if sizes is None else sizes)
    outside = {axis: 1 for axis in MESH_AXES} | dict(between or {})
    if unknown := sorted((inside.keys() | outside.keys()) - set(MESH_AXES)):
        raise RecipeError(f"unknown mesh axes {unknown}: the axes are {', '.join(MESH_AXES)}")
    parts = math.prod(outside.values())
    if parts == 1 and _attribute(devices) == "slice_index":
        slices = len(islands_of(devices))
        raise RecipeError(
            f"the {len(devices)} devices lie in {slices} slices, between which the network is slow, and the recipe "
            f"does not say what crosses it: expected [mesh.dcn], such as data = {slices} "
            f"(--set mesh.dcn.data={slices})"
        )
    if parts > 1 and len(islands_of(devices)) != parts:
        counts = sorted({len(island) for island in islands_of(devices).values()})
        raise RecipeError(
            f"[mesh.dcn] {_stated(outside)} multiplies to {parts}, and the {len(devices)} devices lie in "
            f"{len(islands_of(devices))} slices or hosts (of {' or '.join(map(str, counts))} devices): the sizes must "
            "multiply to their number"
        )
    here = len(devices) // parts
    free = [axis for axis, size in inside.items() if size == -1]
    fixed = math.prod(size for size in inside.values() if size != -1)
    if len(free) > 1 or fixed < 1 or here % fixed or (not free and fixed != here):
        where = f"{here} device(s)" + (f" of each of {parts} slices or hosts" if parts > 1 else "")
        works = [n for n in range(1, here + 1) if here % n == 0]
        raise RecipeError(
            f"mesh {_stated(inside)} does not fit {where}: the sizes must multiply to {here}, and at most one may be "
            f"-1 (whatever is left); {nearest(fixed, works)} for their product"
        )
    for axis in free:
        inside[axis] = here // fixed
    # Auto, not the new default Explicit: the rules are constraints and XLA's partitioner fills in the rest.
    types = (AxisType.Auto,) * len(MESH_AXES)
    if parts > 1:
        mesh = Mesh(arrange(devices, inside, outside), MESH_AXES, axis_types=types)
    else:
        shape = tuple(inside[axis] for axis in MESH_AXES)
        mesh = jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    return Placement(mesh, tuple(RULES.items()))


def arrange(devices: Sequence[Any], inside: Mapping[str, int], outside: Mapping[str, int]) -> Any:
    """Devices as an array over MESH_AXES: neighbours along an axis share a slice or host as long as `inside` lasts."""
    return mesh_utils.create_hybrid_device_mesh(
        [inside[axis] for axis in MESH_AXES],
        [outside[axis] for axis in MESH_AXES],
        list(devices),
        process_is_granule=_attribute(devices) == "process_index",
    )


def islands_of(devices: Sequence[Any]) -> dict[int, list[Any]]:
    """The devices by slice; by host (process) where there is one slice or none."""
    attribute = _attribute(devices)
    found: dict[int, list[Any]] = {}
    for device in devices:
        found.setdefault(getattr(device, attribute), []).append(device)
    return found


def _attribute(devices: Sequence[Any]) -> str:
    slices = {getattr(device, "slice_index", None) for device in devices}
    return "slice_index" if len(slices) > 1 else "process_index"


def _stated(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} = {size}" for axis, size in sizes.items() if size != 1) or "1"


def nearest(value: int, works: Sequence[int]) -> str:
    """The valid sizes around a value, in words.

    >>> nearest(4, [1, 3, 9]), nearest(4, [1, 2])
    ('the nearest valid sizes are 3 and 9', 'the nearest valid size is 2')
    """
    around = [max((n for n in works if n <= value), default=None)]
    around.append(min((n for n in works if n > value), default=None))
    found = [str(n) for n in around if n is not None]
    return f"the nearest valid {'sizes are' if len(found) > 1 else 'size is'} {' and '.join(found)}"


def nearest_multiple(value: int, unit: int) -> str:
    """The multiples of `unit` around a value, in words.

    >>> nearest_multiple(1000, 128), nearest_multiple(100, 128)
    ('the nearest valid sizes are 896 and 1024', 'the nearest valid size is 128')
    """
    below = value // unit * unit
    return nearest(value, [n for n in (below, below + unit) if n])
