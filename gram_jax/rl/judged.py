"""What a step's responses are worth: the recipe's judge as a reward function, its answers checked, and win rates."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gram_jax.errors import DataError
from gram_jax.judge.messages import Prompt
from gram_jax.rewards.forms import PairScorer, RewardForm, Rewards

EVEN = 1e-6

# (prompts, responses, greedy responses or None) -> a reward for each
RewardFunction = Callable[[Sequence[Prompt], Sequence[str], Sequence[str] | None], Sequence[float]]


def judged_reward(
    judge: PairScorer, form: RewardForm, preferred: Mapping[Prompt, str] | None = None
) -> RewardFunction:
    """A judge's rewards in a form. A form against references takes the greedy responses, or else `preferred`."""
    rewards = Rewards(judge, form)

    def reward(
        prompts: Sequence[Prompt], texts: Sequence[str], greedy: Sequence[str] | None
    ) -> Sequence[float]:
        # In a list empty text is a reference too.
        references = None if greedy is None else [[text] for text in greedy]
        if references is None and preferred is not None:
            references = [[preferred[prompt]] for prompt in prompts]
        return rewards.of(prompts, texts, references)

    return reward


def checked(rewards: Sequence[float], count: int) -> np.ndarray:
    """f32 [count]. Raises DataError if a reward function gave another number of them, or none that is finite."""
    try:
        found = np.array(rewards, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the reward function gave something else than numbers ({error}): expected one for each response"
        ) from error
    if found.shape != (count,):
        raise DataError(
            f"the reward function gave an array of shape {found.shape} for {count} responses: expected a list with one "
            "number for each, in their order"
        )
    if wrong := np.flatnonzero(~np.isfinite(found)).tolist():
        raise DataError(
            f"the reward function gave {found[wrong[0]]} for response {wrong[0]} of {count} (and {len(wrong) - 1} "
            "more that are not finite): expected finite numbers; give a response that cannot be judged a low one"
        )
    return found


def against_the_start(
    reward: RewardFunction, prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]
) -> tuple[float, float]:
    """(share of prompts where ours earns more than the start's response, even ones half; mean reward beyond it)."""
    mine, base = (checked(reward(prompts, x, theirs), len(prompts)) for x in (ours, theirs))
    gap = mine - base
    won = (gap > EVEN).mean() + 0.5 * (abs(gap) <= EVEN).mean()
    return float(won), float(gap.mean())
