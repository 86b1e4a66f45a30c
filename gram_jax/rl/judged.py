"""Rewards of a step's responses from a judge, their checks, and win rates."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gram_jax.errors import DataError
from gram_jax.judge.messages import Prompt
from gram_jax.rewards.forms import PairScorer, RewardForm, Rewards

TOLERANCE = 1e-6

# (prompts, responses, greedy responses or None) -> a reward for each
RewardFunction = Callable[[Sequence[Prompt], Sequence[str], Sequence[str] | None], Sequence[float]]


def judged_reward(
    judge: PairScorer, form: RewardForm, preferred: Mapping[Prompt, str] | None = None
) -> RewardFunction:
    """The judge's rewards in a form. With references it compares with `greedy` or `preferred`."""
    rewards = Rewards(judge, form)

    def reward(
        prompts: Sequence[Prompt], texts: Sequence[str], greedy: Sequence[str] | None
    ) -> Sequence[float]:
        # Each in a list, in which an empty text counts as a reference.
        references = None if greedy is None else [[text] for text in greedy]
        if references is None and preferred is not None:
            references = [[preferred[prompt]] for prompt in prompts]
        return rewards.of(prompts, texts, references)

    return reward


def checked(rewards: Sequence[float], count: int) -> np.ndarray:
    """The rewards as f32 [count]. Raises DataError if they are not `count` finite numbers."""
    try:
        found = np.array(rewards, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the reward function returned no numbers ({error}): expected one for each response"
        ) from error
    if found.shape != (count,):
        raise DataError(
            f"the reward function returned shape {found.shape} for {count} responses: expected a list with one number "
            "for each, in their order"
        )
    if wrong := np.flatnonzero(~np.isfinite(found)).tolist():
        raise DataError(
            f"the reward function returned {found[wrong[0]]} for response {wrong[0]} of {count} (and {len(wrong) - 1} "
            "more that are not finite): expected finite numbers; return a low one if a response cannot be judged"
        )
    return found


def gains_over_start(
    reward: RewardFunction, prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]
) -> np.ndarray:
    """Reward of our response minus that of the start's, f32 [prompts]."""
    if not prompts:
        return np.zeros(0, np.float32)
    mine, base = (checked(reward(prompts, x, theirs), len(prompts)) for x in (ours, theirs))
    return mine - base


def win_rate(gains: np.ndarray) -> float:
    """Share of prompts for which our response has the higher reward, ties as half."""
    return float((gains > TOLERANCE).mean() + 0.5 * (abs(gains) <= TOLERANCE).mean())
