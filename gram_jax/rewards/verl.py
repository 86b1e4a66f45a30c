"""A reward for verl: reward.custom_reward_function.path=pkg://gram_jax.rewards.verl and reward.num_workers=1.

Each of verl's reward workers loads a judge; requests of its threads are scored together. The judge and the form of the
reward come from the environment (rewards/environment.py).
"""

from collections.abc import Mapping
from typing import Any

from gram_jax.errors import DataError
from gram_jax.rewards.environment import rewards_from_environment

PROMPT_KEYS = ("prompt", "question", "raw_prompt")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """Reward of one response relative to its reference, as {"score": ...}.

    solution_str: the response. extra_info: has the prompt under "prompt", "question" or "raw_prompt", as text or
    messages. ground_truth: the reference response, or a list of them; if empty, those of the environment or a generated
    one. verl passes one sample at a time, so groups cannot be compared here, unlike in the server's /compare. Raises
    DataError if the prompt is missing.
    """
    info = extra_info or {}
    prompt = next((info[key] for key in PROMPT_KEYS if info.get(key) is not None), None)
    if prompt is None:
        raise DataError(
            f"data_source {data_source!r}: extra_info has no prompt under {', '.join(PROMPT_KEYS)}: found "
            f"{', '.join(map(str, info)) or 'nothing'}. Add it when the data is prepared"
        )
    rewards = rewards_from_environment()
    if rewards.form.compare_with != "reference":
        raise DataError(
            "verl scores one response at a time: GRAM_JAX_COMPARE_WITH must be reference"
        )
    (score,) = rewards.of([prompt], [solution_str], [ground_truth])
    return {"score": score}
