"""Strict validation of recipes: unknown keys, missing keys and wrong types are errors, one line each."""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gram_jax.errors import RecipeError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_Kind = TypeVar("_Kind")


# Earlier names of keys: the error message for one of them suggests the current name.
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


def validated(kind: type[_Kind], values: Mapping[str, Any], where: str) -> _Kind:
    """Nested plain values as a value of the dataclass `kind`. Raises RecipeError with one line for each error.

    They are validated as JSON, since strict validation of Python values does not accept a list as a tuple.
    """
    try:
        text = json.dumps(values, default=str)
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits
        raise RecipeError(f"{where}: tables or lists are nested too deeply, or {error}") from None
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        found = error.errors()
        lines = [_explain(problem, kind) for problem in found if not _follows(problem, found)]
        raise RecipeError("\n  ".join([f"{where}:", *lines])) from None


def plain_values(value: Any) -> dict[str, Any]:
    """A dataclass as nested plain values; None has no key, as in TOML."""
    return TypeAdapter(type(value)).dump_python(value, mode="json", exclude_none=True)


def _follows(problem: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list is reported as too short only because its entries are invalid."""
    size = len(problem["loc"])
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > size and other["loc"][:size] == problem["loc"] for other in problems
    )


def _explain(problem: Mapping[str, Any], recipe: type) -> str:
    """An error of pydantic as a line: table, key, value found, value expected."""
    kind, loc = problem["type"], [str(part) for part in problem["loc"]]
    if kind == "value_error":  # of a table's __post_init__
        return f"[{'.'.join(loc)}] {problem['ctx']['error']}"
    *section, name = loc or ["recipe"]
    place = f"[{'.'.join(section)}] {name}" if section else name
    if kind == "unexpected_keyword_argument":
        known = _known_keys(section, recipe)
        near = [key for key in RENAMED.get(name, ()) if key in known]
        near = near or difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        if not hint:
            tables = [table.name for table in dataclasses.fields(recipe)]
            hint = "".join(
                f"; it belongs to [{x}]" for x in tables if name in _known_keys([x], recipe)
            )
        return f"{place} is not a known key{hint} (known here: {', '.join(known)})"
    if kind in ("missing", "missing_argument"):
        return f"{place} is missing"
    expected = re.sub(r"^\w+ should (be|have) ", "", problem["msg"])
    expected = {"dataclass_type": "a table", "tuple_type": "a list"}.get(kind, expected)
    return f"{place} = {json.dumps(problem['input'], default=str)}: expected {expected}"


def _known_keys(section: Sequence[str], recipe: type) -> list[str]:
    """The keys of a table of the format."""
    table: Any = recipe
    for name in section:
        if not name.isdigit():  # the place in a list
            table = _table_of(typing.get_type_hints(table).get(name))
    return [field.name for field in dataclasses.fields(table)] if table else []


def _table_of(kind: Any) -> Any:
    """The dataclass inside a type such as `AdapterConfig | None` or `tuple[SourceConfig, ...]`."""
    if dataclasses.is_dataclass(kind):
        return kind
    return next(filter(None, map(_table_of, typing.get_args(kind))), None)
