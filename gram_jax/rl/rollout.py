"""The training batch of a step, from responses and their rewards: rows, divergences, advantages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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
from gram_jax.training.objectives import Metrics

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
    """The training batch, on the devices of `place`, and its metrics.

    prompts: tokens of every prompt. samples: B responses, those to one prompt in a row. rewards: f32 [B]. width: number
    of columns, enough for every prompt with its response. policy, reference: of the sampling and of the frozen model.
    All processes of a job hold all samples and rewards; each computes its part of the rows.
    """
    group = len(rewards) // len(prompts)
    rows = _rows([tokens for tokens in prompts for _ in range(group)], samples, width)
    rows = jax.tree.map(lambda x: place.put(x, "batch"), rows)
    batch, sums = _assemble(
        rows,
        policy(rows.seqs, rows.targets),
        reference(rows.seqs, rows.targets),
        rewards,
        algorithm.kl_coef,
        kind=algorithm.kind,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
        group=group,
        place=place,
    )
    figures = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "min_reward": float(rewards.min()),
        "max_reward": float(rewards.max()),
        "length": float(samples.lengths.mean()),
        "stopped": float(samples.stopped.mean()),
        "num_tokens": float(samples.lengths.sum()),
    }
    means = {name: float(total) / float(n) for name, (total, n) in jax.device_get(sums).items()}
    return batch, figures | means


class _Rows(NamedTuple):
    """targets: i32 [B, T]; mask: f32 [B, T]; last: i32 [B], the column of the last response token."""

    seqs: Sequences
    targets: Array
    mask: Array
    last: Array


_STATIC = ("kind", "gamma", "gae_lambda", "group", "place")


@partial(jax.jit, static_argnames=_STATIC)
def _assemble(
    rows: _Rows,
    now: TokenStats,
    before: TokenStats,
    rewards: jax.Array,
    kl_coef: jax.Array,
    *,
    kind: str,
    gamma: float,
    gae_lambda: float,
    group: int,
    place: Placement,
) -> tuple[RolloutBatch, Metrics]:
    """The batch, sharded over its rows, and (sum, count) of its metrics.

    now, before: of the policy and of the reference. rewards: f32 [B]. group: number of responses to a prompt.
    """
    mask = rows.mask
    old, start, values = (x * mask for x in (now.logprobs, before.logprobs, now.values))
    kl = divergence_per_token(old, start, "k1") * mask
    returns = jnp.zeros_like(mask)
    if kind == "ppo":
        earned = -kl_coef * kl
        earned = earned.at[jnp.arange(len(rewards)), rows.last].add(rewards)
        advantages, returns = generalized_advantages(
            earned, values, mask, gamma=gamma, gae_lambda=gae_lambda
        )
        advantages = whiten(advantages, mask)
    elif kind == "rloo":
        whole = rewards - kl_coef * kl.sum(1)
        advantages = leave_one_out_advantages(whole.reshape(-1, group)).reshape(-1, 1) * mask
    else:
        advantages = group_advantages(rewards.reshape(-1, group)).reshape(-1, 1) * mask
    sums = {
        "kl": (kl.sum(), jnp.float32(len(rewards))),
        "entropy": ((now.entropy * mask).sum(), mask.sum()),
    }
    found = (old, start, advantages, values, returns)
    spread = (place.constrain(x, "batch", None) for x in found)
    batch = RolloutBatch(rows.seqs, rows.targets, mask, *spread)
    return batch, jax.tree.map(place.constrain, sums)


def _rows(prompts: Sequence[np.ndarray], samples: Samples, width: int) -> _Rows:
    """The rows of the prompts with their responses, as numpy arrays."""
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
    return _Rows(Sequences(tokens, positions, segments), targets, mask, last)
