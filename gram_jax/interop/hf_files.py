"""Hugging Face folders: safetensors files read tensor by tensor onto the mesh (hf_export.py writes them)."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from gram_jax.checkpoint.manifest import MANIFEST, find_damage, has_manifest, refusal
from gram_jax.checkpoint.run_info import RECIPE
from gram_jax.distributed.collectives import all_gather_lines
from gram_jax.errors import CheckpointError, GramWarning, LayoutError
from gram_jax.files import describe_folder, read_json
from gram_jax.interop.assemble import StoredTensor, assemble, split_fused
from gram_jax.interop.hf_config import config_from_hf
from gram_jax.model.config import ModelConfig
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# In the header of safetensors files by gram_jax, whose folder must hold a manifest. Other programs drop it.
MARK = "gram_jax"
EMBEDDING = "model.embed_tokens.weight"
# Value heads, weight and bias: of TRL (AutoModelForCausalLMWithValueHead) and OpenRLHF.
VALUE_HEADS = {
    "v_head.summary.weight": "v_head.summary.bias",
    "v_head.weight": "v_head.bias",
    "value_head.weight": "value_head.bias",
}
# dtypes in the header of a safetensors file -> names of numpy and ml_dtypes; others are unchanged.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_hf(
    folder: str | Path,
    placement: Placement,
    dtype: str | None,
    *,
    cfg: ModelConfig | None = None,
    change: Callable[[dict[str, StoredTensor]], dict[str, StoredTensor]] = dict,
) -> tuple[ModelConfig, Tree]:
    """Config and sharded parameters of a Hugging Face folder. dtype None keeps the stored one.

    cfg: instead of that of config.json. change: from the stored tensors to those that are loaded. Raises
    CheckpointError for missing or damaged files (those that a manifest lists are hashed first), LayoutError for a
    config or tensors that do not fit.
    """
    folder = Path(folder)
    cfg = cfg or hf_config(folder)
    _check_weights(folder, placement)
    try:
        stored = change(_with_usual_names(_stored(folder)))
        if cfg.head == "scalar":
            _take_value_head(stored)
        split_fused(cfg, stored, "hf")
        _drop_redundant(cfg, stored)
        return cfg, assemble(cfg, stored, "hf", placement, dtype)
    except LayoutError as error:
        raise LayoutError(f"{folder}: {error}") from error


def hf_config(folder: str | Path) -> ModelConfig:
    """ModelConfig of a folder with a config.json."""
    path = Path(folder) / CONFIG
    check_files(path.parent, lambda name: name == CONFIG)
    try:
        cfg = config_from_hf(read_json(path))
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LayoutError(f"{path} holds a value of the wrong type: {error}") from error
    if cfg.head == "language" and _tensor_names(path.parent) & VALUE_HEADS.keys():
        return replace(cfg, head="scalar")  # a language model's config with a value head's tensors
    return cfg


def _tensor_names(folder: Path) -> set[str]:
    """Names of the stored tensors, without their files; empty if there are none or they cannot be read."""
    if (folder / INDEX).is_file():
        found = read_json(folder / INDEX).get("weight_map")
        return set(found) if isinstance(found, dict) else set()
    try:
        return set(safe_open(folder / WEIGHTS, framework="numpy").keys())
    except (SafetensorError, OSError):
        return set()


def check_files(folder: Path, wanted: Callable[[str], bool]) -> None:
    """Raises CheckpointError naming every file that differs from the manifest, if there is a manifest."""
    if has_manifest(folder):
        _refuse(folder, find_damage(folder, wanted=wanted))


def check_texts(folder: Path, *, ours: bool = False) -> None:
    """`check_files` for all but the weights: config, tokenizer, chat template, judge.json.

    ours: the folder was written with a manifest, so it must have one.
    """
    if ours and not has_manifest(folder):
        _refuse(folder, [f"{MANIFEST}: missing"])
    check_files(folder, lambda name: not name.endswith(".safetensors"))


def _check_weights(folder: Path, placement: Placement) -> None:
    """Raises CheckpointError if weight files differ from the manifest or are not in it.

    On a mesh over several processes each process hashes a part of the files, and all get the same result.
    """
    if not has_manifest(folder):
        return
    alone = len({device.process_index for device in placement.mesh.devices.flat}) == 1
    problems = find_damage(
        folder,
        wanted=lambda name: "/" not in name and name.endswith((".safetensors", INDEX)),
        exact=True,
        index=0 if alone else jax.process_index(),
        count=1 if alone else jax.process_count(),
    )
    _refuse(folder, problems if alone else all_gather_lines(problems))


def _refuse(folder: Path, problems: Sequence[str]) -> None:
    """Raises CheckpointError if there are problems, with the remedy for this kind of folder."""
    advice = (
        "Restore the files from a copy, or export the model again. If they were changed on purpose: gram-jax verify "
        f"{folder} --accept"
    )
    if folder.name == "model" and (folder.parent / RECIPE).is_file():
        advice = "Restore the files from a copy, or start the run's command again, which writes them again"
    if problems:
        raise refusal(folder, problems, advice)


def _stored(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's safetensors files, without reading it."""
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / WEIGHTS).is_file():
        return safetensors_of(folder / WEIGHTS)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return safetensors_of(files[0])
    if files:
        raise CheckpointError(
            f"{folder} has {len(files)} safetensors files and no {INDEX}, which lists those that belong together: the "
            "download is probably incomplete"
        )
    if pickles := sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth")):
        raise CheckpointError(
            f"{folder} has its weights as {', '.join(pickles)}: pickles can run code when opened, so they are not "
            "read. Convert them once with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise CheckpointError(f"no {WEIGHTS} and no {INDEX}: {describe_folder(folder)}")


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map: expected tensor name -> file")
    names = sorted(set(map(str, weight_map.values())))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{folder / INDEX} points outside its folder: {outside}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(names)} files of its {INDEX}: {', '.join(missing)}. Download "
            "them again"
        )
    stored: dict[str, StoredTensor] = {}
    for name in names:
        for tensor, found in safetensors_of(folder / name).items():
            if tensor in stored:
                raise CheckpointError(f"{tensor} is both in {stored[tensor].file} and in {name}")
            stored[tensor] = found
    wrong = [
        f"{tensor}: not in {file}, which {INDEX} states"
        for tensor, file in weight_map.items()
        if tensor not in stored or stored[tensor].file != file
    ]
    if wrong:
        raise LayoutError(f"{folder}: index and files disagree:\n  " + "\n  ".join(wrong))
    return stored


