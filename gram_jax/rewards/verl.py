"""A reward for verl: reward.custom_reward_function.path=pkg://gram_jax.rl.verl, and reward.num_workers=1.

Each of verl's reward workers loads a judge; what the threads of one ask at the same time is scored together. The judge
and the form of the reward come from the environment (rewards/environment.py).
"""

from collections.abc import Mapping
from typing import Any

from gram_jax.errors import DataError
from gram_jax.rewards.environment import rewards_from_environment

QUESTIONS = ("prompt", "question", "raw_prompt")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """The reward of one response against its reference: {"score": ...}.

    extra_info: has the prompt under "prompt", "question" or "raw_prompt", as text or messages. ground_truth: the
    reference response, or several; empty for the form's own or one that a policy writes. verl passes one sample at a
    time, so groups cannot be compared here: take the server's /compare for that. Raises DataError where the prompt is
    missing.
    """
    info = extra_info or {}
    prompt = next((info[name] for name in QUESTIONS if info.get(name) is not None), None)
    if prompt is None:
        raise DataError(
            f"data_source {data_source!r}: extra_info has no prompt under {', '.join(QUESTIONS)}: found "
            f"{', '.join(map(str, info)) or 'nothing'}. Put it there when the data is prepared"
        )
    rewards = rewards_from_environment()
    if rewards.form.against != "reference":
        raise DataError("verl asks for one response at a time: GRAM_JAX_AGAINST must be reference")
    (score,) = rewards.of([prompt], [solution_str], [ground_truth])
    return {"score": score}
