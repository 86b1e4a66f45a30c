"""Weights, config, tokenizer and judge specification of a model by its name (interop/resolve.py)."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from gram_jax import tree
from gram_jax.checkpoint.run_info import read_info
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.files import read_json
from gram_jax.finite import check_weights
from gram_jax.interop.adapters import adapted, adapted_config, adapter_base
from gram_jax.interop.hf_config import check_vocabulary
from gram_jax.interop.hf_files import (
    CONFIG,
    GENERATION,
    check_files,
    check_texts,
    hf_config,
    load_hf,
)
from gram_jax.interop.resolve import TEXTS, WEIGHTS, ModelSource, check_final, local_source
from gram_jax.interop.tiny import tiny_config, tiny_params, tiny_tokenizer
from gram_jax.judge.spec import DEFAULT_LENGTH, JudgeSpec, make_reward_spec
from gram_jax.judge.spec import FILE_NAME as JUDGE_FILE
from gram_jax.judge.tokenizer import folder_tokenizer
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import LoraConfig, lora_scales, lora_specs, merge_lora
from gram_jax.model.specs import SCORE, param_specs, score_spec
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
    """Load config and sharded parameters of a model by name. The LoRA of a run is merged.

    name: a run (or RUN@STEP), an exported folder, a hub name, a GGUF file or a built-in name. dtype: dtype of the
    parameters; None keeps the stored one (float32 for quantised weights). Returns (config, parameter tree).

    Raises CheckpointError if files are missing or damaged, LayoutError if they do not fit each other, NonFiniteError if
    a weight is NaN or infinite in this dtype.

    >>> import jax
    >>> from gram_jax.sharding import make_placement
    >>> cfg, params = load_model("tiny-random", make_placement({}, devices=jax.devices()[:1]), None)
    >>> params["embed"].shape == (cfg.vocab_size, cfg.embed_size)
    True
    """
    cfg, params = _load(local_source(name, WEIGHTS), placement, dtype)
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
    if source.kind == "adapter":
        base = _adapted_folder(source, WEIGHTS)
        return load_hf(
            base,
            placement,
            dtype,
            cfg=adapted_config(hf_config(base), source.place),
            change=lambda stored: adapted(stored, source.place),
        )
    return load_hf(source.folder, placement, dtype)


def model_config(name: str | Path) -> ModelConfig:
    """ModelConfig of a model by name, without its weights."""
    source = local_source(name)
    if source.kind == "random":
        return tiny_config()
    if source.kind == "gguf":
        return _gguf().gguf_config(source.place)
    if source.kind != "adapter":
        return hf_config(source.folder)
    cfg = hf_config(_adapted_folder(source))
    return adapted_config(cfg, source.place)


def _adapted_folder(adapter: ModelSource, patterns: tuple[str, ...] = TEXTS) -> Path:
    """The folder of an adapter's base. Raises CheckpointError if there is none."""
    name = adapter_base(adapter.place)
    try:
        base = local_source(name, patterns)
    except CheckpointError as error:
        raise CheckpointError(
            f"the base {name!r} of the adapter {adapter.place} (base_model_name_or_path) is not found: {error}"
        ) from error
    if base.kind != "folder":
        raise CheckpointError(
            f"the base {name!r} of the adapter {adapter.place} is of kind {base.kind!r}: expected a Hugging Face "
            "folder or hub name with a whole model"
        )
    return base.folder


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a model by name. Raises LayoutError if the weights have no row for one of its ids.

    >>> load_tokenizer("tiny-random").decode([35, 36])
    'AB'
    """
    source = local_source(name)
    if source.kind == "random":
        return tiny_tokenizer()
    if source.kind == "gguf":
        from gram_jax.interop.gguf_tokenizer import gguf_tokenizer  # needs an extra

        tokenizer = gguf_tokenizer(source.place)
    else:
        folder = source.folder
        if source.kind == "adapter" and not (folder / "tokenizer_config.json").is_file():
            folder = _adapted_folder(source)
        check_texts(folder)
        tokenizer = folder_tokenizer(folder)
    check_vocabulary(tokenizer, model_config(name))
    return tokenizer


def stop_tokens(name: str | Path) -> tuple[int, ...]:
    """Ids that end a text, from generation_config.json, () without it. Raises CheckpointError if they are invalid."""
    source = local_source(name)
    if source.kind in ("random", "gguf"):
        return ()
    path = source.folder / GENERATION
    if source.kind == "adapter" and not path.is_file():
        path = _adapted_folder(source) / GENERATION
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
    source = local_source(name)
    if source.kind in ("random", "gguf"):
        return None
    places = [source.folder]
    if source.kind == "run":
        places.append(source.place)
    if source.kind == "adapter":
        places.append(_adapted_folder(source))
    for place in places:
        check_files(place, lambda name: name == JUDGE_FILE)
        if (place / JUDGE_FILE).is_file():
            return JudgeSpec.load(place)
    return None


class TrainedWeights(NamedTuple):
    """What the checkpoint of a run holds: all weights (lora None), or a LoRA of the model `base`."""

    cfg: ModelConfig
    params: Tree
    lora: LoraConfig | None
    base: str


def has_scalar_head(name: str | Path) -> bool:
    """Whether a model gives rewards instead of verdicts: a run of stage bradley_terry, or a scalar reward model."""
    source = local_source(name)
    if source.kind == "run" and read_info(source.place).get("stage") == "bradley_terry":
        return True
    return source.kind in ("folder", "adapter", "run") and model_config(name).head == "scalar"


def reward_spec(name: str | Path, tokenizer: Any, max_length: int | None = None) -> JudgeSpec:
    """The specification saved with a scalar reward model, or (as on its card) its chat template alone."""
    if (spec := load_spec(name)) is not None:
        return spec
    source = local_source(name)
    folder = _adapted_folder(source) if source.kind == "adapter" else source.folder
    pad = read_json(folder / CONFIG).get("pad_token_id")
    limit = max_length or min(DEFAULT_LENGTH, model_config(name).context_length)
    return make_reward_spec(tokenizer, pad_id=pad, max_length=limit)


def load_run(
    run: Path, placement: Placement, dtype: str | None, step: int | None = None
) -> tuple[ModelConfig, Tree]:
    """The model of a run's checkpoint (step None: the newest), with a LoRA merged into its base."""
    cfg, params, lora, name = trained_weights(run, placement, dtype, step)
    if lora is None:
        return cfg, params
    base = _base(run, name, cfg, placement, dtype)
    if SCORE in params or cfg.head == "language":
        base.pop(SCORE, None)  # of a reward model; the run trains or drops it
    base["layers"]["lora_scale"] = lora_scales(cfg, lora, placement)
    return cfg, merge_lora(tree.merge(base, params))


