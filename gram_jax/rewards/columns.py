"""Columns of a data set as trainers pass them to a reward function."""

from collections.abc import Sequence
from typing import Any

from gram_jax.errors import DataError
from gram_jax.rewards.forms import Rewards

NAME = "gram_judge"  # under which trainers log the reward


def reference_column(rewards: Rewards, columns: dict[str, Any], name: str) -> Sequence[Any] | None:
    """The references in a column; None if the form needs none of it. Raises DataError if it is missing."""
    form = rewards.form
    if form.compare_with != "reference":
        return None
    if name not in columns and not form.references and rewards.write is None:
        raise DataError(
            f"the reward compares with a reference, and the data has no column {name!r}: found "
            f"{', '.join(columns) or 'none'}. Set column=, write=, or references of the form"
        )
    values = columns.get(name)
    return None if values is None else [as_text(value) for value in values]


def as_text(value: Any) -> Any:
    """Arrays and bytes, which some loaders pass, as texts; several references stay several."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [as_text(one) for one in value] if isinstance(value, list) else value
