"""A judge as a Hugging Face folder: safetensors, config, tokenizer, judge.json and a manifest of their hashes."""

import glob
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from jax.experimental.multihost_utils import process_allgather
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gram_jax import tree
from gram_jax.checkpoint.manifest import MANIFEST, write_manifest
from gram_jax.distributed.lock import file_lock, hold_lock, reserve_lock
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.files import check_local, is_full_disk, no_space, read_json, write_json
from gram_jax.finite import check_weights
from gram_jax.interop.adapters import CONFIG as ADAPTER_CONFIG
from gram_jax.interop.adapters import WEIGHTS as ADAPTER_WEIGHTS
from gram_jax.interop.adapters import write_adapter
from gram_jax.interop.hf_config import check_vocabulary, config_to_hf
from gram_jax.interop.hf_files import CONFIG, GENERATION, INDEX, MARK, WEIGHTS
from gram_jax.interop.hf_names import TensorMapping, file_tensors
from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.tokens import text_encoder
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import LoraConfig
from gram_jax.model.specs import SCORE, param_specs
from gram_jax.tree import Tree

logger = logging.getLogger(__name__)


def export_hf(
    folder: str | Path,
    cfg: ModelConfig,
    params: Tree,
    *,
    dtype: str | None,
    tokenizer: Any | None,
    spec: JudgeSpec | None,
    stops: Sequence[int] = (),
    texts: Mapping[str, str] | None = None,
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a judge as a folder that `transformers` opens; returns its path.

    params: parameter tree without LoRA (merge it first). dtype: dtype of the written weights; None keeps that of each
    weight. stops: ids that end a text, in addition to those of the tokenizer. texts: contents of further files by path.
    shard_bytes: maximum size of a weights file; several files get an index. overwrite: replace an existing folder.

    The folder is written under a temporary name and then renamed. Raises CheckpointError if the folder exists or is in
    use and for a full disk, LayoutError if parameters do not fit `cfg`.

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
    check_local(folder, "folder", CheckpointError)
    _check_free(folder, overwrite)
    if cfg.head == "language" and SCORE in params:  # a run of the baseline
        cfg = replace(cfg, head="scalar")
        params = {name: leaf for name, leaf in params.items() if name != "head"}
    if problems := tree.differences(params, param_specs(cfg)):
        lines = "\n  ".join(problems)
        raise LayoutError(
            f"parameters cannot be exported:\n  {lines}\nA folder holds no LoRA: merge_lora merges it into the weights"
        )
    if tokenizer is not None:
        check_vocabulary(tokenizer, cfg)
    files = _split(cfg, params, dtype, shard_bytes)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    if jax.process_index() != 0:  # takes part in the gathers; the first process writes
        _write_weights(partial, cfg, params, dtype, files)
        return folder
    with _writing(partial, folder, files.metadata["total_size"]):
        _check_free(folder, overwrite)  # another process may have written it, or moved it away
        _write_weights(partial, cfg, params, dtype, files)
        if cfg.head in ("labels", "margin"):
            _check_padding(tokenizer, spec)
        end = spec.end_of_turn if spec is not None and cfg.head == "scalar" else ""
        if tokenizer is not None and (name := _padding_at_end(tokenizer, end)):
            logger.warning(
                "rewards are read at %r, which is also the padding token: gram_jax reads it, transformers skips it and "
                "gives other rewards. Set another pad_token in tokenizer_config.json and config.json",
                name,
            )
        labels = (
            spec.labels
            if spec is not None and cfg.head in ("labels", "margin")
            else ("LABEL_0", "LABEL_1")
        )
        settings = config_to_hf(cfg, dtype or str(params["embed"].dtype), labels)
        _write_texts(partial, settings, tokenizer, stops)
        for name, text in (texts or {}).items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text, encoding="utf-8")
        if spec is not None:
            spec.save(partial)
        write_manifest(partial)
        _move_into_place(partial, folder)
    return folder


