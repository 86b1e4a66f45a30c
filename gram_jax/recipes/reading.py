"""Reading recipes from TOML files, writing them back, and comparing the recipes of a run that resumes."""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from gram_jax.errors import RecipeError
from gram_jax.recipes.checks import check_recipe, check_rl_recipe
from gram_jax.recipes.rl import RlRecipe
from gram_jax.recipes.strict import plain_values, validated
from gram_jax.recipes.tables import Recipe
from gram_jax.tree import flatten

# Shipped recipes: inside the package in a wheel, next to it in a checkout.
_INSIDE = Path(str(files("gram_jax"))) / "configs"
RECIPES = _INSIDE if _INSIDE.is_dir() else _INSIDE.parents[1] / "configs"

RecipeT = TypeVar("RecipeT", Recipe, RlRecipe)

# Keys that may differ when a run resumes: they change no result, or only its last bits.
_FREE = ("run.output_dir", "mesh.", "evaluate.", "checkpoint.", "log.")
FREE_ON_RESUME: dict[type, tuple[str, ...]] = {
    Recipe: (
        *_FREE,
        "run.max_skipped",
        "data.valid",
        "data.max_overlap",
        "data.cache_dir",
        "data.num_workers",
        "batch.gradient_accumulation_steps",
        "loss.loss_chunk_size",
        "execution.attention",
        "execution.remat",
        "execution.compiler_options",
    ),
    RlRecipe: (*_FREE, "algorithm.gradient_accumulation_steps", "reward.num_devices"),
}
CHECKS: dict[type, Callable[[Any], Iterator[str]]] = {
    Recipe: check_recipe,
    RlRecipe: check_rl_recipe,
}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the training recipe in a TOML file.

    path: a file, or the name of a recipe that ships with gram_jax, such as "smollm2-135m-finetune". overrides: changes
    of keys, such as "optimizer.learning_rate=1e-5". The value of an override is TOML (`data.train=["a.jsonl"]`); a bare
    word is a string, and an empty value removes the key.

    Raises RecipeError for a file that cannot be read, an unknown key (with the nearest known one), a missing key, a
    value of the wrong type or range, and values that contradict each other.

    >>> recipe = read_recipe("smollm2-135m-finetune", ["optimizer.learning_rate=1e-5", "run.max_steps=20"])
    >>> recipe.stage, recipe.run.max_steps, recipe.optimizer.learning_rate
    ('finetune', 20, 1e-05)
    """
    return read_recipe_as(Recipe, path, overrides)


def read_recipe_as(kind: type[RecipeT], path: str | Path, overrides: Sequence[str] = ()) -> RecipeT:
    """The recipe of this kind in a TOML file, as `read_recipe`."""
    values = _read_toml(path)
    for override in overrides:
        _apply(values, override)
    where = str(path) + (f" with --set {' --set '.join(overrides)}" if overrides else "")
    return make_recipe_as(kind, values, where)


def read_recipe_of_run(path: str | Path) -> Recipe | RlRecipe:
    """The recipe in the directory of a run: that of a training run has a stage, that of an RL run has none."""
    if "stage" in _read_toml(path):
        return read_recipe(path)
    return read_recipe_as(RlRecipe, path)


def make_recipe_as(
    kind: type[RecipeT], values: Mapping[str, Any], where: str = "recipe"
) -> RecipeT:
    """The recipe of this kind from nested plain values, checked as if they were read from the file `where`.

    Raises RecipeError with one line for each error.
    """
    recipe = validated(kind, values, where)
    if problems := list(CHECKS[kind](recipe)):
        raise RecipeError("\n  ".join([f"{where}:", *problems]))
    return recipe


read_rl_recipe = partial(read_recipe_as, RlRecipe)
make_recipe = partial(make_recipe_as, Recipe)
make_rl_recipe = partial(make_recipe_as, RlRecipe)


def recipe_text(path: str | Path) -> str:
    """The text of the recipe file at this path, or else of the shipped recipe of this name.

    Raises RecipeError if there is neither, or if the file is not text.
    """
    file, shipped = Path(path), recipe_names()
    if not file.is_file() and str(path) in shipped:
        file = RECIPES / f"{path}.toml"
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        names = ", ".join(shipped) or "none"
        raise RecipeError(
            f"there is no recipe {str(path)!r}\n  shipped recipes: {names}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error}") from error


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_to_toml(recipe: Recipe | RlRecipe) -> str:
    """The recipe as text with every default stated; reading it gives an equal value."""
    return tomli_w.dumps(recipe_values(recipe))


def recipe_values(recipe: Recipe | RlRecipe) -> dict[str, Any]:
    """The recipe as nested plain values; None has no key, as in TOML."""
    return plain_values(recipe)


def changed_on_resume(before: RecipeT, now: RecipeT) -> list[str]:
    """Keys that change results and differ between two recipes, each as "key: before -> now"."""
    a, b = (flatten(recipe_values(recipe)) for recipe in (before, now))
    return [
        f"{key}: {a.get(path, 'absent')!r} -> {b.get(path, 'absent')!r}"
        for path in sorted(a | b)
        if a.get(path) != b.get(path)
        and not (key := path.replace("/", ".")).startswith(FREE_ON_RESUME[type(now)])
    ]


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(recipe_text(path))
    except (ValueError, RecursionError) as error:  # also of an integer of thousands of digits
        raise RecipeError(f"{path} is not a TOML file: {error}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    """Apply one "table.key=value" to the values of a file."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise RecipeError(
            f"--set {override}: expected key=value, such as optimizer.learning_rate=1e-5"
        )
    node = values
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise RecipeError(f"--set {override}: {key} is not a table of the recipe")
    if not text.strip():
        node.pop(keys[-1], None)
        return
    try:
        node[keys[-1]] = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        node[keys[-1]] = text.strip()
