"""Weights, config, tokenizer and judge specification of a model by its name (interop/resolve.py)."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax

from gram_jax import tree
from gram_jax.checkpoint.run_info import read_info
from gram_jax.errors import CheckpointError, GramWarning, LayoutError
from gram_jax.interop.hf_config import check_vocabulary
from gram_jax.interop.hf_files import (
    GENERATION,
    check_files,
    check_texts,
    hf_config,
    load_hf,
    read_json,
)
from gram_jax.interop.resolve import WEIGHTS, model_folder, resolve_model
from gram_jax.interop.tiny import tiny_config, tiny_params, tiny_tokenizer
from gram_jax.judge.spec import FILE_NAME as JUDGE_FILE
from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.tokenizer import folder_tokenizer
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import LoraConfig, lora_scales, lora_specs, merge_lora
from gram_jax.model.specs import SCALAR_HEAD, param_specs, scalar_head_spec
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

# In a run's model/ folder: which model LoRA was trained on top of, and its settings.
BASE_FILE = "base.json"


def _gguf() -> ModuleType:
    from gram_jax.interop import gguf  # of an extra

    return gguf


def load_model(
    name: str | Path, placement: Placement, dtype: str | None
) -> tuple[ModelConfig, Tree]:
    """Config and parameters of a model by name, spread over the mesh; LoRA of a run is merged in.

    dtype None keeps the stored one (float32 where that is a quantisation). Raises CheckpointError
    where files are missing or damaged, LayoutError where they do not fit each other.

    >>> import jax
    >>> from gram_jax.sharding import make_placement
    >>> cfg, params = load_model("tiny-random", make_placement({}, devices=jax.devices()[:1]), None)
    >>> params["embed"].shape == (cfg.vocab_size, cfg.embed_size)
    True
    """
    source = resolve_model(name)
    if source.kind == "random":
        cfg = tiny_config()
        return cfg, tiny_params(cfg, placement, dtype or "float32")
    if source.kind == "gguf":
        return _gguf().load_gguf(source.place, placement, dtype)
    if source.kind == "run":
        return load_run(source.place, placement, dtype, source.step)
    return load_hf(model_folder(source, WEIGHTS), placement, dtype)


def model_config(name: str | Path) -> ModelConfig:
    """ModelConfig of a model by name, without its weights."""
    source = resolve_model(name)
    if source.kind == "random":
        return tiny_config()
    return (
        _gguf().gguf_config(source.place)
        if source.kind == "gguf"
        else hf_config(model_folder(source))
    )


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerFast":
    """Tokenizer of a model by name. Raises LayoutError if it has ids that the weights have no row for.

    >>> load_tokenizer("tiny-random").decode([35, 36])
    'AB'
    """
    source = resolve_model(name)
    if source.kind == "random":
        return tiny_tokenizer()
    if source.kind == "gguf":
        tokenizer = _gguf().gguf_tokenizer(source.place)
    else:
        check_texts(folder := model_folder(source))
        tokenizer = folder_tokenizer(folder)
    check_vocabulary(tokenizer, model_config(name))
    return tokenizer


def stop_tokens(name: str | Path) -> tuple[int, ...]:
    """Ids that end a text by the model's generation_config.json, () where there is none.

    Raises CheckpointError if it is damaged.
    """
    source = resolve_model(name)
    if source.kind in ("random", "gguf"):
        return ()
    path = model_folder(source) / GENERATION
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    found = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(token) is int and token >= 0 for token in found):
        raise CheckpointError(
            f"{path}: eos_token_id = {ends!r}, expected a token's id or several: correct the file (and, where it is "
            f"an export of ours: gram-jax verify {path.parent} --accept)"
        )
    return tuple(found)


def load_spec(name: str | Path) -> JudgeSpec | None:
    """The judge specification saved with a model, None where there is none."""
    source = resolve_model(name)
    if source.kind in ("random", "gguf"):
        return None
    folder = model_folder(source)
    for place in (folder, folder.parent) if source.kind == "run" else (folder,):
        check_files(place, lambda name: name == JUDGE_FILE)
        if (place / JUDGE_FILE).is_file():
            return JudgeSpec.load(place)
    return None


def load_run(
    run: Path, placement: Placement, dtype: str | None, step: int | None = None
) -> tuple[ModelConfig, Tree]:
    """The model of a run's newest checkpoint, of a finished run its last, or of a step. A run that trained LoRA has
    its base loaded and merged.

    Raises CheckpointError if a finished run has lost its last step, or the one that is asked for is not there;
    warns of one that is not finished.
    """
    from gram_jax.checkpoint.orbax import Checkpoints  # 0.4 s, which exported folders need not pay

    folder = run / "model"
    cfg = hf_config(folder)
    check_texts(folder, ours=True)  # its manifest is written before the first checkpoint
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        if step is None:
            _check_final(run, checkpoints.latest())
        elif step not in (there := checkpoints.all_steps()):
            steps = ", ".join(map(str, there)) or "none"
            raise CheckpointError(f"{run} has no checkpoint of step {step}: there are {steps}")
        saved = checkpoints.params_shapes(step)
        base: Tree = {}
        lora: LoraConfig | None = None
        if (folder / BASE_FILE).is_file():
            note = read_json(folder / BASE_FILE)
            lora = LoraConfig(note["rank"], note["alpha"], tuple(note["targets"]))
            base, specs = _base(run, note["base"], cfg, placement, dtype), lora_specs(cfg, lora)
            base.pop(SCALAR_HEAD, None)  # a rank run's head, which this run trained further or left
        else:
            specs = param_specs(cfg)
        if SCALAR_HEAD in saved:
            specs[SCALAR_HEAD] = scalar_head_spec(cfg)
        abstract = tree.map_with_path(
            lambda path, spec: jax.ShapeDtypeStruct(
                spec.shape, _dtype(path, saved, dtype), sharding=placement.sharding(*spec.axes)
            ),
            specs,
        )
        found = checkpoints.restore_params(step, abstract)
    if lora is None:
        return cfg, found
    layers = {"layers": {"lora_scale": lora_scales(cfg, lora, placement)}}
    return cfg, merge_lora(tree.merge(tree.merge(base, found), layers))


def _check_final(run: Path, newest: int | None) -> None:
    """Whether a run's newest step is the model that it was to become."""
    info = read_info(run)
    steps = info.get("steps")
    if newest is None or steps is None or newest == steps:
        return
    if info.get("finished"):
        raise CheckpointError(
            f"{run} was finished with step {steps}, and its newest checkpoint is step {newest}: the last one is lost. "
            "Restore it from a copy; or start the run's `gram-jax train` command again, which computes it anew"
        )
    warnings.warn(
        f"{run} is not finished: this is step {newest} of {steps}",
        category=GramWarning,
        stacklevel=2,
    )


def _base(run: Path, name: str, cfg: ModelConfig, placement: Placement, dtype: str | None) -> Tree:
    try:
        found, base = load_model(name, placement, dtype)
    except CheckpointError as error:
        raise CheckpointError(
            f"{run} trained LoRA on top of {name!r}, which cannot be loaded: {error}"
        ) from error
    if found != cfg:
        raise LayoutError(f"{run} trained LoRA on top of {name!r}, which is another model now")
    return base


def _dtype(path: str, saved: Tree, dtype: str | None) -> Any:
    """The head of the baseline and LoRA keep their own format: LoRA is merged in float32."""
    leaf = tree.flatten(saved).get(path)
    own = dtype is None or path == SCALAR_HEAD or path.startswith("layers/lora/")
    return leaf.dtype if own and leaf is not None else dtype or "float32"