def _check_padding(tokenizer: Any | None, spec: JudgeSpec | None) -> None:
    """Raises LayoutError if a classifier's prompt ends with the padding token, which its readers skip."""
    if tokenizer is None or spec is None:
        raise LayoutError("a classifier is exported with its tokenizer and judge.json")
    if name := _padding_at_end(tokenizer, spec.generation_prompt):
        raise LayoutError(
            f"the judge's prompt ends with the padding token {name!r}, which transformers and servers skip: set "
            "another pad_token in tokenizer_config.json"
        )


def _padding_at_end(tokenizer: Any, text: str) -> str | None:
    """The padding token if the text ends with it, else None."""
    ids = text_encoder(tokenizer).frame(text)
    last = int(ids[-1]) if len(ids) else None
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return tokenizer.convert_ids_to_tokens(last) if last == pad else None


def export_adapter(
    folder: str | Path,
    cfg: ModelConfig,
    lora: LoraConfig,
    params: Tree,
    *,
    base: str,
    tokenizer: Any,
    spec: JudgeSpec | None,
    overwrite: bool = False,
) -> Path:
    """Write a LoRA as an adapter that `peft` loads, with tokenizer and judge.json; returns its path.

    params: the trained weights of a run with a LoRA. base: name of the model that was adapted. Raises as `export_hf`.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    with _adapter_folder(Path(folder), size, tokenizer, spec, overwrite) as partial:
        write_adapter(partial, cfg, lora, params, base=base)
    return Path(folder)


def export_copy(
    folder: str | Path,
    adapter: Path,
    *,
    base: str,
    tokenizer: Any,
    spec: JudgeSpec | None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter that was loaded, with the same bits and settings, tokenizer and judge.json; returns its path.

    adapter: its folder. base: name of the base, which replaces one that was relative to that folder. Raises as
    `export_hf`.
    """
    size = (adapter / ADAPTER_WEIGHTS).stat().st_size
    with _adapter_folder(Path(folder), size, tokenizer, spec, overwrite) as partial:
        shutil.copyfile(adapter / ADAPTER_WEIGHTS, partial / ADAPTER_WEIGHTS)
        settings = read_json(adapter / ADAPTER_CONFIG) | {"base_model_name_or_path": base}
        write_json(partial / ADAPTER_CONFIG, settings)
    return Path(folder)


@contextmanager
def _adapter_folder(
    folder: Path, size: int, tokenizer: Any, spec: JudgeSpec | None, overwrite: bool
) -> Iterator[Path]:
    """A temporary folder for an adapter, which becomes `folder` with the tokenizer, judge.json and a manifest."""
    check_local(folder, "folder", CheckpointError)
    _check_free(folder, overwrite)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    with _writing(partial, folder, size):
        _check_free(folder, overwrite)
        yield partial
        _save_tokenizer(partial, tokenizer)
        if spec is not None:
            spec.save(partial)
        write_manifest(partial)
        _move_into_place(partial, folder)


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: give the name of a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise CheckpointError(f"{folder} is not empty: choose another folder, or overwrite it")


def _split(cfg: ModelConfig, params: Tree, dtype: str | None, limit: int) -> StateDictSplit:
    """The tensors of each file, in the order of the table of names."""
    leaves = tree.flatten(params)

    def size(slots: list[TensorMapping]) -> int:
        kinds = (jnp.dtype(dtype or leaves[slot.rule.path].dtype) for slot in slots)
        shapes = (slot.stored_shape for slot in slots)
        return sum(kind.itemsize * math.prod(x) for kind, x in zip(kinds, shapes, strict=True))

    pattern = WEIGHTS.replace(".", "{suffix}.")
    return split_state_dict_into_shards_factory(
        file_tensors(cfg),
        get_storage_size=size,
        filename_pattern=pattern,
        max_shard_size=limit,
    )


