"""A reward function for Tunix's GRPOLearner.

from gram_jax.rewards.tunix import tunix_reward

learner = GRPOLearner(rl_cluster=cluster, reward_fns=[tunix_reward(judge)], grpo_config=config)
"""

from collections.abc import Callable, Sequence
from typing import Any

from gram_jax.rewards.columns import NAME, as_text, reference_column
from gram_jax.rewards.forms import PairScorer, ReferenceWriter, RewardForm, Rewards
from gram_jax.rewards.group_buffer import GroupBuffer


def tunix_reward(
    judge: PairScorer,
    form: RewardForm | None = None,
    *,
    column: str = "reference",
    question: str = "question",
    write: ReferenceWriter | None = None,
) -> Callable[..., list[float]]:
    """A reward function, called as fn(prompts=..., completions=..., **columns).

    Tunix passes rendered prompts. question: the column with the bare question; without it the rendered prompt is parsed
    if its chat format is known (rewards/messages.py). column, write: as for `trl_reward`.
    """
    rewards = Rewards(judge, form, write=write, buffer=GroupBuffer())

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        questions = [as_text(prompt) for prompt in columns.get(question, prompts)]
        texts = [as_text(completion) for completion in completions]
        return rewards.of(questions, texts, reference_column(rewards, columns, column))

    reward.__name__ = NAME
    return reward
