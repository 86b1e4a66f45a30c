"""A reward function for Tunix's GRPOLearner.

from gram_jax.rewards.tunix import tunix_reward

learner = GRPOLearner(rl_cluster=cluster, reward_fns=[tunix_reward(judge)], grpo_config=config)
"""

from collections.abc import Callable

from gram_jax.rewards.columns import column_reward
from gram_jax.rewards.forms import PairScorer, ReferenceWriter, RewardForm


def tunix_reward(
    judge: PairScorer,
    form: RewardForm | None = None,
    *,
    column: str = "reference",
    question: str = "question",
    write: ReferenceWriter | None = None,
) -> Callable[..., list[float]]:
    """Make a reward function, called as fn(prompts=..., completions=..., **columns).

    Tunix passes rendered prompts. question: column with the question as plain text; without it the rendered prompt is
    parsed if its chat format is known (rewards/messages.py). form, column, write: as for `trl_reward`.
    """
    return column_reward(judge, form, column=column, question=question, write=write)
