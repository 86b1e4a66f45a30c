"""The directory of a run: its content, and whether a run may resume in it.

recipe.toml      the resolved recipe
run.json         stage, number of steps, start model, fingerprints of data and judge, data statistics, whether the run
                 is finished, its id at Weights & Biases
lock.json        the running job, if there is one
model/           config.json, tokenizer, judge.json, base.json under LoRA, and a manifest of their hashes; together
                 with the newest checkpoint this is a model, loaded by the run's name
checkpoints/     by step, each with its manifest; damaged steps are moved to damaged/
metrics.jsonl, tensorboard/, curves.png
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gram_jax.checkpoint.manifest import find_damage, write_manifest
from gram_jax.checkpoint.orbax import damage_of_newest
from gram_jax.checkpoint.run_info import INFO, RECIPE, read_info
from gram_jax.distributed.collectives import broadcast_object
from gram_jax.distributed.lock import LOCK
from gram_jax.errors import CheckpointError, JudgeError, RecipeError
from gram_jax.files import PARTIAL, write_atomic, write_json
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.interop.hf_files import CONFIG, GENERATION, check_files
from gram_jax.interop.models import BASE_FILE
from gram_jax.interop.resolve import SMOLLM2, resolve_model
from gram_jax.judge.spec import FILE_NAME as JUDGE_FILE
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import LoraConfig
from gram_jax.recipes.reading import RecipeT, changed_on_resume, read_recipe_as

STUCK = "stuck-{}.txt"  # stacks of a process that made no progress


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run. info: content of run.json when the run was opened. Only process 0 of a job writes."""

    path: Path
    info: Mapping[str, Any]

    @property
    def checkpoints(self) -> Path:
        """Directory of the states."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Directory of the model's files except the weights."""
        return self.path / "model"

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe."""
        if jax.process_index() == 0:
            write_atomic(self.path / RECIPE, text, error=CheckpointError)

    def note(self, **values: Any) -> None:
        """Add to run.json."""
        if jax.process_index() == 0:
            content = {**read_info(self.path), **values}
            write_json(self.path / INFO, content, error=CheckpointError)


def make_directory(path: Path) -> None:
    """Make a run's directory. Raises RecipeError if that fails, or if the directory has files but no run."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise RecipeError(
            f"run.output_dir {str(path)!r} cannot be made: {error.strerror or error}"
        ) from error
    if RECIPE in names:
        return
    # Files of a job that was killed before it wrote the recipe.
    own = re.compile(rf"{RECIPE}.*{PARTIAL}|{LOCK}.*|{STUCK.format('.*')}")
    if others := [name for name in names if not own.fullmatch(name)]:
        raise RecipeError(
            f"run.output_dir {str(path)!r} is not a run and not empty (it holds {', '.join(others[:5])}): give the "
            "run its own directory"
        )


def check_recipe(path: Path, recipe: RecipeT, command: str) -> dict[str, Any]:
    """Content of run.json, {} if the run was never saved; it may then start with another recipe.

    Raises RecipeError if the directory holds a saved run of another recipe, CheckpointError if run.json is lost.
    """
    stored, info = path / RECIPE, read_info(path)
    if not info.get("finished") and not any(path.glob("checkpoints/*")):
        return {}
    if not info:  # written before the first checkpoint
        raise CheckpointError(
            f"{path} has checkpoints and no {INFO}, which identifies their data and judge: restore it from a copy, or "
            "give this run its own directory (--set run.output_dir=...)"
        )
    if changed := changed_on_resume(read_recipe_as(type(recipe), stored), recipe):
        lines = "\n  ".join(changed)
        raise RecipeError(
            f"{path} holds a run of another recipe. These keys change results:\n  {lines}\n"
            "Give this run its own directory (--set run.output_dir=...), or resume the old one: "
            f"gram-jax {command} {stored}"
        )
    return info


def damage(directory: RunDirectory) -> list[str]:
    """A line for each missing or damaged file of a finished run, the same on all processes."""
    main = jax.process_index() == 0
    model = broadcast_object(find_damage(directory.model) if main else None)
    lines = damage_of_newest(directory.checkpoints, directory.info.get("steps"))
    return lines + [f"model/{line}" for line in model]


def check_same_data(directory: RunDirectory, *, steps: int, examples: str) -> None:
    """Raises RecipeError if the run began with other data or another number of steps."""
    info = directory.info
    if not info or jax.process_index() > 0:
        return
    if info.get("examples") != examples:
        raise RecipeError(
            f"the training data are not those that the run in {directory.path} began with (files, tokenizer "
            "or template changed). Restore the data, or give this run another directory"
        )
    if info.get("steps") != steps:
        raise RecipeError(
            f"the run in {directory.path} has {info.get('steps')} steps, this recipe gives {steps}"
        )


def check_same_judge(directory: RunDirectory, spec: JudgeSpec) -> None:
    """Raises JudgeError if the run began with another judge."""
    info = directory.info
    if not info or jax.process_index() > 0 or info.get("judge") == spec.hash:
        return  # by the hash in run.json; a damaged model/judge.json is written again
    check_files(directory.model, lambda name: name == JUDGE_FILE)
    before = JudgeSpec.load(directory.model)
    if before.hash != spec.hash:
        raise JudgeError(
            f"the judge of the run in {directory.path} differs from the recipe's in "
            f"{', '.join(differing_fields(before, spec))}: a template file or the tokenizer changed. Restore it, or "
            "give this run another directory"
        )


def differing_fields(one: JudgeSpec, other: JudgeSpec) -> list[str]:
    """Names of the fields in which two judges differ."""
    a, b = json.loads(one.to_json()), json.loads(other.to_json())
    return [name for name in a if a[name] != b[name]]


def write_model(
    directory: RunDirectory,
    cfg: ModelConfig,
    tokenizer: Any,
    *,
    dtype: str,
    stop_token_ids: Sequence[int] = (),
    spec: JudgeSpec | None = None,
    base: tuple[str, LoraConfig] | None = None,
) -> None:
    """Write the model without its weights. base: (name, LoRA settings) of the model that a LoRA is trained on."""
    if jax.process_index() > 0:
        return
    folder = directory.model
    folder.mkdir(exist_ok=True)
    contents = {CONFIG: config_to_hf(cfg, dtype)}
    tokenizer.save_pretrained(folder)
    if spec is not None:
        spec.save(folder)
    if stop_token_ids:
        contents[GENERATION] = {"eos_token_id": list(stop_token_ids)}
    if base is not None:
        name, lora = base
        settings = {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
        contents[BASE_FILE] = {"base": _absolute_name(name), **settings}
    for file, content in contents.items():
        write_json(folder / file, content, error=CheckpointError)
    write_manifest(folder)


def _absolute_name(model: str) -> str:
    """The model's name, independent of the working directory."""
    source = resolve_model(model)
    if source.path is None or model == SMOLLM2:
        return model
    return str(source.path.resolve()) + ("" if source.step is None else f"@{source.step}")
