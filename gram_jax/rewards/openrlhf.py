"""A reward file for OpenRLHF: --reward.remote_url .../gram_jax/rewards/openrlhf.py.

The judge and the form of the reward come from the environment (rewards/environment.py).
"""

from collections.abc import Sequence
from typing import Any

from gram_jax.errors import DataError
from gram_jax.judge.messages import Prompt
from gram_jax.rewards.columns import NAME
from gram_jax.rewards.environment import rewards_from_environment
from gram_jax.rewards.forms import Rewards
from gram_jax.rewards.messages import split_query


def _pair(at: int, query: str, prompt: str, rewards: Rewards) -> tuple[Prompt, str]:
    try:
        return split_query(query, prompt, rewards.notes, rewards.ends)
    except DataError as error:
        raise DataError(f"query {at}: {error}") from None


def reward_func(
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[str] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Rewards of queries (prompt and response) as {"rewards", "scores", "extra_logs"}, f32 [n] tensors.

    queries: prompts with responses. labels: the references, if the form compares with references; for an empty label,
    those of the environment or a generated one. A response is the query without its prompt and without the policy's end
    tokens. Raises DataError if the prompt is not found in the query.
    """
    import torch  # pyright: ignore[reportMissingImports]  (the trainer brings it)

    rewards = rewards_from_environment()
    pairs = [
        _pair(at, query, prompt, rewards)
        for at, (query, prompt) in enumerate(zip(queries, prompts, strict=True))
    ]
    references = labels if rewards.form.compare_with == "reference" else None
    found = rewards.of([prompt for prompt, _ in pairs], [text for _, text in pairs], references)
    values = torch.tensor(found, dtype=torch.float32)
    scores = torch.tensor(rewards.form.to_unit_interval(found), dtype=torch.float32)
    return {"rewards": values, "scores": scores, "extra_logs": {NAME: values}}
