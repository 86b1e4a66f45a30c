"""Recipes from TOML files and back to text, and which of their keys a run may change when it goes on."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from gram_jax.errors import RecipeError
from gram_jax.recipes.checks import cross_checks
from gram_jax.recipes.strict import plain_values, validated
from gram_jax.recipes.tables import Recipe

# Those that come with the package: inside of it in a wheel, beside it in a checkout.
_INSIDE = Path(str(files("gram_jax"))) / "configs"
RECIPES = _INSIDE if _INSIDE.is_dir() else _INSIDE.parents[1] / "configs"

# What may differ between a run and its continuation: it changes no result, or only its last bits.
FREE_ON_RESUME = (
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
)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file, with overrides such as "optimizer.learning_rate=1e-5".

    path: of a file, or the name of a recipe that comes with gram_jax, such as "smollm2-135m-finetune".
    An override's value is TOML (`data.train=["a.jsonl"]`); a bare word is a string, and an empty
    value removes the key. Raises RecipeError for a file that cannot be read, an unknown key (naming
    the nearest known one), a missing key, a value of the wrong type or range, and values that do
    not go together.

    >>> recipe = read_recipe("smollm2-135m-finetune", ["optimizer.learning_rate=1e-5", "run.max_steps=20"])
    >>> recipe.stage, recipe.run.max_steps, recipe.optimizer.learning_rate
    ('finetune', 20, 1e-05)
    """
    values, where = read_values(path, overrides)
    return make_recipe(values, where)


def make_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe of nested plain values, checked as if they had been read from the file `where`."""
    recipe = validated(Recipe, json.dumps(_sources_as_tables(values), default=str), where)
    if problems := list(cross_checks(recipe)):
        raise RecipeError("\n  ".join([f"{where}:", *problems]))
    return recipe


def read_values(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The values of a TOML file with overrides, and what to call them in messages. Raises RecipeError."""
    try:
        values = tomllib.loads(recipe_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error
    for override in overrides:
        _apply(values, override)
    return values, str(path) + (f" with --set {' --set '.join(overrides)}" if overrides else "")


def recipe_text(path: str | Path) -> str:
    """The text of a recipe: of the file at this path, or else of the one that comes with gram_jax by this name.

    Raises RecipeError where there is neither, or no text in the file.
    """
    file = Path(path)
    if not file.is_file() and str(path) in recipe_names():
        return (RECIPES / f"{path}.toml").read_text(encoding="utf-8")
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        names = f"\n  by name alone there are {', '.join(recipe_names()) or 'none'}"
        raise RecipeError(
            f"recipe {str(path)!r} cannot be read: {error.strerror or error}"
            + (names if isinstance(error, FileNotFoundError) else "")
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error


def recipe_names() -> list[str]:
    """The names of the recipes that come with gram_jax."""
    # a copy of gram_jax/ alone has none
    names = [file.name for file in RECIPES.iterdir()] if RECIPES.is_dir() else []
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as text with every default spelled out; reading it gives an equal value."""
    return tomli_w.dumps(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values; what is absent (None) has no key, as in TOML."""
    values = plain_values(dataclasses.asdict(recipe))
    for key in ("train", "valid"):
        sources = values["data"][key]
        plain = [s["path"] if s == {"path": s["path"], "schema": "auto"} else s for s in sources]
        values["data"][key] = plain
    return values


def changed_on_resume(before: Recipe, now: Recipe) -> list[str]:
    """Keys that change results and differ between two recipes, each as "key: before -> now"."""
    return changed_values(recipe_values(before), recipe_values(now), FREE_ON_RESUME)


def changed_values(
    before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...]
) -> list[str]:
    """Keys of nested plain values that differ, each as "key: before -> now", but for those that begin as in `free`.

    >>> changed_values({"run": {"seed": 0, "steps": 9}}, {"run": {"seed": 1, "steps": 8}}, ("run.st",))
    ['run.seed: 0 -> 1']
    """
    a, b = _leaves(before), _leaves(now)
    return [
        f"{key}: {a.get(key, 'absent')!r} -> {b.get(key, 'absent')!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not key.startswith(free)
    ]


def _sources_as_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with every source that is a plain string as the table that it stands for."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return dict(values)

    def tables(sources: Any) -> Any:
        if not isinstance(sources, list | tuple):
            return sources
        return [{"path": source} if isinstance(source, str) else source for source in sources]

    lists = {key: tables(data[key]) for key in ("train", "valid") if key in data}
    return {**values, "data": {**data, **lists}}


def _apply(values: dict[str, Any], override: str) -> None:
    """Write one "section.key=value" into the values of a file."""
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
