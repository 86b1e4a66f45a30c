"""The folder of a run: what lies where, and whether a run may go on in it.

recipe.toml      the resolved recipe
run.json         stage, number of steps, fingerprints of the examples and the judge, the data in figures, whether the
                 run is complete, its id at Weights & Biases
owner.json       while a job trains: which one
model/           config.json, tokenizer, judge.json (and base.json under LoRA) and a manifest of
                 their hashes: with the newest checkpoint, a model that can be loaded by the run's name
checkpoints/     by step, each with its manifest; in damaged/ what was refused and moved out of the way
metrics.jsonl, tensorboard/, curves.png
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gram_jax.checkpoint.manifest import find_damage, write_manifest
from gram_jax.checkpoint.orbax import damage_of_newest
from gram_jax.checkpoint.run_info import INFO, RECIPE, read_info
from gram_jax.console import Console
from gram_jax.data.examples import Examples
from gram_jax.distributed.collectives import broadcast_object
from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import CheckpointError, JudgeError, RecipeError
from gram_jax.files import PARTIAL, write_atomic
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.interop.hf_files import GENERATION, check_files
from gram_jax.interop.models import stop_tokens
from gram_jax.interop.resolve import SMOLLM2, resolve_model
from gram_jax.judge.spec import FILE_NAME as JUDGE_FILE
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.recipes.reading import changed_on_resume, read_recipe, recipe_to_toml
from gram_jax.recipes.tables import Recipe
from gram_jax.run.lock import LOCK, run_lock

STUCK = "stuck-{}.txt"  # of one process: the stacks of a run that hung


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. before: what run.json said when it was opened.

    In a job of several processes process 0 writes; for the others writing does nothing.
    """

    path: Path
    before: Mapping[str, Any]

    @property
    def checkpoints(self) -> Path:
        """Where the states are."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Where everything of the model but the weights is."""
        return self.path / "model"

    @property
    def writes(self) -> bool:
        """Whether this process writes the files of the run."""
        return jax.process_index() == 0

    def note(self, **values: Any) -> None:
        """Add to run.json."""
        if self.writes:
            text = json.dumps({**read_info(self.path), **values}, indent=2) + "\n"
            _write(self.path / INFO, text)

    def begin(self, recipe: Recipe) -> None:
        """Write the resolved recipe."""
        if self.writes:
            _write(self.path / RECIPE, recipe_to_toml(recipe))

    def write_model(
        self, cfg: ModelConfig, tokenizer: Any, spec: JudgeSpec, recipe: Recipe
    ) -> None:
        """Write what belongs to the model besides its weights."""
        if not self.writes:
            return
        self.model.mkdir(exist_ok=True)
        hf = config_to_hf(cfg, recipe.model.param_dtype)
        _write(self.model / "config.json", json.dumps(hf, indent=2) + "\n")
        tokenizer.save_pretrained(self.model)
        spec.save(self.model)
        if stops := stop_tokens(recipe.model.name_or_path):
            ends = json.dumps({"eos_token_id": list(stops)}) + "\n"
            _write(self.model / GENERATION, ends)
        if recipe.lora is not None:
            lora = recipe.lora
            base = {
                "base": _from_anywhere(recipe.model.name_or_path),
                "rank": lora.rank,
                "alpha": lora.alpha,
                "targets": list(lora.target_modules),
            }
            _write(self.model / "base.json", json.dumps(base, indent=2) + "\n")
        write_manifest(self.model)


def _from_anywhere(model: str) -> str:
    """The model's name as it works in every working directory."""
    source = resolve_model(model)
    if source.path is None or model == SMOLLM2:
        return model
    return str(source.path.resolve()) + ("" if source.step is None else f"@{source.step}")


