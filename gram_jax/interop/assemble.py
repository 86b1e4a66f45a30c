"""Stored tensors -> a sharded parameter tree, read leaf by leaf after a check of all shapes and dtypes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import tree
from gram_jax.errors import LayoutError
from gram_jax.interop.hf_names import (
    Format,
    TensorMapping,
    fused_tensors,
    tensor_mappings,
    why_unclaimed,
)
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import ParamSpec, param_specs
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. `read(part)` returns that part of it, as `dtype`."""

    shape: tuple[int, ...]
    dtype: str
    file: str
    read: Callable[[tuple[slice, ...]], np.ndarray]


Part = tuple[TensorMapping, StoredTensor]


def split_fused(cfg: ModelConfig, stored: dict[str, StoredTensor], names: Format) -> None:
    """Put the parts of tensors that hold several matrices in their place."""
    places = tensor_mappings(cfg, names)
    for whole, parts in fused_tensors(cfg, names).items():
        if (tensor := stored.get(whole)) is None:
            continue
        rows = [places[part].stored_shape[0] for part in parts]
        if tensor.shape[0] != sum(rows):
            raise LayoutError(
                f"{whole} in {tensor.file}: {tensor.shape[0]} rows, expected {sum(rows)}"
            )
        del stored[whole]
        for part, size, end in zip(parts, rows, accumulate(rows), strict=True):

            def read(
                index: tuple[slice, ...], start: int = end - size, read: Any = tensor.read
            ) -> np.ndarray:
                first, *rest = index
                return read((slice(first.start + start, first.stop + start), *rest))

            stored[part] = replace(tensor, shape=(size, *tensor.shape[1:]), read=read)


def assemble(
    cfg: ModelConfig,
    stored: Mapping[str, StoredTensor],
    names: Format,
    placement: Placement,
    dtype: str | None,
) -> Tree:
    """Parameters of `cfg` on the mesh, from the tensors of its files. dtype None keeps the stored one.

    Each device's part of a leaf is read separately, so the host holds about one leaf at a time in addition to the
    result.
    Raises LayoutError listing every tensor that does not fit.
    """
    wanted = tensor_mappings(cfg, names)
    if problems := _problems(cfg, stored, names, wanted):
        raise LayoutError(
            f"{len(problems)} tensor(s) do not fit a {cfg.family} model of {cfg.layers} layers, embed size "
            f"{cfg.embed_size}:\n  " + "\n  ".join(problems)
        )
    leaves: dict[str, list[Part]] = {}
    for name, slot in wanted.items():
        leaves.setdefault(slot.rule.path, []).append((slot, stored[name]))
    dtypes = {path: sorted({tensor.dtype for _, tensor in parts}) for path, parts in leaves.items()}
    if dtype is None and (mixed := {path: d for path, d in dtypes.items() if len(d) > 1}):
        raise LayoutError(
            f"layers are stored in different dtypes: {mixed}. They become one array: state its dtype, for example "
            'dtype="float32"'
        )

    def leaf(path: str, spec: ParamSpec) -> jax.Array:
        kind = jnp.dtype(dtype or dtypes[path][0])
        return _leaf(leaves[path], spec.shape, placement.sharding(*spec.axes), kind)

    return tree.map_with_path(leaf, param_specs(cfg))


def _leaf(
    parts: list[Part], shape: tuple[int, ...], sharding: jax.sharding.NamedSharding, dtype: np.dtype
) -> jax.Array:
    """One array, read layer by layer and expert by expert. A part that several devices hold is read once."""
    known: dict[str, np.ndarray] = {}
    places = {part[0].at: part for part in parts}

    @np.errstate(over="ignore")  # weights are checked when they are loaded
    def read(index: tuple[slice, ...]) -> np.ndarray:
        key = str(index)
        if key not in known:
            index = tuple(slice(*cut.indices(n)) for cut, n in zip(index, shape, strict=True))
            sizes = [cut.stop - cut.start for cut in index]
            known[key] = np.empty(sizes, dtype)
            for at, part in places.items():
                here = [place - cut.start for place, cut in zip(at, index, strict=False)]
                if all(0 <= place < size for place, size in zip(here, sizes, strict=False)):
                    known[key][tuple(here)] = _read(*part, index[len(at) :])
        return known[key]

    # The declared type of the callback's argument includes None, but JAX always passes slices.
    return jax.make_array_from_callback(shape, sharding, read)  # pyright: ignore[reportArgumentType]


def _read(slot: TensorMapping, stored: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
    part, rest = slot.stored_part(index)
    return slot.to_model(stored.read(part))[rest]


def _problems(
    cfg: ModelConfig,
    stored: Mapping[str, StoredTensor],
    names: Format,
    wanted: Mapping[str, TensorMapping],
) -> list[str]:
    """A line for every tensor that is unexpected, missing, or of another shape or dtype."""
    problems = []
    for name, tensor in stored.items():
        place = f"{name} in {tensor.file}"
        if name not in wanted:
            problems.append(f"{place}: has no place ({why_unclaimed(name, cfg, names)})")
        elif tensor.shape != (shape := wanted[name].stored_shape):
            problems.append(
                f"{place}: shape {list(tensor.shape)}, expected {list(shape)} from the config"
            )
        elif tensor.dtype not in FLOATS:
            problems.append(f"{place}: stored as {tensor.dtype}, expected {' or '.join(FLOATS)}")
    for name in [name for name in wanted if name not in stored]:
        tied = wanted[name].rule.path == "head"
        hint = " (tied heads: tie_word_embeddings = true)" if tied else ""
        problems.append(f"{name}: not in any file{hint}")
    return problems