def trained_weights(
    run: Path, placement: Placement, dtype: str | None, step: int | None = None
) -> TrainedWeights:
    """The weights that a run trained, at a checkpoint (step None: the newest). dtype: of all but LoRA and scalar head.

    Raises CheckpointError if the step, or the last step of a finished run, is missing. Warns if the run is unfinished.
    """
    from gram_jax.checkpoint.orbax import Checkpoints  # 0.4 s, not needed for exported folders

    folder = run / "model"
    cfg = hf_config(folder)
    check_texts(folder, ours=True)  # its manifest is written before the first checkpoint
    lora, base = None, ""
    if (folder / BASE_FILE).is_file():
        note = read_json(folder / BASE_FILE)
        lora, base = LoraConfig(note["rank"], note["alpha"], tuple(note["targets"])), note["base"]
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        found = checkpoints.all_steps()
        if step is None and found:
            check_final(run, found[-1])
        elif step is not None and step not in found:
            steps = ", ".join(map(str, found)) or "none"
            raise CheckpointError(
                f"{run} has no checkpoint of step {step}; its steps: {steps}. Restore it from a copy; "
                "[checkpoint] max_to_keep and keep_period of its recipe say which steps a run keeps"
            )
        saved = checkpoints.params_shapes(step)
        specs = param_specs(cfg) if lora is None else lora_specs(cfg, lora)
        if SCORE in saved:
            specs.setdefault(SCORE, score_spec(cfg))  # a classifier's config has its own
        abstract = tree.map_with_path(
            lambda path, spec: jax.ShapeDtypeStruct(
                spec.shape, _dtype(path, saved, dtype), sharding=placement.sharding(*spec.axes)
            ),
            specs,
        )
        return TrainedWeights(cfg, checkpoints.restore_params(step, abstract), lora, base)


def adapter_place(name: str | Path) -> tuple[Path, str] | None:
    """(folder, name of its base) of an adapter by name, None for other models. Raises as `load_model`."""
    source = local_source(name, WEIGHTS)
    if source.kind != "adapter":
        return None
    model_config(name)  # checks its settings
    return source.place, adapter_base(source.place)


def load_lora(name: str | Path, placement: Placement) -> tuple[ModelConfig, Tree, LoraConfig, str]:
    """(config, LoRA and trained scalar head, settings of the LoRA, name of its base) of a run, in their own dtype."""
    source = local_source(name)
    if source.kind != "run":
        raise CheckpointError(
            f"{name} is neither a run nor an adapter: an adapter is written from the LoRA of a run"
        )
    cfg, params, lora, base = trained_weights(source.place, placement, None, source.step)
    if lora is None:
        raise CheckpointError(
            f"{name} trained all weights, not a LoRA (recipe: [lora]): convert it as a model"
        )
    return cfg, params, lora, base


def _base(run: Path, name: str, cfg: ModelConfig, placement: Placement, dtype: str | None) -> Tree:
    try:
        found, base = load_model(name, placement, dtype)
    except CheckpointError as error:
        raise CheckpointError(
            f"the base {name!r} of the LoRA in {run} cannot be loaded: {error}"
        ) from error
    if found != cfg:
        raise LayoutError(f"the base {name!r} of the LoRA in {run} is another model now")
    return base


def _dtype(path: str, saved: Tree, dtype: str | None) -> Any:
    """The scalar head and LoRA keep their own dtype: LoRA is merged in float32."""
    leaf = tree.flatten(saved).get(path)
    own = dtype is None or path == SCORE or path.startswith("layers/lora/")
    return leaf.dtype if own and leaf is not None else dtype or "float32"
