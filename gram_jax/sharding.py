"""The mesh, and the rules that say which mesh axes each logical axis of an array is spread over.

One device is a mesh of one, so there is one code path. Arrays name logical axes ("batch", "embed", "heads", ...);
a rules table maps them to the mesh axes data, fsdp, tensor, sequence. A new strategy is a new table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
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
        works = [str(n) for n in range(1, placement.mesh.size + 1) if size % n == 0]
        lines.append(
            f"{', '.join(paths)}: {axis} {size} over {over}; it can be cut into {', '.join(works)}"
        )
    raise RecipeError("[mesh] does not divide this model:\n  " + "\n  ".join(lines))


def make_placement(
    sizes: Mapping[str, int] | None = None, *, devices: Sequence[Any] | None = None
) -> Placement:
    """Mesh of the given axis sizes (one of them may be -1: whatever is left) over `devices`, default all.

    Without sizes every device holds a part of the batch and of the weights ({"fsdp": -1}).
    Raises RecipeError where the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    wanted = {axis: 1 for axis in MESH_AXES} | dict({"fsdp": -1} if sizes is None else sizes)
    if unknown := sorted(wanted.keys() - set(MESH_AXES)):
        raise RecipeError(f"unknown mesh axes {unknown}: the axes are {', '.join(MESH_AXES)}")
    free = [axis for axis, size in wanted.items() if size == -1]
    fixed = math.prod(size for size in wanted.values() if size != -1)
    if len(free) > 1 or fixed < 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise RecipeError(
            f"mesh {wanted} does not fit {len(devices)} device(s): the sizes must multiply to "
            f"{len(devices)}, and at most one may be -1 (whatever is left)"
        )
    for axis in free:
        wanted[axis] = len(devices) // fixed
    # Auto, not the new default Explicit: the rules are constraints and XLA's partitioner fills in the rest.
    mesh = jax.make_mesh(
        tuple(wanted[axis] for axis in MESH_AXES),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )
    return Placement(mesh, tuple(RULES.items()))
