"""Where a model comes from: the runs that led to it, the model that they began with, and its licence."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_jax.checkpoint.run_info import RECIPE, read_info
from gram_jax.data.sources import FILE_SUFFIXES
from gram_jax.errors import ReportError
from gram_jax.interop.hub import CARD, read_front_matter
from gram_jax.interop.resolve import SMOLLM2
from gram_jax.recipes.reading import read_recipe
from gram_jax.recipes.tables import Recipe

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# The owner and the name of a model or a data set, in letters that the hub allows.
HUB_NAME = re.compile(r"([\w-]{1,96})/([\w.-]{1,96})", re.ASCII)
SPLIT = re.compile(r":[\w.-]+(\[[^\]]*\])?")
# Names of the like of which there is one in every project, and hardly an owner of data sets.
FOLDERS = {
    *("data", "dataset", "datasets", "examples", "test", "tests", "train", "training"),
    *("checkpoints", "exports", "models", "runs", "local", "shared", "tmp", "work"),
    *("eval", "evals", "evaluation", "evaluations", "out", "output", "outputs"),
    *("result", "results"),
}
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
    """A run: its folder, its recipe, what its run.json says, and the name of what it began with."""

    folder: Path
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
    first = stages[0] if stages else None
    card = {} if first is None else read_front_matter(Path(first.start).expanduser() / CARD)
    found = base or (first and (_base_of(first) or _base_in(card, first)))
    return Origin(
        tuple(stages),
        found,
        license or _one(card.get("license")) or _known_license(found),
        tuple(
            dict.fromkeys(
                name
                for stage in stages
                for source in stage.recipe.data.train
                if (name := hub_dataset(source.path, stage.folder))
            )
        ),
    )


def _stages(run: Path) -> list[Stage]:
    """A run and those before it whose models it began with, as far as they are still there; the first first."""
    stages: list[Stage] = []
    seen = set()
    while (run / RECIPE).is_file() and run.resolve() not in seen:
        seen.add(run.resolve())
        recipe = read_recipe(run / RECIPE)
        stages.insert(0, Stage(run, recipe, read_info(run), recipe.model.name_or_path))
        run = Path(recipe.model.name_or_path).expanduser()
    if not stages:
        raise ReportError(
            f"--run {run}: expected the folder of a run, with its {RECIPE}; there is none"
        )
    return stages


def _base_of(stage: Stage) -> str | None:
    """The hub's name of the model that a run began with; None where it is no model of the hub."""
    if stage.start == SMOLLM2:
        return SMOLLM2_HUB
    return stage.start if is_of_hub(stage.start, stage.folder) else None


def _base_in(card: Mapping[str, Any], stage: Stage) -> str | None:
    """The base that the card of a run's start names; somebody's folder is none, a name without an owner is."""
    base = _one(card.get("base_model"))
    return base if base and ("/" not in base or is_of_hub(base, stage.folder)) else None


def _known_license(base: str | None) -> str | None:
    return next((name for start, name in LICENSES if base and base.startswith(start)), None)


def _one(entry: Any) -> str | None:
    """A card's entry may be a list."""
    entry = entry[0] if isinstance(entry, list) and entry else entry
    return entry if isinstance(entry, str) else None


def is_of_hub(name: str, beside: Path) -> bool:
    """Whether a name that may be a path is the hub's: it has that form, no ending, and no look of a folder.

    beside: what was made where the name meant something, a run or a folder of results: a path that leads somewhere
    from a folder above it, or from here, is none of the hub. What is taken for the hub's is published in a card, so in
    doubt it is not: names of three parts, and of folders as there are in every project.

    >>> here = Path()
    >>> is_of_hub("allenai/reward-bench", here), is_of_hub("Qwen/Qwen3-0.6B", here)
    (True, True)
    >>> [is_of_hub(name, here) for name in ("a/b.jsonl", "./a", "a/b/c", "data/pairs", "pairs", "tfds:x/y")]
    [False, False, False, False, False, False]
    """
    form = HUB_NAME.fullmatch(name)
    if form is None or form[1].lower() in FOLDERS or any(map(_is_malformed, form.groups())):
        return False
    if name.lower().endswith(FILE_SUFFIXES) or re.search(r"\.[A-Za-z]{2,8}$", name):
        return False
    return not any((place / name).exists() for place in (Path(), *beside.absolute().parents))


def _is_malformed(part: str) -> bool:
    return part.strip("-.") != part or "--" in part or ".." in part


def hub_dataset(source: str, beside: Path) -> str | None:
    """The hub's name of a data set that a source names, None for files and folders; beside: as in `is_of_hub`.

    >>> here = Path()
    >>> hub_dataset("allenai/reward-bench:filtered", here), hub_dataset("data/pairs.jsonl", here)
    ('allenai/reward-bench', None)
    """
    name, colon, split = source.partition(":")
    if colon and not SPLIT.fullmatch(colon + split):
        return None
    return name if is_of_hub(name, beside) else None


def shown_source(source: str, beside: Path) -> str:
    """A source as others may see it: a hub's name as it is, of a path its last part.

    >>> shown_source("/home/me/secret/pairs.jsonl", Path()), shown_source("Anthropic/hh-rlhf:test", Path())
    ('pairs.jsonl', 'Anthropic/hh-rlhf:test')
    """
    known = hub_dataset(source, beside) or source.startswith("tfds:")
    return source if known else Path(source).name


def shown_start(stage: Stage) -> str:
    """What a run began with, likewise."""
    return stage.start if is_of_hub(stage.start, stage.folder) else Path(stage.start).name
