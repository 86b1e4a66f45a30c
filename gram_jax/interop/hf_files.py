"""Hugging Face folders as they are found: safetensors read tensor by tensor onto the mesh, faults named.

hf_export.py writes them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from gram_jax.checkpoint.manifest import (
    MANIFEST,
    find_damage,
    has_manifest,
    refusal,
)
from gram_jax.checkpoint.run_info import RECIPE
from gram_jax.distributed.collectives import all_gather_lines
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.interop.assemble import StoredTensor, assemble
from gram_jax.interop.hf_config import config_from_hf
from gram_jax.model.config import ModelConfig
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# In the header of our safetensors files: a folder that holds such a file must hold a manifest.
# Whoever stores the weights anew with another program drops it.
MARK = "gram_jax"
# Names of the header of a safetensors file -> names of numpy and ml_dtypes; others are passed on as
# they are.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_hf(
    folder: str | Path, placement: Placement, dtype: str | None
) -> tuple[ModelConfig, Tree]:
    """Config and parameters of a Hugging Face folder, each leaf spread over the mesh by its
    sharding.

    dtype None keeps the stored one. Raises CheckpointError for missing or damaged files (those that
    a manifest lists are hashed first), LayoutError for a config or tensors that do not fit.
    """
    folder = Path(folder)
    cfg = hf_config(folder)
    _check_weights(folder, placement)
    stored = _stored(folder)
    try:
        _settle_tied_head(cfg, stored)
        return cfg, assemble(cfg, stored, "hf", placement, dtype)
    except LayoutError as error:
        raise LayoutError(f"{folder}: {error}") from error


def hf_config(folder: str | Path) -> ModelConfig:
    """ModelConfig of a folder with a config.json."""
    check_files(Path(folder), lambda name: name == CONFIG)
    try:
        return config_from_hf(read_json(Path(folder) / CONFIG))
    except LayoutError as error:
        raise LayoutError(f"{Path(folder) / CONFIG}: {error}") from error


def check_files(folder: Path, wanted: Callable[[str], bool]) -> None:
    """Whether these files are as they were exported; a folder without a manifest is taken as it is.

    Raises CheckpointError that names those that are not.
    """
    if has_manifest(folder) and (problems := find_damage(folder, wanted=wanted)):
        raise refusal(folder, problems, _advice(folder))


def check_texts(folder: Path, *, ours: bool = False) -> None:
    """`check_files` for all but the weights: config, tokenizer, chat template, judge.json.

    ours: the folder was written with a manifest, so it must have one.
    """
    if ours and not has_manifest(folder):
        raise refusal(folder, [f"{MANIFEST}: missing"], _advice(folder))
    check_files(folder, lambda name: not name.endswith(".safetensors"))


def _check_weights(folder: Path, placement: Placement) -> None:
    """The files that `_stored` would read: as exported, and no others beside them.

    On a mesh over several processes each hashes its part, and all come to the same answer.
    """
    if not has_manifest(folder):
        return  # of others; `_tensors` notices where it was ours
    processes = {device.process_index for device in placement.mesh.devices.flat}
    alone = len(processes) == 1
    problems = find_damage(
        folder,
        wanted=lambda name: "/" not in name and name.endswith((".safetensors", INDEX)),
        exact=True,
        index=0 if alone else jax.process_index(),
        count=1 if alone else jax.process_count(),
    )
    if problems := problems if alone else all_gather_lines(problems):
        raise refusal(folder, problems, _advice(folder))


def _advice(folder: Path) -> str:
    if folder.name == "model" and (folder.parent / RECIPE).is_file():
        return "Restore the files from a copy, or start the run's command again, which writes them anew"
    return (
        "Restore the files from a copy, or export the model again. If they were changed on purpose: "
        f"gram-jax verify {folder} --accept"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}" + _contents(path.parent)
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected an object")
    return found


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return " (there is no such folder)"
    names = sorted(p.name for p in folder.iterdir())
    return f"; it holds {', '.join(names[:12]) or 'nothing'}" + (", ..." if len(names) > 12 else "")


def _stored(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's safetensors files, unread."""
    if (folder / INDEX).is_file():
        return _indexed(folder)
    files = (
        [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
    )
    if len(files) == 1:
        return dict(_tensors(files[0]))
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} has {len(files)} safetensors files and no {INDEX}: the index says which of "
            "them belong together, so the download is probably incomplete"
        )
    if pickles := sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth")):
        raise CheckpointError(
            f"{folder} has its weights as {', '.join(pickles)}: pickles can run code when opened, "
            "so they are not read. Convert them once with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise CheckpointError(f"{folder} has no {WEIGHTS} and no {INDEX}" + _contents(folder))


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map: expected tensor name -> file")
    names = sorted(set(map(str, weight_map.values())))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{folder / INDEX} points outside its folder: {outside}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(names)} files of its {INDEX}: "
            f"{', '.join(missing)}. Download them again"
        )
    stored: dict[str, StoredTensor] = {}
    for name in names:
        for tensor, found in _tensors(folder / name):
            if tensor in stored:
                raise CheckpointError(f"{tensor} is both in {stored[tensor].file} and in {name}")
            stored[tensor] = found
    wrong = [
        f"{tensor}: not in {file}, where {INDEX} puts it"
        for tensor, file in weight_map.items()
        if tensor not in stored or stored[tensor].file != file
    ]
    if wrong:
        raise LayoutError(f"{folder}: index and files disagree:\n  " + "\n  ".join(wrong))
    return stored


