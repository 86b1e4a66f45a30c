"""Hugging Face folders: safetensors read tensor by tensor onto the mesh, and written back with all
that belongs to them.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gram_jax import tree
from gram_jax.checkpoint.assemble import Stored, assemble
from gram_jax.checkpoint.hf_config import config_from_hf, config_to_hf
from gram_jax.checkpoint.hf_names import slots
from gram_jax.checkpoint.integrity import (
    MANIFEST,
    find_damage,
    has_manifest,
    refusal,
    write_manifest,
)
from gram_jax.checkpoint.runs import RECIPE
from gram_jax.cluster.agreement import lines_of_all
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.judge import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import param_specs
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

CONFIG = "config.json"
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
    if problems := problems if alone else lines_of_all(problems):
        raise refusal(folder, problems, _advice(folder))


def _advice(folder: Path) -> str:
    if folder.name == "model" and (folder.parent / RECIPE).is_file():
        return "Restore the files from a copy, or start the run's command again, which writes them anew"
    return (
        "Restore the files from a copy, or export the model again. If they were changed on purpose: "
        f"gram-jax verify {folder} --accept"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError where there is none."""
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


def _stored(folder: Path) -> dict[str, Stored]:
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


def _indexed(folder: Path) -> dict[str, Stored]:
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
    stored: dict[str, Stored] = {}
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


def _tensors(path: Path) -> Iterator[tuple[str, Stored]]:
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

        yield name, Stored(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), path.name, read)


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


def _settle_tied_head(cfg: ModelConfig, stored: dict[str, Stored]) -> None:
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


