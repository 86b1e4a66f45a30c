"""Reward functions in the call forms of RL trainers (docs/rewards.md shows each in use)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gram_jax.errors import DataError
from gram_jax.rewards.forms import RewardForm, Rewards, WriteReferences
from gram_jax.rewards.messages import completion_of, prompt_of
from gram_jax.scoring.scorer import Scorer

NAME = "gram_judge"  # under which trainers log it


def trl_reward(
    judge: Scorer,
    form: RewardForm | None = None,
    *,
    column: str = "reference",
    write: WriteReferences | None = None,
) -> Callable[..., list[float]]:
    """A reward function for TRL's GRPOTrainer and RLOOTrainer.

    Called as fn(prompts, completions, **columns), texts or messages, the members of a group one after the other; what
    else TRL passes is ignored. column: of the dataset, with the reference of each prompt, for such a form. write: the
    references of prompts that have none there, as a policy's GreedyResponses.
    """
    rewards = Rewards(judge, form, write=write)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return rewards.of(prompts, completions, _column(rewards, columns, column))

    reward.__name__ = NAME
    return reward


def async_trl_reward(
    judge: Scorer,
    form: RewardForm | None = None,
    *,
    column: str = "reference",
    write: WriteReferences | None = None,
) -> Callable[..., Awaitable[list[float]]]:
    """`trl_reward` as a coroutine function, which TRL runs beside other asynchronous rewards."""
    plain = trl_reward(judge, form, column=column, write=write)

    async def reward(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        return await asyncio.to_thread(plain, prompts, completions, **columns)

    reward.__name__ = NAME
    return reward


def tunix_reward(
    judge: Scorer,
    form: RewardForm | None = None,
    *,
    column: str = "reference",
    question: str = "question",
    write: WriteReferences | None = None,
) -> Callable[..., list[float]]:
    """A reward function for Tunix's GRPOLearner: fn(prompts=..., completions=..., **columns).

    Tunix passes prompts that are rendered already. question: the column with the bare question; without it the rendered
    prompt is taken apart where its chat format is known (rewards/messages.py). column, write: as for `trl_reward`.
    """
    rewards = Rewards(judge, form, write=write)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        asked = [_plain(x) for x in columns.get(question, prompts)]
        return rewards.of(
            asked, [_plain(x) for x in completions], _column(rewards, columns, column)
        )

    reward.__name__ = NAME
    return reward


class GroupJudge:
    """The judge as an index of the best completion, in the form of TRL's former judges and of LLM-Blender."""

    def __init__(self, judge: Scorer):
        self.judge = judge

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Sequence[Any]],
        shuffle_order: bool = True,
    ) -> list[int]:
        """Index of the best completion of every prompt. shuffle_order changes nothing: both orders are always read."""
        return [order[0] for order in self.rank(prompts, completions)]

    def rank(self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]]) -> list[list[int]]:
        """Indices of every prompt's completions, the best first."""
        if len(prompts) != len(completions):
            raise DataError(f"{len(prompts)} prompts and {len(completions)} lists of completions")
        items = [
            (prompt_of(prompt), [completion_of(text) for text in texts])
            for prompt, texts in zip(prompts, completions, strict=True)
        ]
        return [ranking.order for ranking in self.judge.rank_many(items)]

    def pairwise(self, prompts: Sequence[Any], pairs: Sequence[Sequence[Any]]) -> list[float]:
        """P(the first of two completions is better) for every prompt."""
        wrong = next((len(pair) for pair in pairs if len(pair) != 2), None)
        if wrong is not None or len(prompts) != len(pairs):
            raise DataError(
                f"expected two completions for each of {len(prompts)} prompts, found {wrong or len(pairs)}"
            )
        triples = [
            (prompt_of(prompt), completion_of(pair[0]), completion_of(pair[1]))
            for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        return [score.first for score in self.judge.score_many(triples)]


def _column(rewards: Rewards, columns: dict[str, Any], name: str) -> Sequence[Any] | None:
    form = rewards.form
    if form.against != "reference":
        return None
    if name not in columns and not form.references and rewards.write is None:
        raise DataError(
            f"the reward compares with a reference, and the data has no column {name!r}: found "
            f"{', '.join(columns) or 'none'}. Name it with column=, give the form references, or write= a policy that "
            "writes them"
        )
    values = columns.get(name)
    return None if values is None else [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """Text of arrays and bytes, as some loaders pass it; several references stay several."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_plain(one) for one in value] if isinstance(value, list) else value
