"""Weights, config, tokenizer and judge specification of a model by its name (interop/resolve.py)."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax

from gram_jax import tree
from gram_jax.checkpoint.run_info import read_info
from gram_jax.errors import CheckpointError, GramWarning, LayoutError
from gram_jax.files import read_json
from gram_jax.finite import check_weights
from gram_jax.interop.hf_config import check_vocabulary
from gram_jax.interop.hf_files import GENERATION, check_files, check_texts, hf_config, load_hf
from gram_jax.interop.resolve import WEIGHTS, ModelSource, model_folder, resolve_model
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

# In a run's model/ folder: the base model of a LoRA and the LoRA's settings.
BASE_FILE = "base.json"


def _gguf() -> ModuleType:
    from gram_jax.interop import gguf  # needs an extra

    return gguf


def load_model(
    name: str | Path, placement: Placement, dtype: str | None
) -> tuple[ModelConfig, Tree]:
    """Config and sharded parameters of a model by name, with the LoRA of a run merged.

    dtype None keeps the stored one (float32 for quantised weights). Raises CheckpointError if files are missing or
    damaged, LayoutError if they do not fit each other, NonFiniteError if a weight is NaN or infinite in this dtype.

    >>> import jax
    >>> from gram_jax.sharding import make_placement
    >>> cfg, params = load_model("tiny-random", make_placement({}, devices=jax.devices()[:1]), None)
    >>> params["embed"].shape == (cfg.vocab_size, cfg.embed_size)
    True
    """
    cfg, params = _load(resolve_model(name), placement, dtype)
    check_weights(params, str(name))
    return cfg, params


def _load(source: ModelSource, placement: Placement, dtype: str | None) -> tuple[ModelConfig, Tree]:
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
    if source.kind == "gguf":
        return _gguf().gguf_config(source.place)
    return hf_config(model_folder(source))


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerFast":
    """Tokenizer of a model by name. Raises LayoutError if the weights have no row for one of its ids.

    >>> load_tokenizer("tiny-random").decode([35, 36])
    'AB'
    """
    source = resolve_model(name)
    if source.kind == "random":
        return tiny_tokenizer()
    if source.kind == "gguf":
        from gram_jax.interop.gguf_tokenizer import gguf_tokenizer  # needs an extra

        tokenizer = gguf_tokenizer(source.place)
    else:
        check_texts(folder := model_folder(source))
        tokenizer = folder_tokenizer(folder)
    check_vocabulary(tokenizer, model_config(name))
    return tokenizer


def stop_tokens(name: str | Path) -> tuple[int, ...]:
    """Ids that end a text, from generation_config.json, () without it. Raises CheckpointError if they are invalid."""
    source = resolve_model(name)
    if source.kind in ("random", "gguf"):
        return ()
    path = model_folder(source) / GENERATION
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    found = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(token) is int and token >= 0 for token in found):
        raise CheckpointError(
            f"{path}: eos_token_id = {ends!r}, expected a token's id or a list of them: correct the file (and for an "
            f"exported folder run: gram-jax verify {path.parent} --accept)"
        )
    return tuple(found)


def load_spec(name: str | Path) -> JudgeSpec | None:
    """The judge specification saved with a model, None if there is none."""
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
    """The model of a run's checkpoint (step None: the newest), with a LoRA merged into its base.

    Raises CheckpointError if the step, or the last step of a finished run, is missing. Warns if the run is unfinished.
    """
    from gram_jax.checkpoint.orbax import Checkpoints  # 0.4 s, not needed for exported folders

    folder = run / "model"
    cfg = hf_config(folder)
    check_texts(folder, ours=True)  # its manifest is written before the first checkpoint
    base: Tree | None = None
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        if step is None:
            _check_final(run, checkpoints.latest())
        elif step not in (found := checkpoints.all_steps()):
            steps = ", ".join(map(str, found)) or "none"
            raise CheckpointError(f"{run} has no checkpoint of step {step}; its steps: {steps}")
        saved = checkpoints.params_shapes(step)
        if (folder / BASE_FILE).is_file():
            note = read_json(folder / BASE_FILE)
            lora = LoraConfig(note["rank"], note["alpha"], tuple(note["targets"]))
            base, specs = _base(run, note["base"], cfg, placement, dtype), lora_specs(cfg, lora)
            base["layers"]["lora_scale"] = lora_scales(cfg, lora, placement)
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
        params = checkpoints.restore_params(step, abstract)
    return cfg, params if base is None else merge_lora(tree.merge(base, params))


def _check_final(run: Path, newest: int | None) -> None:
    """Compare a run's newest step with its number of steps."""
    info = read_info(run)
    steps = info.get("steps")
    if newest is None or steps is None or newest == steps:
        return
    if info.get("finished"):
        raise CheckpointError(
            f"{run} finished with step {steps}, but its newest checkpoint is step {newest}: the last one is lost. "
            "Restore it from a copy, or start the run's `gram-jax train` command again, which computes it again"
        )
    message = f"{run} is not finished: this is step {newest} of {steps}"
    warnings.warn(message, category=GramWarning, stacklevel=2)


def _base(run: Path, name: str, cfg: ModelConfig, placement: Placement, dtype: str | None) -> Tree:
    try:
        found, base = load_model(name, placement, dtype)
    except CheckpointError as error:
        raise CheckpointError(
            f"the base {name!r} of the LoRA in {run} cannot be loaded: {error}"
        ) from error
    if found != cfg:
        raise LayoutError(f"the base {name!r} of the LoRA in {run} is another model now")
    base.pop(SCALAR_HEAD, None)  # of a reward model; the run trains or drops it
    return base


def _dtype(path: str, saved: Tree, dtype: str | None) -> Any:
    """The scalar head and LoRA keep their own dtype: LoRA is merged in float32."""
    leaf = tree.flatten(saved).get(path)
    own = dtype is None or path == SCALAR_HEAD or path.startswith("layers/lora/")
    return leaf.dtype if own and leaf is not None else dtype or "float32"
