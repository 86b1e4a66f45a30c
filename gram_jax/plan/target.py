"""What a plan is made for: the devices of a topology, the mesh over them, and their chip."""

from dataclasses import dataclass

from gram_jax.errors import RecipeError
from gram_jax.plan.chips import Chip
from gram_jax.plan.topology import Topology, devices_of, local_chip
from gram_jax.recipes.tables import Recipe
from gram_jax.sharding import Placement
from gram_jax.training.compiling import free_bytes
from gram_jax.training.program import placement_of


@dataclass(frozen=True)
class PlanTarget:
    """A topology and the recipe's mesh over it. chip: None if it is not known."""

    topology: Topology
    placement: Placement
    chip: Chip | None

    @property
    def devices(self) -> int:
        """Number of devices of the mesh."""
        return self.placement.mesh.size

    @property
    def platform(self) -> str:
        """Of the devices, as JAX names it."""
        return self.placement.platform

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
    devices = devices_of(topology)
    try:
        placement = placement_of(recipe, devices)
    except ValueError as error:  # JAX's own, for devices that make no such mesh
        raise RecipeError(f"no mesh over {topology.name}: {error}") from error
    chip = topology.chip or local_chip(placement.mesh.devices.flat[0])
    return PlanTarget(topology, placement, chip)
