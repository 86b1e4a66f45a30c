"""The origin of a model, from the options of `gram-jax card` and the recipes of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.checkpoint.run_info import RECIPE, read_info
from gram_jax.errors import CheckpointError, ReportError
from gram_jax.evals.datasets import HUB
from gram_jax.files import expand_user
from gram_jax.interop.hub import CARD, read_front_matter
from gram_jax.interop.resolve import SMOLLM2, resolve_model
from gram_jax.recipes.reading import read_recipe_of_run
from gram_jax.recipes.rl import RlRecipe
from gram_jax.recipes.tables import Recipe

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Model families of the hub with one licence for all models. Names with these prefixes are not paths.
LICENSES = (
    ("HuggingFaceTB/SmolLM2-", "apache-2.0"),
    ("Qwen/Qwen3-", "apache-2.0"),
    ("meta-llama/Llama-3.2-", "llama3.2"),
    ("meta-llama/Llama-3.1-", "llama3.1"),
    ("meta-llama/Meta-Llama-3-", "llama3"),
)


class StageRun(NamedTuple):
    """A run: its recipe and its run.json."""

    recipe: Recipe | RlRecipe
    info: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """The stage of a training run; "rl" for reinforcement learning."""
        return self.recipe.stage if isinstance(self.recipe, Recipe) else "rl"

    @property
    def start(self) -> str:
        """The name of the model that the run started from."""
        recipe = self.recipe
        model = recipe.model if isinstance(recipe, Recipe) else recipe.policy
        return model.name_or_path

    @property
    def sources(self) -> tuple[str, ...]:
        """The paths or names of the training data."""
        train = self.recipe.data.train
        return (train,) if isinstance(train, str) else tuple(source.path for source in train)

    @property
    def smoothing(self) -> float | None:
        """The label smoothing of the run, None without one."""
        return self.recipe.loss.label_smoothing if isinstance(self.recipe, Recipe) else None


@dataclass(frozen=True)
class Origin:
    """stages: the runs in order. base: name on the hub of the model that the first run started from, None if unknown.

    license: its name on the hub, None if unknown. datasets: names of data sets on the hub.
    """

    stages: tuple[StageRun, ...]
    base: str | None
    license: str | None
    datasets: tuple[str, ...]

    def hub_dataset(self, source: str) -> str | None:
        """The name of a source on the hub; None unless it is in `datasets` or is a benchmark."""
        name = source.partition(":")[0]
        known = {*self.datasets, *(split.partition(":")[0] for split in HUB.values())}
        return name if name in known else None

    def shown_source(self, source: str) -> str:
        """A source for publication: a name of the hub, or the last part of a path."""
        known = self.hub_dataset(source) or source.startswith("tfds:")
        return source if known else Path(source).name

    def shown_model(self, name: str) -> str:
        """A model for publication: a name of the hub, or the last part of a path."""
        known = name == self.base or _license_of(name)
        return name if known else Path(name).name


def find_origin(
    run: Path | None,
    *,
    base: str | None,
    license: str | None,
    datasets: Sequence[str],
    judge: str,
) -> Origin:
    """Find the origin of a model.

    run: of its last stage; judge: hash of the model's judge specification. base, license, datasets: options, which
    take precedence over recipes. Raises ReportError if `run` is not a run, or is of another judge.
    """
    stages = [] if run is None else _stages(run)
    if run is not None and (taught := stages[-1].info.get("judge")) not in (None, judge):
        raise ReportError(
            f"{run} trained a judge with another specification (judge {taught[:12]}, the model's is {judge[:12]}): "
            "give the run that this model was exported from"
        )
    start = stages[0].start if stages else ""
    card = read_front_matter(_place_of(start) / CARD) if start else {}
    known = SMOLLM2_HUB if start == SMOLLM2 else start if _license_of(start) else None
    base = base or known or _one(card.get("base_model"))
    license = license or _one(card.get("license")) or _license_of(base or "")
    return Origin(tuple(stages), base, license, tuple(dict.fromkeys(datasets)))


def _stages(run: Path) -> list[StageRun]:
    """A run and the earlier runs that it started from, in order, as far as their folders exist."""
    stages: list[StageRun] = []
    seen = set()
    while (run / RECIPE).is_file() and run.resolve() not in seen:
        seen.add(run.resolve())
        stages.insert(0, StageRun(read_recipe_of_run(run / RECIPE), read_info(run)))
        run = _place_of(stages[0].start)
    if not stages:
        raise ReportError(
            f"--run {run}: expected the folder of a run, with its {RECIPE}; there is none"
        )
    return stages


def _place_of(model: str) -> Path:
    """The file or folder of a model by name, also of one that no longer exists; RUN for RUN@STEP."""
    path = expand_user(model, error=ReportError)
    try:
        return resolve_model(model).path or path
    except CheckpointError:
        return path


def _license_of(model: str) -> str | None:
    return next((license for family, license in LICENSES if model.startswith(family)), None)


def _one(entry: Any) -> str | None:
    """The first value of a card's entry, which may be a list."""
    entry = entry[0] if isinstance(entry, list) and entry else entry
    return entry if isinstance(entry, str) else None
