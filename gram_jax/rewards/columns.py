"""Reward functions as trainers call them: with prompts, completions, and the columns of a data set."""

from collections.abc import Callable, Sequence
from typing import Any

from gram_jax.errors import DataError
from gram_jax.rewards.forms import PairScorer, ReferenceWriter, RewardForm, Rewards
from gram_jax.rewards.group_buffer import GroupBuffer

NAME = "gram_judge"  # under which trainers log the reward


def column_reward(
    judge: PairScorer,
    form: RewardForm | None,
    *,
    column: str,
    question: str | None,
    write: ReferenceWriter | None,
) -> Callable[..., list[float]]:
    """A reward function, called as fn(prompts, completions, **columns) with texts or messages.

    column: the column of references, for a form that compares with them. question: the column that is used in place of
    `prompts` if it exists. write: writes references of prompts without one. Groups that arrive in parts are compared
    with their earlier parts. The function raises DataError if the references are missing.
    """
    rewards = Rewards(judge, form, write=write, buffer=GroupBuffer())
    form = rewards.form

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        references = None
        if form.compare_with == "reference":
            if column not in columns and not form.references and write is None:
                raise DataError(
                    f"the reward compares with a reference, and the data has no column {column!r}: found "
                    f"{', '.join(columns) or 'none'}. Set column=, write=, or references of the form"
                )
            references = _as_text(columns.get(column))
        asked = prompts if question is None else columns.get(question, prompts)
        return rewards.of(_as_text(asked), _as_text(completions), references)

    reward.__name__ = NAME
    return reward


def _as_text(value: Any) -> Any:
    """Arrays and bytes, which some loaders pass, as lists and texts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"expected UTF-8 text, found {error}") from error
    return [_as_text(one) for one in value] if isinstance(value, list | tuple) else value