def safetensors_of(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, without reading it. Raises CheckpointError for a damaged file."""
    return dict(_tensors(path))


def _tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        handle = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a usable safetensors file: {_diagnosis(path, error)}"
        ) from error
    if MARK in (handle.metadata() or {}) and not has_manifest(path.parent):
        _refuse(path.parent, [f"{MANIFEST}: missing, though {path.name} was written with one"])
    for name in handle.keys():  # noqa: SIM118 (a handle is no dict)
        part = handle.get_slice(name)
        dtype: str = part.get_dtype()

        def read(index: tuple[slice, ...], name: str = name) -> np.ndarray:
            # Opened for each read: an open mapping keeps the parts read in memory, eventually the whole file.
            with safe_open(path, framework="numpy") as file:
                return file.get_slice(name)[index]

        shape = tuple(part.get_shape())
        yield name, StoredTensor(shape, _DTYPES.get(dtype, dtype), path.name, read)


def _diagnosis(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return "it is a pickle, which can run code when opened; convert it with transformers"
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; fetch the real file with `git lfs pull`"
    if start.startswith(b"GGUF"):
        return "it is a GGUF file; give its path, with the suffix .gguf, as the model's name"
    return f"{error} (truncated or damaged: compare its size, download it again)"


def _with_usual_names(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names of a ...ForCausalLM folder, whose embedding is model.embed_tokens.weight.

    A base model (AutoModel) lacks "model."; wrappers and models with images put other words before it.
    """
    found = [name for name in stored if name.endswith(EMBEDDING.removeprefix("model."))]
    if len(found) != 1 or found == [EMBEDDING]:
        return stored
    inner = found[0].removesuffix(
        EMBEDDING.removeprefix("model.")
    )  # before the names of the decoder
    outer = inner.removesuffix("model.")  # before those of heads
    renamed: dict[str, StoredTensor] = {}
    if images := [
        name for name in stored if re.search(r"(^|\.)(vision_\w+|multi_modal_projector)\.", name)
    ]:
        warnings.warn(
            f"{len(images)} tensors of images, such as {images[0]}, are left out: gram_jax reads text",
            category=GramWarning,
            stacklevel=4,
        )
        stored = {name: tensor for name, tensor in stored.items() if name not in images}
    for name, tensor in stored.items():
        usual = name.removeprefix(outer)
        if name.startswith(inner) and (
            inner or name.startswith(("embed_tokens.", "layers.", "norm."))
        ):
            usual = f"model.{name.removeprefix(inner)}"
        if usual in renamed:
            raise LayoutError(f"{name} in {tensor.file} and another tensor are both {usual}")
        renamed[usual] = tensor
    return renamed


def _take_value_head(stored: dict[str, StoredTensor]) -> None:
    """Give the value head that other libraries add to a language model the name of a scalar head."""
    for name, bias in VALUE_HEADS.items():
        if name not in stored or "score.weight" in stored:
            continue
        stored["score.weight"] = stored.pop(name)
        stored.pop("lm_head.weight", None)
        if stored.pop(bias, None) is not None:
            warnings.warn(
                f"{bias} is left out: it adds the same number to every reward, which changes no comparison",
                category=GramWarning,
                stacklevel=4,
            )


def _drop_redundant(cfg: ModelConfig, stored: dict[str, StoredTensor]) -> None:
    """Remove rotary buffers, and a head that repeats the embedding. Raises LayoutError if a tied head differs."""
    for name in [name for name in stored if name.endswith("rotary_emb.inv_freq")]:
        del stored[name]
    head, embed = stored.get("lm_head.weight"), stored.get(EMBEDDING)
    if not cfg.tied_head or head is None or embed is None:
        return
    # In slabs, so that two copies of a large vocabulary are never in memory.
    rows, slab = head.shape[0], 4096
    parts = [(slice(row, min(row + slab, rows)), slice(None)) for row in range(0, rows, slab)]
    if head.shape != embed.shape or not all(
        np.array_equal(head.read(part), embed.read(part)) for part in parts
    ):
        raise LayoutError(
            f"lm_head.weight in {head.file} differs from model.embed_tokens.weight, but config.json says "
            "tie_word_embeddings = true. If the head was trained separately, set tie_word_embeddings to false"
        )
    del stored["lm_head.weight"]