@np.errstate(over="ignore")  # checked below
def _write_weights(
    folder: Path, cfg: ModelConfig, params: Tree, dtype: str | None, files: StateDictSplit
) -> None:
    """The safetensors files. The host holds one leaf and the tensors of one file at a time."""
    leaves, places = tree.flatten(params), file_tensors(cfg)
    held: dict[str, np.ndarray] = {}
    for file, names in files.filename_to_tensors.items():
        tensors = {}
        for name in names:
            needed = [slot.rule.path for slot in places[name]]
            if not set(needed) <= held.keys():
                held = {path: _on_host(leaves[path]) for path in needed}
            parts = []
            for slot in places[name]:
                part = slot.to_stored(held[slot.rule.path][slot.at])
                parts.append(part.astype(jnp.dtype(dtype or part.dtype), copy=False))
            tensors[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        check_weights(tensors, str(folder.name))  # numbers may overflow in the new dtype
        if jax.process_index() == 0:
            # transformers requires "pt"; the file format does not depend on it
            save_file(tensors, folder / file, metadata={"format": "pt", MARK: MANIFEST})
            _sort_header(folder / file)
    if files.is_sharded and jax.process_index() == 0:
        index = {"metadata": files.metadata, "weight_map": files.tensor_to_filename}
        write_json(folder / INDEX, index)


def _sort_header(path: Path) -> None:
    """Put the keys of a safetensors header in order: the library writes the metadata in the order of a hash map."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        file.seek(8)
        file.write(text.encode().ljust(size))


def _on_host(leaf: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _write_texts(
    folder: Path, settings: Mapping[str, Any], tokenizer: Any | None, stops: Sequence[int]
) -> None:
    # Written also if they are None: transformers would otherwise assume the ids of the first Llama.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name, None) for name in names}
    if "id2label" in settings and ids["pad_token_id"] is None:
        # transformers rejects batches without it, and reads the logits at the last token that is not padding.
        ids["pad_token_id"] = ids["eos_token_id"]
    write_json(folder / CONFIG, {**settings, **ids})
    known = {name: token for name, token in ids.items() if token is not None}
    own = [ids["eos_token_id"]] if "eos_token_id" in known else []
    if len(ends := list(dict.fromkeys((*own, *stops)))) > 1:
        known["eos_token_id"] = ends
    write_json(folder / GENERATION, {"do_sample": False, **known})
    if tokenizer is not None:
        _save_tokenizer(folder, tokenizer)


def _save_tokenizer(folder: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        # transformers 5 writes this name, which 4 does not have; both have the older one
        write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


@contextmanager
def reserve_export(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Reserve the folder of an export for the block, which loads a model and exports it.

    Raises CheckpointError if the folder exists and may not be replaced, or cannot be written, InUseError if another
    process writes it.
    """
    check_local(folder, "folder", CheckpointError)
    _check_free(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder.parent} cannot be made: {error.strerror or error}"
        ) from error
    with reserve_lock(file_lock(folder), error=CheckpointError):
        yield


@contextmanager
def _writing(partial: Path, folder: Path, needed: int) -> Iterator[None]:
    """An empty folder, removed afterwards, while no other process writes `folder`.

    Raises CheckpointError if it cannot be written or the disk is full, InUseError if another process writes it.
    """
    advice = "Nothing was written. Free some space, choose another folder, or export in bfloat16"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(file_lock(folder), error=CheckpointError):
            _clear_up(folder)
            if needed > shutil.disk_usage(partial.parent).free:
                raise no_space(partial.parent, needed, advice)
            partial.mkdir()
            yield
    except (OSError, SafetensorError) as error:
        if is_full_disk(error):
            raise no_space(partial.parent, needed, advice) from error
        raise CheckpointError(f"{partial.parent} cannot be written to: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear_up(folder: Path) -> None:
    """Remove what killed processes left next to the folder; restore it if they had moved it away."""
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.old-*"):
        if not folder.exists():
            old.rename(folder)
    for kind in ("old", "partial"):
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.{kind}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _move_into_place(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.is_dir():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