@contextmanager
def open_run(recipe: Recipe, member: ProcessContext, console: Console) -> Iterator[RunFolder]:
    """The run's folder, made where it is missing and held for the block; all processes of a job call it.

    Raises RecipeError where it holds something else, another job trains in it, or a run whose recipe differs in keys
    that change results.
    """
    path = Path(recipe.run.output_dir).expanduser()
    with ExitStack() as held:
        before = None
        if jax.process_index() == 0:
            _make(path)
            held.enter_context(run_lock(path, member, console))
            before = _check_recipe(path, recipe)
        before = broadcast_object(before)
        if not path.is_dir():
            raise RecipeError(
                f"run.output_dir {recipe.run.output_dir!r} was made by process 0 and is not there for process "
                f"{jax.process_index()}: a job of several processes needs a folder that all of them see"
            )
        yield RunFolder(path, before)


def _make(path: Path) -> None:
    """Make the folder where it is missing; one that is neither a run's nor empty is left alone."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise RecipeError(
            f"run.output_dir {str(path)!r} cannot be made: {error.strerror or error}"
        ) from error
    if RECIPE in names:
        return
    # A kill may have come before the first file was there.
    own = re.compile(rf"{RECIPE}.*{PARTIAL}|{LOCK}.*|{STUCK.format('.*')}")
    if others := [name for name in names if not own.fullmatch(name)]:
        raise RecipeError(
            f"run.output_dir {str(path)!r} is not a run and not empty (it holds {', '.join(others[:5])}): give the "
            "run a directory of its own"
        )


def _check_recipe(path: Path, recipe: Recipe) -> dict[str, Any]:
    """What run.json says, once the run in the folder is one of this recipe."""
    stored, info = path / RECIPE, read_info(path)
    # Without run.json nothing was computed under the stored recipe yet.
    if info and (changed := changed_on_resume(read_recipe(stored), recipe)):
        lines = "\n  ".join(changed)
        raise RecipeError(
            f"{recipe.run.output_dir} holds a run of another recipe. These keys change results:\n  "
            f"{lines}\nGive this run a folder of its own (--set run.output_dir=...), or go on with the "
            f"old one: gram-jax train {stored}"
        )
    return info


def lacking(folder: RunFolder) -> list[str]:
    """What a run that was finished has lost or had damaged since, a line each; all processes get the same."""
    model = broadcast_object(find_damage(folder.model) if folder.writes else None)
    lines = damage_of_newest(folder.checkpoints, folder.before.get("steps"))
    return lines + [f"model/{line}" for line in model]


def check_same_run(folder: RunFolder, steps: int, examples: str, spec: JudgeSpec) -> None:
    """Whether a run would go on as it began, in what the recipe does not show.

    Raises RecipeError where the examples changed, JudgeError where the judge did.
    """
    info = folder.before
    if not info or not folder.writes:
        return
    if info.get("examples") != examples:
        raise RecipeError(
            f"the training examples are not those that the run in {folder.path} began with (files, "
            "tokenizer or template changed): a resumed run would not be the same run. Restore the "
            "data, or give this run another folder"
        )
    if info.get("steps") != steps:
        raise RecipeError(
            f"the run in {folder.path} has {info.get('steps')} steps, this recipe gives {steps}"
        )
    if info.get("judge") == spec.hash:
        return  # model/judge.json may be damaged: it is written again
    check_files(folder.model, lambda name: name == JUDGE_FILE)
    before = JudgeSpec.load(folder.model)
    if before.hash != spec.hash:
        raise JudgeError(
            f"the judge of the run in {folder.path} differs from the recipe's in "
            f"{', '.join(differing_fields(before, spec))}: a template file or the tokenizer has "
            "changed since. Restore it, or give this run another folder"
        )


def differing_fields(one: JudgeSpec, other: JudgeSpec) -> list[str]:
    """Names of the fields in which two judges differ."""
    a, b = json.loads(one.to_json()), json.loads(other.to_json())
    return [name for name in a if a[name] != b[name]]


def examples_fingerprint(examples: Examples) -> str:
    """16 hex digits that name the encoded examples: tokens, lengths, labels and weights."""
    digest = hashlib.sha256()
    labels = getattr(examples, "label", np.zeros(0, np.int32))
    for array in (
        examples.documents.tokens,
        examples.documents.offsets,
        labels,
        examples.weights,
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    write_atomic(path, text, error=CheckpointError)
