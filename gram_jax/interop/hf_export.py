"""A judge as a Hugging Face folder: safetensors, config, tokenizer, judge.json and the hashes of all of them."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gram_jax import tree
from gram_jax.checkpoint.manifest import MANIFEST, write_manifest
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.files import is_full_disk
from gram_jax.interop.hf_config import check_vocabulary, config_to_hf
from gram_jax.interop.hf_files import CONFIG, GENERATION, INDEX, MARK, WEIGHTS, read_json
from gram_jax.interop.hf_names import tensor_mappings
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import SCALAR_HEAD, param_specs
from gram_jax.tree import Tree


def export_hf(
    folder: str | Path,
    cfg: ModelConfig,
    params: Tree,
    *,
    dtype: str | None,
    tokenizer: Any | None,
    spec: JudgeSpec | None,
    stops: Sequence[int] = (),
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a folder that `transformers` opens, with everything that this judge needs; returns its
    path.

    params: without LoRA (merge it first). dtype None keeps each weight's own. stops: ids that end a text besides the
    tokenizer's own. Files above `shard_bytes` are split, with an index. The folder appears whole or not at all: it is
    written beside its place and renamed. Raises CheckpointError for a folder in use or a full disk, LayoutError for
    parameters that are not those of `cfg`.

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
        check_vocabulary(tokenizer, cfg)
    shards = _shards(cfg, params, dtype, shard_bytes)
    needed = sum(size for shard in shards for size in shard.values())
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    if jax.process_index() != 0:  # takes part in the gathering; the first process writes
        _write_weights(partial, cfg, params, dtype, shards)
        return folder
    with _writing(partial, needed):
        _write_weights(partial, cfg, params, dtype, shards)
        _write_texts(partial, cfg, params, dtype, tokenizer, stops)
        if tokenizer is not None:
            _write_tokenizer(partial, tokenizer)
        if spec is not None:
            spec.save(partial)
        write_manifest(partial)
        _move_into_place(partial, folder)
    return folder


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
    if path == SCALAR_HEAD:
        return "the head of a discriminative reward model has no place in a language model's folder"
    return "not a weight of this config"


def _shards(cfg: ModelConfig, params: Tree, dtype: str | None, limit: int) -> list[dict[str, int]]:
    """Which tensors go into which file: a list of {name: bytes}, in the order of the table."""
    leaves, shards = tree.flatten(params), [{}]
    for name, slot in tensor_mappings(cfg, "hf").items():
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
    leaves, places = tree.flatten(params), tensor_mappings(cfg, "hf")
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
    stops: Sequence[int],
) -> None:
    # Stated even where there is none: transformers would otherwise assume the first Llama's ids.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name, None) for name in names}
    stored = dtype or str(tree.flatten(params)["embed"].dtype)
    _write_json(folder / CONFIG, config_to_hf(cfg, stored) | ids)
    known = {name: token for name, token in ids.items() if token is not None}
    own = [ids["eos_token_id"]] if "eos_token_id" in known else []
    if len(ends := list(dict.fromkeys((*own, *stops)))) > 1:
        known["eos_token_id"] = ends
    _write_json(folder / GENERATION, {"do_sample": False, **known})


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
        if is_full_disk(error):
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