def _tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        handle = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a usable safetensors file: {_diagnosis(path, error)}"
        ) from error
    if MARK in (handle.metadata() or {}) and not has_manifest(path.parent):
        raise refusal(
            path.parent,
            [f"{MANIFEST}: missing, though {path.name} was written with one"],
            _advice(path.parent),
        )
    for name in handle.keys():  # noqa: SIM118 (a handle is no dict)
        part = handle.get_slice(name)
        dtype: str = part.get_dtype()

        def read(index: tuple[slice, ...], name: str = name) -> np.ndarray:
            # Opened anew: what a mapping has shown stays in memory for as long as it is open, and
            # the file would lie there whole by the end.
            with safe_open(path, framework="numpy") as file:
                return file.get_slice(name)[index]

        yield (
            name,
            StoredTensor(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), path.name, read),
        )


def _diagnosis(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return (
            "it is a pickle under another name, which can run code when opened; convert it with "
            "transformers"
        )
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; fetch the real file with `git lfs pull`"
    if start.startswith(b"GGUF"):
        return "it is a GGUF file; give its path, with the ending .gguf, as the model's name"
    return f"{error} (truncated or damaged: compare its size, download it again)"


def _settle_tied_head(cfg: ModelConfig, stored: dict[str, StoredTensor]) -> None:
    """Drop what may be there without a place: rotary buffers, and a head that repeats the
    embedding.
    """
    for name in [name for name in stored if name.endswith("rotary_emb.inv_freq")]:
        del stored[name]
    head, embed = stored.get("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if not cfg.tied_head or head is None or embed is None:
        return
    # In slabs, so that two copies of a large vocabulary never meet in memory.
    rows, slab = head.shape[0], 4096
    parts = [(slice(row, min(row + slab, rows)), slice(None)) for row in range(0, rows, slab)]
    same = head.shape == embed.shape and all(
        np.array_equal(head.read(part), embed.read(part)) for part in parts
    )
    if not same:
        raise LayoutError(
            f"lm_head.weight in {head.file} differs from model.embed_tokens.weight, yet "
            "config.json says tie_word_embeddings = true. One of them is wrong: if the head was "
            "trained by itself, set tie_word_embeddings to false"
        )
    del stored["lm_head.weight"]
