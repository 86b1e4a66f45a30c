"""Where a model comes from: the runs that led to it, the model that they began with, and its licence."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_jax.checkpoint.hub import CARD, is_hub_name, read_front_matter
from gram_jax.checkpoint.models import SMOLLM2, TINY
from gram_jax.checkpoint.runs import RECIPE, read_info
from gram_jax.data.sources import FILE_SUFFIXES
from gram_jax.errors import ReportError
from gram_jax.recipes.reading import read_recipe
from gram_jax.recipes.tables import Recipe, Source

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Whole families whose every model has one licence; of others the user is asked.
LICENSES = (
    ("HuggingFaceTB/SmolLM2-", "apache-2.0"),
    ("Qwen/Qwen3-", "apache-2.0"),
    ("meta-llama/Llama-3.2-", "llama3.2"),
    ("meta-llama/Llama-3.1-", "llama3.1"),
    ("meta-llama/Meta-Llama-3-", "llama3"),
)


@dataclass(frozen=True)
class Stage:
    """A run: its recipe, what its run.json says, and the name of what it began with."""

    recipe: Recipe
    info: Mapping[str, Any]
    start: str


@dataclass(frozen=True)
class Origin:
    """stages: the runs, the first first. base: the hub's name of what these began with, None where it is not known.

    license: as the hub names it, None where it is not known. datasets: names on the hub of what was learned from.
    """

    stages: tuple[Stage, ...]
    base: str | None
    license: str | None
    datasets: tuple[str, ...]


def find_origin(run: Path | None, base: str | None, license: str | None, judge: str) -> Origin:
    """What is known of a model's descent.

    run: of its last stage; judge: hash of the model's judge. base and license, where given, go before what is found.
    Raises ReportError for a folder that is no run, or the run of another judge.
    """
    stages = [] if run is None else list(_stages(run))
    if run is not None and (taught := stages[-1].info.get("judge")) not in (None, judge):
        raise ReportError(
            f"{run} taught a judge that is asked in another way (judge {taught[:12]}, the model's is {judge[:12]}): "
            "give the run that this model was exported from"
        )
    start = stages[0].start if stages else None
    card = {} if start is None else read_front_matter(Path(start).expanduser() / CARD)
    found = base or _hub_name(start) or _one(card.get("base_model"))
    return Origin(
        tuple(stages),
        found,
        license or _one(card.get("license")) or _known_license(found),
        tuple(
            dict.fromkeys(name for stage in stages for name in _datasets(stage.recipe.data.train))
        ),
    )


def _stages(run: Path) -> list[Stage]:
    """A run and those before it whose models it began with, as far as they are still there; the first first."""
    stages: list[Stage] = []
    seen = set()
    while (run / RECIPE).is_file() and run.resolve() not in seen:
        seen.add(run.resolve())
        recipe = read_recipe(run / RECIPE)
        stages.insert(0, Stage(recipe, read_info(run), recipe.model.start))
        run = Path(recipe.model.start).expanduser()
    if not stages:
        raise ReportError(
            f"--run {run}: expected the folder of a run, with its {RECIPE}; there is none"
        )
    return stages


def _hub_name(start: str | None) -> str | None:
    if start == SMOLLM2:
        return SMOLLM2_HUB
    if start is None or start == TINY or Path(start).expanduser().exists():
        return None
    return start if is_hub_name(start) else None


def _known_license(base: str | None) -> str | None:
    return next((name for start, name in LICENSES if base and base.startswith(start)), None)


def _one(entry: Any) -> str | None:
    """A card's entry may be a list."""
    entry = entry[0] if isinstance(entry, list) and entry else entry
    return entry if isinstance(entry, str) else None


def hub_dataset(source: str) -> str | None:
    """The hub's name of a data set that a source names, None for files and folders.

    >>> hub_dataset("allenai/reward-bench:filtered"), hub_dataset("data/pairs.jsonl"), hub_dataset("tfds:x")
    ('allenai/reward-bench', None, None)
    """
    if source.startswith("tfds:") or source.endswith(FILE_SUFFIXES) or Path(source).exists():
        return None
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(/[\w.-]+)?(:.+)?", source)
    return found.group(1) if found and is_hub_name(found.group(1)) else None


def _datasets(sources: Sequence[Source]) -> list[str]:
    return [name for source in sources if (name := hub_dataset(source.path))]


def shown_source(source: str) -> str:
    """A source as others may see it: a hub's name as it is, of a path its last part.

    >>> shown_source("/home/me/secret/pairs.jsonl"), shown_source("Anthropic/hh-rlhf:test")
    ('pairs.jsonl', 'Anthropic/hh-rlhf:test')
    """
    return source if hub_dataset(source) or source.startswith("tfds:") else Path(source).name
