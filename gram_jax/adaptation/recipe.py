"""The recipe of an adaptation: assets/adapt.toml with values for the model, the data and the settings."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax

from gram_jax.adaptation.config import AdaptConfig
from gram_jax.adaptation.settings import default_rate
from gram_jax.data.batches import BatchPlan
from gram_jax.errors import DataError, JudgeError
from gram_jax.files import write_atomic
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.lora import lora_targets
from gram_jax.recipes.reading import make_recipe
from gram_jax.recipes.tables import Recipe
from gram_jax.run.directory import differing_fields
from gram_jax.scoring.scorer import Scorer
from gram_jax.training.examples import training_examples
from gram_jax.training.stages import judge_spec

RUN = "run"  # folder of the training run
TEMPLATE = Path("data", "template.txt")
STEPS = 40  # approximate number per epoch: a small data set needs many small steps
MAX_BATCH_SIZE = 8  # if the settings have no batch_size


def make_adapt_recipe(
    model: str, judge: Scorer, train_file: Path, out: Path, settings: AdaptConfig
) -> tuple[Recipe, list[int]]:
    """The training recipe, and the last step of each epoch, which has a checkpoint.

    Raises JudgeError if the recipe's judge is not this one.
    """
    max_length = max(settings.max_length, judge.spec.max_length)
    values = _values(model, judge, train_file, out, settings)
    values["batch"] |= {"max_length": max_length, **_batch_size(jax.device_count())}
    recipe = make_recipe(values)
    _check_judge(model, judge.spec, judge_spec(recipe, judge.tokenizer))
    examples = training_examples(recipe, judge.tokenizer, judge.spec)
    rows = round(int(examples.documents.lengths.sum()) // max_length / STEPS)
    default = min(max(1, rows), MAX_BATCH_SIZE)
    batch_size = default if settings.batch_size is None else settings.batch_size
    values["batch"] |= _batch_size(batch_size)
    batches = BatchPlan(
        examples,
        batch_size=values["batch"]["batch_size"],
        max_length=max_length,
        seed=settings.seed,
        packing=True,
    )
    ends = [batches.steps(epoch) for epoch in range(1, settings.num_train_epochs + 1)]
    values["checkpoint"] |= {"save_steps": ends[0]}
    return make_recipe(values), ends


def write_template(spec: JudgeSpec, out: Path) -> None:
    """Write the template to which the recipe refers."""
    write_atomic(out / TEMPLATE, spec.template + "\n", error=DataError)


def _check_judge(model: str, spec: JudgeSpec, trained: JudgeSpec) -> None:
    if trained.hash == spec.hash:
        return
    other = (
        f"give --spec FILE (`gram-jax spec FILE --model {model} --template TEMPLATE` writes one)"
    )
    if spec.rationale is not None:
        raise JudgeError(
            f"the judge of {model} writes a rationale before its verdict, and an adaptation trains the verdict alone. "
            f"To adapt it as a judge without rationales, {other}; to train rationales, use gram-jax train with stage "
            '"rationale"'
        )
    raise JudgeError(
        f"the judge of {model} cannot be trained: a recipe makes another one from it, which differs in "
        f"{', '.join(differing_fields(spec, trained))}. To adapt it with another specification, {other}"
    )


def _values(
    model: str, judge: Scorer, train_file: Path, out: Path, settings: AdaptConfig
) -> dict[str, Any]:
    """All values of the recipe except those of the batch."""
    asset = files("gram_jax").joinpath("adaptation", "assets", "adapt.toml")
    values = tomllib.loads(asset.read_text(encoding="utf-8"))
    values["run"] = {
        "output_dir": str(out / RUN),
        "seed": settings.seed,
        "num_train_epochs": settings.num_train_epochs,
    }
    values["model"]["name_or_path"] = model
    values["judge"] = _judge(judge, out)
    values["data"]["train"] = [str(train_file)]
    rate = settings.learning_rate
    values["optimizer"]["learning_rate"] = (
        default_rate(settings.method, judge.cfg) if rate is None else rate
    )
    values["loss"] = {"label_smoothing": settings.label_smoothing}
    values["execution"]["compute_dtype"] = judge.execution.compute_dtype
    if settings.method == "lora":
        rank, modules = settings.lora_rank, lora_targets(judge.cfg)
        values["lora"] = {"rank": rank, "alpha": 2.0 * rank, "target_modules": modules}
    return values


def _judge(judge: Scorer, out: Path) -> dict[str, Any]:
    """The judge specification as the section [judge] of a recipe."""
    spec, template = judge.spec, out / TEMPLATE
    values = {"labels": list(spec.labels), "max_length": spec.max_length, "thinking": spec.thinking}
    system = {} if spec.system is None else {"system": spec.system}
    return {"template": str(template), **values, **system}


def _batch_size(rows: int) -> dict[str, int]:
    """`rows` rounded up to a multiple of the devices, in micro-batches of one row per device."""
    devices = jax.device_count()
    steps = -(-rows // devices)
    return {"batch_size": steps * devices, "gradient_accumulation_steps": steps}
