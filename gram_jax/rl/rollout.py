"""The training batch of a step, from responses and their rewards: rows, divergences, advantages."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.batch import Array, Sequences
from gram_jax.model.generate import Samples
from gram_jax.recipes.rl import AlgorithmConfig
from gram_jax.rl.advantages import (
    divergence_per_token,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    whiten,
)
from gram_jax.rl.objective import RolloutBatch, TokenStats
from gram_jax.sharding import Placement

TokenStatsFn = Callable[[Sequences, jax.Array], TokenStats]  # of (sequences, targets)


def make_rollout(
    algorithm: AlgorithmConfig,
    prompts: Sequence[np.ndarray],
    samples: Samples,
    rewards: np.ndarray,
    *,
    width: int,
    policy: TokenStatsFn,
    reference: TokenStatsFn,
    place: Placement,
) -> tuple[RolloutBatch, dict[str, float]]:
    """The training batch and its metrics.

    prompts: tokens of every prompt. samples: B responses, those to one prompt in a row. rewards: f32 [B]. width: number
    of columns, enough for every prompt with its response. policy, reference: of the sampling and of the frozen model.
    """
    group = len(rewards) // len(prompts)
    rows, targets, mask, last = _rows(
        [tokens for tokens in prompts for _ in range(group)], samples, width
    )
    seqs = Sequences(*(place.constrain(jnp.asarray(x), "batch", "time") for x in rows))
    now, before = policy(seqs, targets), reference(seqs, targets)
    old, start, values = (x * mask for x in (now.logprobs, before.logprobs, now.values))
    kl = divergence_per_token(old, start, "k1") * mask
    score, returns = jnp.asarray(rewards), jnp.zeros_like(mask)
    if algorithm.kind == "ppo":
        earned = -algorithm.kl_coef * kl
        earned = earned.at[jnp.arange(len(rewards)), last].add(score)
        advantages, returns = generalized_advantages(
            earned, values, mask, gamma=algorithm.gamma, gae_lambda=algorithm.gae_lambda
        )
        advantages = whiten(advantages, mask)
    elif algorithm.kind == "rloo":
        whole = score - algorithm.kl_coef * kl.sum(1)
        advantages = leave_one_out_advantages(whole.reshape(-1, group)).reshape(-1, 1) * mask
    else:
        advantages = group_advantages(score.reshape(-1, group)).reshape(-1, 1) * mask
    count = float(mask.sum())
    figures = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "min_reward": float(rewards.min()),
        "max_reward": float(rewards.max()),
        "kl": float(kl.sum(1).mean()),
        "entropy": float((now.entropy * mask).sum() / count),
        "length": float(samples.lengths.mean()),
        "stopped": float(samples.stopped.mean()),
        "num_tokens": count,
    }
    return RolloutBatch(seqs, targets, mask, old, start, advantages, values, returns), figures


def _rows(
    prompts: Sequence[np.ndarray], samples: Samples, width: int
) -> tuple[Sequences, Array, Array, Array]:
    """Sequences, targets i32 [B, T], mask f32 [B, T], and the column i32 [B] of the last response token."""
    count = len(prompts)
    tokens, targets = np.zeros((count, width), np.int32), np.zeros((count, width), np.int32)
    mask, segments = np.zeros((count, width), np.float32), np.zeros((count, width), np.int32)
    last = np.zeros(count, np.int32)
    for row, prompt in enumerate(prompts):
        length = int(samples.lengths[row])
        whole = np.concatenate([prompt, samples.tokens[row, :length]])
        tokens[row, : len(whole)] = whole
        targets[row, : len(whole) - 1] = whole[1:]
        mask[row, len(prompt) - 1 : len(whole) - 1] = 1
        segments[row, : len(whole)] = 1
        last[row] = len(whole) - 2
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    return Sequences(tokens, positions, segments), targets, mask, last
