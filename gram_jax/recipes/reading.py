"""Reading recipes from TOML files, writing them back, and comparing the recipes of a run that resumes."""

import dataclasses
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from gram_jax.errors import RecipeError
from gram_jax.recipes.checks import check_recipe, check_rl_recipe
from gram_jax.recipes.rl import RlRecipe
from gram_jax.recipes.strict import validated
from gram_jax.recipes.tables import Recipe, SourceConfig

# Shipped recipes: inside the package in a wheel, next to it in a checkout.
_INSIDE = Path(str(files("gram_jax"))) / "configs"
RECIPES = _INSIDE if _INSIDE.is_dir() else _INSIDE.parents[1] / "configs"

RecipeT = TypeVar("RecipeT", Recipe, RlRecipe)

# Keys that may differ when a run resumes: they change no result, or only its last bits.
FREE_ON_RESUME: dict[type, tuple[str, ...]] = {
    Recipe: (
        "run.output_dir",
        "run.max_skipped",
        "data.valid",
        "batch.gradient_accumulation_steps",
        "loss.loss_chunk_size",
        "execution.attention",
        "execution.remat",
        "mesh.",
        "evaluate.",
        "checkpoint.",
        "log.",
    ),
    RlRecipe: (
        "run.output_dir",
        "algorithm.gradient_accumulation_steps",
        "mesh.",
        "evaluate.",
        "checkpoint.",
        "reward.num_devices",
        "log.",
    ),
}
CHECKS: dict[type, Callable[[Any], Iterator[str]]] = {
    Recipe: check_recipe,
    RlRecipe: check_rl_recipe,
}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The training recipe of a TOML file, with overrides such as "optimizer.learning_rate=1e-5".

    path: of a file, or the name of a recipe that ships with gram_jax, such as "smollm2-135m-finetune".
    An override's value is TOML (`data.train=["a.jsonl"]`); a bare word is a string, and an empty
    value removes the key. Raises RecipeError for a file that cannot be read, an unknown key (naming
    the nearest known one), a missing key, a value of the wrong type or range, and values that
    contradict each other.

    >>> recipe = read_recipe("smollm2-135m-finetune", ["optimizer.learning_rate=1e-5", "run.max_steps=20"])
    >>> recipe.stage, recipe.run.max_steps, recipe.optimizer.learning_rate
    ('finetune', 20, 1e-05)
    """
    return read_recipe_as(Recipe, path, overrides)


def read_rl_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RlRecipe:
    """The RL recipe of a TOML file, with overrides as in `read_recipe`. Raises RecipeError."""
    return read_recipe_as(RlRecipe, path, overrides)


def make_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The training recipe of nested plain values, checked as if they had been read from the file `where`."""
    return make_recipe_as(Recipe, values, where)


def make_rl_recipe(values: Mapping[str, Any], where: str = "recipe") -> RlRecipe:
    """The RL recipe of nested plain values, checked as if they had been read from the file `where`."""
    return make_recipe_as(RlRecipe, values, where)


def read_recipe_as(kind: type[RecipeT], path: str | Path, overrides: Sequence[str] = ()) -> RecipeT:
    """The recipe of this kind in a TOML file, with overrides as in `read_recipe`. Raises RecipeError."""
    values, where = read_values(path, overrides)
    return make_recipe_as(kind, values, where)


def make_recipe_as(kind: type[RecipeT], values: Mapping[str, Any], where: str) -> RecipeT:
    """The recipe of this kind from nested plain values. Raises RecipeError with one line for each error."""
    recipe = validated(kind, json.dumps(values, default=str), where)
    if problems := list(CHECKS[kind](recipe)):
        raise RecipeError("\n  ".join([f"{where}:", *problems]))
    return recipe


def read_values(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """(the values of a TOML file with overrides, their name in messages). Raises RecipeError."""
    try:
        values = tomllib.loads(recipe_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error
    for override in overrides:
        _apply(values, override)
    return values, str(path) + (f" with --set {' --set '.join(overrides)}" if overrides else "")


def recipe_text(path: str | Path) -> str:
    """The text of the recipe file at this path, or else of the shipped recipe of this name.

    Raises RecipeError if there is neither, or if the file is not text.
    """
    file = Path(path)
    if not file.is_file() and str(path) in recipe_names():
        return (RECIPES / f"{path}.toml").read_text(encoding="utf-8")
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        names = f"\n  shipped recipes: {', '.join(recipe_names()) or 'none'}"
        raise RecipeError(
            f"recipe {str(path)!r} cannot be read: {error.strerror or error}"
            + (names if isinstance(error, FileNotFoundError) else "")
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    names = [file.name for file in RECIPES.iterdir()] if RECIPES.is_dir() else []
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def recipe_to_toml(recipe: Recipe | RlRecipe) -> str:
    """The recipe as text with every default stated; reading it gives an equal value."""
    return tomli_w.dumps(recipe_values(recipe))


def recipe_values(recipe: Recipe | RlRecipe) -> dict[str, Any]:
    """The recipe as nested plain values; None has no key, as in TOML."""
    return _plain(recipe)


def changed_on_resume(before: RecipeT, now: RecipeT) -> list[str]:
    """Keys that change results and differ between two recipes, each as "key: before -> now"."""
    free = FREE_ON_RESUME[type(now)]
    return changed_values(recipe_values(before), recipe_values(now), free)


def changed_values(
    before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...]
) -> list[str]:
    """Keys of nested plain values that differ, as "key: before -> now", except those that begin with one of `free`.

    >>> changed_values({"run": {"seed": 0, "steps": 9}}, {"run": {"seed": 1, "steps": 8}}, ("run.st",))
    ['run.seed: 0 -> 1']
    """
    a, b = _leaves(before), _leaves(now)
    return [
        f"{key}: {a.get(key, 'absent')!r} -> {b.get(key, 'absent')!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not key.startswith(free)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, SourceConfig) and value == SourceConfig(value.path):
        return value.path
    if dataclasses.is_dataclass(value):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(item) for name, item in items if item is not None}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


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
    except tomllib.TOMLDecodeError:
        node[keys[-1]] = text.strip()


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
