"""Advantages, divergences and clipped losses of policy gradients, as functions of arrays.

Shapes: G prompts, n responses to each, B = G n rows of T columns; mask f32 [B, T] is 1 for tokens of the response.
"""

import jax
import jax.numpy as jnp


def group_advantages(rewards: jax.Array, *, scale: bool = True) -> jax.Array:
    """GRPO (arXiv 2402.03300): rewards f32 [G, n] minus their group's mean, divided by its deviation if `scale`.

    Exactly 0 for a group of equal rewards, for which the mean's rounding error would be scaled up.

    >>> group_advantages(jnp.array([[1.0, 3.0]])).round(3).tolist()
    [[-1.0, 1.0]]
    """
    centred = _centred(rewards)
    return centred / (rewards.std(axis=1, keepdims=True) + 1e-6) if scale else centred


def leave_one_out_advantages(rewards: jax.Array) -> jax.Array:
    """RLOO (arXiv 2402.14740): each reward f32 [G, n] minus the mean of the group's others.

    >>> leave_one_out_advantages(jnp.array([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]
    """
    n = rewards.shape[1]
    return _centred(rewards) * n / (n - 1)


def _centred(rewards: jax.Array) -> jax.Array:
    """Rewards minus their group's mean, exactly 0 for a group of equal rewards."""
    equal = (rewards == rewards[:, :1]).all(axis=1, keepdims=True)
    return jnp.where(equal, 0.0, rewards - rewards.mean(axis=1, keepdims=True))


def generalized_advantages(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, gamma: float, gae_lambda: float
) -> tuple[jax.Array, jax.Array]:
    """GAE (arXiv 1506.02438): (advantages, returns), f32 [B, T], 0 outside of the response.

    rewards, values: f32 [B, T], of and before each response token; the value after the last one is 0.
    A_t = d_t + gamma * gae_lambda * A_(t+1), d_t = r_t + gamma * V_(t+1) - V_t; returns are advantages plus values.
    """

    def back(carry: tuple[jax.Array, jax.Array], column: tuple[jax.Array, ...]):
        advantage, following = carry
        reward, value, written = column
        error = reward + gamma * following - value
        advantage = jnp.where(written > 0, error + gamma * gae_lambda * advantage, advantage)
        return (advantage, jnp.where(written > 0, value, following)), advantage * written

    columns = tuple(x.T for x in (rewards, values, mask))
    zero = jnp.zeros(rewards.shape[0])
    _, found = jax.lax.scan(back, (zero, zero), columns, reverse=True)
    advantages = found.T
    return advantages, (advantages + values) * mask


def whiten(values: jax.Array, mask: jax.Array) -> jax.Array:
    """f32 [B, T] with mean 0 and deviation 1 over the response tokens."""
    count = jnp.maximum(mask.sum(), 1)
    centred = (values - (values * mask).sum() / count) * mask
    return centred / jnp.sqrt((centred**2).sum() / count + 1e-8)


def divergence_per_token(logprobs: jax.Array, reference: jax.Array, kind: str) -> jax.Array:
    """Estimates of KL(policy, reference) from tokens of the policy (Schulman 2020), same shape.

    "k1": log p - log r, unbiased; "k2": half its square, low variance; "k3": r/p - 1 - log(r/p), unbiased and never
    negative.
    """
    log_ratio = logprobs - reference
    if kind == "k1":
        return log_ratio
    return 0.5 * log_ratio**2 if kind == "k2" else jnp.exp(-log_ratio) - 1 + log_ratio


def adapted_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """The divergence's weight in the next step (arXiv 1909.08593, section 2.2), changed by at most 2 %.

    kl: the mean divergence of a response in this step.

    >>> adapted_kl_coef(0.1, kl=12.0, target=6.0), round(adapted_kl_coef(0.1, kl=5.4, target=6.0), 6)
    (0.10200000000000001, 0.099)
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + 0.1 * error)
