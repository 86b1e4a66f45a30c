"""Strict validation of recipes: unknown keys, missing keys and wrong types are errors, one line each."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gram_jax.errors import RecipeError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_Kind = TypeVar("_Kind")

# Former names of keys; the error for an unknown key suggests the present name.
RENAMED: dict[str, tuple[str, ...]] = {
    "folder": ("output_dir",),
    "steps": ("max_steps",),
    "epochs": ("num_train_epochs", "num_epochs"),
    "start": ("name_or_path",),
    "dtype": ("param_dtype",),
    "orders": ("position_augmentation",),
    "rows": ("batch_size",),
    "length": ("max_length",),
    "pack": ("packing",),
    "microbatches": ("gradient_accumulation_steps",),
    "warmup": ("warmup_steps",),
    "schedule": ("lr_scheduler_type",),
    "clip": ("max_grad_norm", "clip_range"),
    "moments": ("first_moment_dtype",),
    "second_moment": ("second_moment_dtype",),
    "smoothing": ("label_smoothing",),
    "chunk": ("loss_chunk_size",),
    "compute": ("compute_dtype",),
    "between": ("dcn",),
    "targets": ("target_modules",),
    "every": ("eval_steps", "save_steps", "logging_steps"),
    "keep": ("max_to_keep",),
    "keep_every": ("keep_period",),
    "prompts": ("prompts_per_step",),
    "group": ("num_generations",),
    "prompt_length": ("max_prompt_length",),
    "new": ("max_new_tokens",),
    "minibatches": ("num_mini_batches",),
    "kl": ("kl_coef",),
    "discount": ("gamma",),
    "trace": ("gae_lambda",),
    "value": ("vf_coef",),
    "value_clip": ("clip_range_vf",),
    "entropy": ("ent_coef",),
    "devices": ("num_devices",),
    "against": ("compare_with",),
    "as_": ("scale",),
}


def validated(kind: type[_Kind], text: str, where: str) -> _Kind:
    """The JSON text as a value of the dataclass `kind`. JSON, since strict validation of Python values accepts no lists
    as tuples and no dicts as dataclasses.

    Raises RecipeError with one line for each error.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        found = error.errors()
        lines = [_explain(problem, kind) for problem in found if not _follows(problem, found)]
        raise RecipeError("\n  ".join([f"{where}:", *lines])) from None


def _follows(problem: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list is reported as too short only because its entries are invalid."""
    size = len(problem["loc"])
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > size and other["loc"][:size] == problem["loc"] for other in problems
    )


_EXPECTED = {
    "dataclass_type": "a table",
    "too_short": "at least one entry",
    "tuple_type": 'a list, such as ["a", "b"]',
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "a string",
    "bool_type": "true or false",
}


def _explain(problem: Mapping[str, Any], recipe: Any) -> str:
    """An error of pydantic as a line: table, key, value found, value expected."""
    *section, name = problem["loc"] or ("recipe",)
    kind = problem["type"]
    place = f"[{'.'.join(map(str, section))}] {name}" if section else f"{name}"
    if kind == "unexpected_keyword_argument":
        known = _known_keys(section, recipe)
        near = [key for key in RENAMED.get(str(name), ()) if key in known]
        near = near or difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else _elsewhere(str(name), recipe)
        return f"{place} is not a known key{hint} (known here: {', '.join(known)})"
    if kind in ("missing", "missing_argument"):
        return f"{place} is missing"
    expected = _EXPECTED.get(kind, problem["msg"].removeprefix("Input should be "))
    return f"{place} = {json.dumps(problem['input'], default=str)}: expected {expected}"


def _known_keys(section: Sequence[Any], recipe: Any) -> list[str]:
    """The keys of a table of the format."""
    kind: Any = recipe
    for name in section:
        if isinstance(name, int):
            continue
        kind = _table_of(typing.get_type_hints(kind).get(name))
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _table_of(kind: Any) -> Any:
    """The dataclass inside a type such as `Lora | None` or `tuple[str | Source, ...]`."""
    if dataclasses.is_dataclass(kind):
        return kind
    for part in typing.get_args(kind) if not isinstance(kind, types.NoneType) else ():
        if (found := _table_of(part)) is not None:
            return found
    return None


def _elsewhere(name: str, recipe: Any) -> str:
    """The table that a key of this name belongs to, if there is one."""
    for section in dataclasses.fields(recipe):
        if name in _known_keys([section.name], recipe):
            return f"; it belongs to [{section.name}]"
    return ""
