"""Reward functions for TRL's GRPOTrainer and RLOOTrainer, and the judge in the form of TRL's pairwise judges.

from gram_jax import RewardForm, Scorer
from gram_jax.rewards.trl import trl_reward

reward = trl_reward(Scorer.load("runs/judge"), RewardForm(compare_with="group"))
trainer = GRPOTrainer(..., reward_funcs=[reward])
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gram_jax.errors import DataError
from gram_jax.judge.messages import check_list
from gram_jax.rewards.columns import NAME, column_reward
from gram_jax.rewards.forms import PairScorer, ReferenceWriter, RewardForm, end_tokens
from gram_jax.rewards.messages import completion_of, prompt_of


def trl_reward(
    judge: PairScorer,
    form: RewardForm | None = None,
    *,
    column: str = "reference",
    write: ReferenceWriter | None = None,
) -> Callable[..., list[float]]:
    """Make a reward function, called as fn(prompts, completions, **columns) with texts or messages.

    form: default RewardForm(), which compares within groups. column: column of the data set with references, for
    compare_with="reference". write: generates references for prompts without one, for example GreedyResponses. If a
    group arrives in parts, responses are compared with the earlier parts if form.group_size is given or if single
    responses arrive. The function returns one reward per completion.
    """
    return column_reward(judge, form, column=column, question=None, write=write)


def async_trl_reward(
    judge: PairScorer,
    form: RewardForm | None = None,
    *,
    column: str = "reference",
    write: ReferenceWriter | None = None,
) -> Callable[..., Awaitable[list[float]]]:
    """`trl_reward` as a coroutine function, which TRL runs concurrently with other asynchronous rewards."""
    in_thread = trl_reward(judge, form, column=column, write=write)

    async def reward(*given: Any, **columns: Any) -> list[float]:
        return await asyncio.to_thread(in_thread, *given, **columns)

    reward.__name__ = NAME
    return reward


class GroupJudge:
    """Selects the best completion, with the interface of TRL's BasePairwiseJudge and of LLM-Blender."""

    def __init__(self, judge: PairScorer):
        self.judge, self.ends = judge, end_tokens(RewardForm(), judge)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Sequence[Any]],
        shuffle_order: bool = True,
    ) -> list[int]:
        """Index of the best completion of each prompt. shuffle_order has no effect: both orders are always scored."""
        return [order[0] for order in self.rank(prompts, completions)]

    def rank(self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]]) -> list[list[int]]:
        """Indices of the completions of each prompt, the best first."""
        for texts in (prompts, completions, *completions):
            check_list(texts, "lists of prompts and of completions")
        if len(prompts) != len(completions):
            raise DataError(f"{len(prompts)} prompts and {len(completions)} lists of completions")
        items = [
            (prompt_of(prompt), [self._text(text) for text in texts])
            for prompt, texts in zip(prompts, completions, strict=True)
        ]
        return [ranking.order for ranking in self.judge.rank_many(items)]

    def _text(self, completion: Any) -> str:
        return completion_of(completion, None, self.ends)

    def pairwise(self, prompts: Sequence[Any], pairs: Sequence[Sequence[Any]]) -> list[float]:
        """P(the first of two completions is better) for each prompt."""
        for texts in (prompts, pairs, *pairs):
            check_list(texts, "lists of prompts and of pairs")
        wrong = next((len(pair) for pair in pairs if len(pair) != 2), None)
        if wrong is not None or len(prompts) != len(pairs):
            raise DataError(
                f"expected two completions for each of {len(prompts)} prompts, found {wrong or len(pairs)}"
            )
        triples = [
            (prompt_of(prompt), self._text(pair[0]), self._text(pair[1]))
            for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        return [score.first for score in self.judge.score_many(triples)]
