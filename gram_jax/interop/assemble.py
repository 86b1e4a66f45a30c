"""Stored tensors -> a sharded parameter tree, checked as a whole first and then read one leaf at a
time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import tree
from gram_jax.errors import LayoutError
from gram_jax.interop.hf_names import Format, TensorMapping, tensor_mappings, why_unclaimed
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_shardings, param_specs
from gram_jax.sharding import Placement
from gram_jax.tree import Tree


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file. `read(part)` returns that part of it, as `dtype`."""

    shape: tuple[int, ...]
    dtype: str
    file: str
    read: Callable[[tuple[slice, ...]], np.ndarray]


FLOATS = ("float32", "bfloat16", "float16")


def assemble(
    cfg: ModelConfig,
    stored: Mapping[str, StoredTensor],
    names: Format,
    placement: Placement,
    dtype: str | None,
) -> Tree:
    """Parameters of `cfg` on the mesh, from the tensors of its files.

    Each device's part of a leaf is read by itself, so the host holds about one leaf at a time
    beside the result. dtype None keeps the stored one. Raises LayoutError listing every tensor that
    does not fit.
    """
    wanted = tensor_mappings(cfg, names)
    check_layout(cfg, stored, names)
    leaves: dict[str, list[tuple[TensorMapping, StoredTensor]]] = {}
    for name, slot in wanted.items():
        leaves.setdefault(slot.rule.path, []).append((slot, stored[name]))
    mixed = {path: sorted({s.dtype for _, s in parts}) for path, parts in leaves.items()}
    if dtype is None and (mixed := {p: d for p, d in mixed.items() if len(d) > 1}):
        raise LayoutError(
            f"layers of one kind are stored in different formats: {mixed}. They are kept in one "
            'array: say which dtype that should have, e.g. dtype="float32"'
        )
    specs, shardings = param_specs(cfg), param_shardings(param_specs(cfg), placement)

    def leaf(path: str, spec, sharding: jax.sharding.NamedSharding) -> jax.Array:
        parts = leaves[path]
        return _leaf(parts, spec.shape, sharding, jnp.dtype(dtype or parts[0][1].dtype))

    return tree.map_with_path(leaf, specs, shardings)


def _leaf(
    parts: list[tuple[TensorMapping, StoredTensor]],
    shape: tuple[int, ...],
    sharding: jax.sharding.NamedSharding,
    dtype: np.dtype,
) -> jax.Array:
    """One array, its layers read one by one. Devices that hold the same part share one reading."""
    known: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        key = str(index)
        if key not in known:
            sizes = [len(range(*cut.indices(size))) for cut, size in zip(index, shape, strict=True)]
            known[key] = np.empty(sizes, dtype)
            if parts[0][0].layer is None:
                known[key][...] = _part(*parts[0], index)
            else:
                for place, part in enumerate(parts[index[0]]):
                    known[key][place] = _part(*part, index[1:])
        return known[key]

    # JAX declares that a callback may be given None, and gives every one its slices.
    return jax.make_array_from_callback(shape, sharding, read)  # pyright: ignore[reportArgumentType]


def _part(slot: TensorMapping, stored: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
    part, rest = slot.stored_part(index)
    return slot.to_model(stored.read(part))[rest]


def check_layout(cfg: ModelConfig, stored: Mapping[str, StoredTensor], names: Format) -> None:
    """Every stored tensor has a place, every place is filled, shapes and formats agree; else one
    LayoutError.
    """
    wanted = tensor_mappings(cfg, names)
    problems = []
    for name, tensor in stored.items():
        if name not in wanted:
            problems.append(
                f"{name} in {tensor.file}: has no place ({why_unclaimed(name, cfg, names)})"
            )
        elif tensor.shape != wanted[name].stored_shape:
            problems.append(
                f"{name} in {tensor.file}: shape {list(tensor.shape)}, expected "
                f"{list(wanted[name].stored_shape)} from the config"
            )
        elif tensor.dtype not in FLOATS:
            problems.append(
                f"{name} in {tensor.file}: stored as {tensor.dtype}, expected one of "
                f"{', '.join(FLOATS)}"
            )
    problems += [
        f"{name}: not in any file"
        + (" (tied heads: tie_word_embeddings = true)" * (slot.rule.path == "head"))
        for name, slot in wanted.items()
        if name not in stored
    ]
    if problems:
        raise LayoutError(
            f"{len(problems)} tensor(s) do not fit a {cfg.family} model of {cfg.layers} layers, "
            f"embed size {cfg.embed_size}:\n  " + "\n  ".join(problems)
        )
