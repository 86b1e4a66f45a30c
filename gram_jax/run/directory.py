"""The directory of a run: what is in it, and whether a run may resume in it.

recipe.toml      the resolved recipe
run.json         stage, number of steps, fingerprints of the data and the judge, data statistics, whether the run is
                 complete, its id at Weights & Biases
lock.json        while a job runs: which one
model/           config.json, tokenizer, judge.json (and base.json under LoRA) and a manifest of
                 their hashes: with the newest checkpoint, a model that can be loaded by the run's name
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
from gram_jax.errors import CheckpointError, JudgeError, RecipeError
from gram_jax.files import PARTIAL, write_atomic
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.interop.hf_files import GENERATION, check_files
from gram_jax.interop.models import BASE_FILE
from gram_jax.interop.resolve import SMOLLM2, resolve_model
from gram_jax.judge.spec import FILE_NAME as JUDGE_FILE
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import LoraConfig
from gram_jax.recipes.reading import RecipeT, changed_on_resume, read_recipe_as
from gram_jax.run.lock import LOCK

STUCK = "stuck-{}.txt"  # of one process: the stacks of a run that hung


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run. info: content of run.json when the run was opened.

    In a job of several processes only process 0 writes; in the others the methods that write do nothing.
    """

    path: Path
    info: Mapping[str, Any]

    @property
    def checkpoints(self) -> Path:
        """Directory of the states."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Directory of everything of the model but the weights."""
        return self.path / "model"

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe."""
        if jax.process_index() == 0:
            _write(self.path / RECIPE, text)

    def note(self, **values: Any) -> None:
        """Add to run.json."""
        if jax.process_index() == 0:
            text = json.dumps({**read_info(self.path), **values}, indent=2) + "\n"
            _write(self.path / INFO, text)


def make_directory(path: Path) -> None:
    """Make a run's directory. Raises RecipeError if it cannot be made, or is neither a run's nor empty."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise RecipeError(
            f"run.output_dir {str(path)!r} cannot be made: {error.strerror or error}"
        ) from error
    if RECIPE in names:
        return
    # The job may have been killed before it wrote the recipe.
    own = re.compile(rf"{RECIPE}.*{PARTIAL}|{LOCK}.*|{STUCK.format('.*')}")
    if others := [name for name in names if not own.fullmatch(name)]:
        raise RecipeError(
            f"run.output_dir {str(path)!r} is not a run and not empty (it holds {', '.join(others[:5])}): give the "
            "run a directory of its own"
        )


def check_recipe(path: Path, recipe: RecipeT, command: str) -> dict[str, Any]:
    """Content of run.json. Raises RecipeError if the directory holds a run of another recipe."""
    stored, info = path / RECIPE, read_info(path)
    # Without run.json nothing was computed under the stored recipe yet.
    if info and (changed := changed_on_resume(read_recipe_as(type(recipe), stored), recipe)):
        lines = "\n  ".join(changed)
        raise RecipeError(
            f"{path} holds a run of another recipe. These keys change results:\n  {lines}\n"
            "Give this run a directory of its own (--set run.output_dir=...), or resume the old one: "
            f"gram-jax {command} {stored}"
        )
    return info


def damage(directory: RunDirectory) -> list[str]:
    """A line for everything that a finished run has lost or had damaged; all processes get the same."""
    main = jax.process_index() == 0
    model = broadcast_object(find_damage(directory.model) if main else None)
    lines = damage_of_newest(directory.checkpoints, directory.info.get("steps"))
    return lines + [f"model/{line}" for line in model]


def check_same_data(directory: RunDirectory, *, steps: int, examples: str) -> None:
    """Raises RecipeError if the run began with other data or another number of steps than it has now."""
    info = directory.info
    if not info or jax.process_index() > 0:
        return
    if info.get("examples") != examples:
        raise RecipeError(
            f"the training data are not those that the run in {directory.path} began with (files, tokenizer or "
            "template changed): a resumed run would not be the same run. Restore the data, or give this run another "
            "directory"
        )
    if info.get("steps") != steps:
        raise RecipeError(
            f"the run in {directory.path} has {info.get('steps')} steps, this recipe gives {steps}"
        )


def check_same_judge(directory: RunDirectory, spec: JudgeSpec) -> None:
    """Raises JudgeError if the run began with another judge."""
    info = directory.info
    if not info or jax.process_index() > 0 or info.get("judge") == spec.hash:
        return  # a damaged model/judge.json is written again
    check_files(directory.model, lambda name: name == JUDGE_FILE)
    before = JudgeSpec.load(directory.model)
    if before.hash != spec.hash:
        raise JudgeError(
            f"the judge of the run in {directory.path} differs from the recipe's in "
            f"{', '.join(differing_fields(before, spec))}: a template file or the tokenizer has "
            "changed since. Restore it, or give this run another directory"
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
    """Write everything of the model but its weights. base: the model that a LoRA is trained on, and its settings."""
    if jax.process_index() > 0:
        return
    folder = directory.model
    folder.mkdir(exist_ok=True)
    _write_json(folder / "config.json", config_to_hf(cfg, dtype))
    tokenizer.save_pretrained(folder)
    if spec is not None:
        spec.save(folder)
    if stop_token_ids:
        _write_json(folder / GENERATION, {"eos_token_id": list(stop_token_ids)})
    if base is not None:
        name, lora = base
        settings = {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
        _write_json(folder / BASE_FILE, {"base": _absolute_name(name), **settings})
    write_manifest(folder)


def _absolute_name(model: str) -> str:
    """The model's name as it works in every working directory."""
    source = resolve_model(model)
    if source.path is None or model == SMOLLM2:
        return model
    return str(source.path.resolve()) + ("" if source.step is None else f"@{source.step}")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomic(path, text, error=CheckpointError)