def export_hf(
    folder: str | Path,
    cfg: ModelConfig,
    params: Tree,
    *,
    dtype: str | None,
    tokenizer: Any | None,
    spec: JudgeSpec | None,
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a folder that `transformers` opens, with everything that this judge needs; returns its
    path.

    params: without LoRA (merge it first). dtype None keeps each weight's own. Files above
    `shard_bytes` are split, with an index. The folder appears whole or not at all: it is written
    beside its place and renamed. Raises CheckpointError for a folder in use or a full disk,
    LayoutError for parameters that are not those of `cfg`.

    >>> import jax
    >>> from tempfile import TemporaryDirectory
    >>> from gram_jax import load_model
    >>> from gram_jax.sharding import make_placement
    >>> one_device = make_placement({}, devices=jax.devices()[:1])
    >>> cfg, params = load_model("tiny-random", one_device, "bfloat16")
    >>> with TemporaryDirectory() as place:
    ...     folder = export_hf(f"{place}/judge", cfg, params, dtype=None, tokenizer=None, spec=None)
    ...     print(sorted(path.name for path in folder.iterdir()))
    ...     _, again = load_model(folder, one_device, None)
    ['config.json', 'generation_config.json', 'gram_jax_manifest.json', 'model.safetensors']
    >>> jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
    True
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: give the name of a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise CheckpointError(
            f"{folder} is not empty: choose another folder, or overwrite it on purpose"
        )
    _check_params(cfg, params)
    if tokenizer is not None:
        check_tokenizer(tokenizer, cfg)
    shards = _shards(cfg, params, dtype, shard_bytes)
    needed = sum(size for shard in shards for size in shard.values())
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    if jax.process_index() != 0:  # takes part in the gathering; the first process writes
        _write_weights(partial, cfg, params, dtype, shards)
        return folder
    with _writing(partial, needed):
        _write_weights(partial, cfg, params, dtype, shards)
        _write_texts(partial, cfg, params, dtype, tokenizer)
        if tokenizer is not None:
            _write_tokenizer(partial, tokenizer)
        if spec is not None:
            spec.save(partial)
        write_manifest(partial)
        _move_into_place(partial, folder)
    return folder


def check_tokenizer(tokenizer: Any, cfg: ModelConfig) -> None:
    """Raises LayoutError where a token's id lies outside the embedding table (a larger table is
    usual).
    """
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= cfg.vocab_size or len(tokenizer) > cfg.vocab_size:
        raise LayoutError(
            f"the tokenizer does not fit the weights: it has {len(tokenizer)} tokens with ids up "
            f"to {highest}, the embedding table has {cfg.vocab_size} rows. Use the tokenizer that "
            "belongs to the model"
        )


def _check_params(cfg: ModelConfig, params: Tree) -> None:
    specs, found = tree.flatten(param_specs(cfg)), tree.flatten(params)
    problems = [f"{path}: missing" for path in specs.keys() - found.keys()]
    problems += [f"{path}: {_extra(path)}" for path in found.keys() - specs.keys()]
    problems += [
        f"{path}: shape {list(found[path].shape)}, expected {list(spec.shape)}"
        for path, spec in specs.items()
        if path in found and found[path].shape != spec.shape
    ]
    if problems:
        raise LayoutError("parameters cannot be exported:\n  " + "\n  ".join(sorted(problems)))


def _extra(path: str) -> str:
    if "lora" in path:
        return "LoRA is not exported by itself; merge it first (merge_lora)"
    if path == "score":
        return "the head of a discriminative reward model has no place in a language model's folder"
    return "not a weight of this config"


def _shards(cfg: ModelConfig, params: Tree, dtype: str | None, limit: int) -> list[dict[str, int]]:
    """Which tensors go into which file: a list of {name: bytes}, in the order of the table."""
    leaves, shards = tree.flatten(params), [{}]
    for name, slot in slots(cfg, "hf").items():
        item = jnp.dtype(dtype or leaves[slot.rule.path].dtype).itemsize
        size = item * int(np.prod(slot.stored_shape))
        if shards[-1] and sum(shards[-1].values()) + size > limit:
            shards.append({})
        shards[-1][name] = size
    return shards


def _write_weights(
    folder: Path, cfg: ModelConfig, params: Tree, dtype: str | None, shards: list[dict[str, int]]
) -> None:
    """The safetensors files: on the host lie one leaf and one file's worth of tensors at a time."""
    leaves, places = tree.flatten(params), slots(cfg, "hf")
    held: dict[str, np.ndarray] = {}
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in shard:
            slot = places[name]
            if slot.rule.path not in held:
                held = {slot.rule.path: _on_host(leaves[slot.rule.path])}
            leaf = held[slot.rule.path]
            part = leaf if slot.layer is None else leaf[slot.layer]
            tensors[name] = slot.to_stored(part).astype(jnp.dtype(dtype or part.dtype), copy=False)
            weight_map[name] = file
        if jax.process_index() == 0:
            # "pt" is what transformers looks for; the format is the same for everyone
            save_file(tensors, folder / file, metadata={"format": "pt", MARK: MANIFEST})
    if len(shards) > 1 and jax.process_index() == 0:
        total = sum(size for shard in shards for size in shard.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _on_host(leaf: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _write_texts(
    folder: Path,
    cfg: ModelConfig,
    params: Tree,
    dtype: str | None,
    tokenizer: Any | None,
) -> None:
    # Stated even where there is none: transformers would otherwise assume the first Llama's ids.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name, None) for name in names}
    stored = dtype or str(tree.flatten(params)["embed"].dtype)
    _write_json(folder / CONFIG, config_to_hf(cfg, stored) | ids)
    known = {name: token for name, token in ids.items() if token is not None}
    _write_json(folder / "generation_config.json", {"do_sample": False, **known})


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        # transformers 5 writes this name, which 4 does not know; both know the older one
        _write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _writing(partial: Path, needed: int) -> Iterator[None]:
    """A fresh folder, gone afterwards; a disk that is or becomes full is a CheckpointError."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(partial.parent).free
        if needed > free:
            raise _full(partial.parent, needed, free)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports a failed write as text only
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
            raise _full(partial.parent, needed, shutil.disk_usage(partial.parent).free) from error
        raise CheckpointError(f"{partial.parent} cannot be written to: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _full(folder: Path, needed: int, free: int) -> CheckpointError:
    return CheckpointError(
        f"the disk of {folder} is full: the weights need {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} "
        "MB are free. Nothing was left behind. Free some space, choose another folder, or export "
        "in bfloat16"
    )


def _move_into_place(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.is_dir():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
