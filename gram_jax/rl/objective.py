"""The loss of a policy update, and what it needs of the model: log-probabilities, entropies, values."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gram_jax.batch import Sequences
from gram_jax.losses import join_pieces, time_pieces
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import linear_head
from gram_jax.model.matmul import dot
from gram_jax.recipes.rl import AlgorithmConfig
from gram_jax.rl.advantages import divergence_per_token
from gram_jax.training.objectives import Metrics
from gram_jax.tree import Tree

VALUE = "value"  # the head of PPO's critic: f32 [D], on the policy's own hidden states


class RolloutBatch(NamedTuple):
    """Prompts with their responses, B rows of T columns, left-aligned.

    targets: i32 [B, T], the next token; mask: f32 [B, T], 1 if it is of the response. old, reference: f32 [B, T], its
    log-probability under the policy that sampled it and under the start. advantages, values, returns: f32 [B, T]; the
    last two are 0 without a critic.
    """

    seqs: Sequences
    targets: jax.Array
    mask: jax.Array
    old: jax.Array
    reference: jax.Array
    advantages: jax.Array
    values: jax.Array
    returns: jax.Array


class TokenStats(NamedTuple):
    """logprobs: f32 [B, T] of the targets; entropy: f32 [B, T] of their distributions; values: f32 [B, T]."""

    logprobs: jax.Array
    entropy: jax.Array
    values: jax.Array


def token_stats(
    params: Tree,
    seqs: Sequences,
    targets: jax.Array,
    *,
    cfg: ModelConfig,
    execution: Execution,
    temperature: float,
    chunk_size: int,
) -> TokenStats:
    """TokenStats of every column. chunk_size: maximum number of rows of logits in memory."""
    hidden = hidden_states(params, cfg, seqs, execution)
    table = linear_head(params, cfg).astype(execution.compute_dtype)

    @jax.checkpoint
    def one(piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h, target = piece
        logits = jax.nn.log_softmax(dot("btd,vd->btv", h, table) / temperature, axis=-1)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return chosen, -(jnp.exp(logits) * logits).sum(-1)

    found = jax.lax.map(one, time_pieces(chunk_size, hidden, targets))
    logprobs, entropy = (join_pieces(x, targets.shape[1]) for x in found)
    values = jnp.zeros_like(logprobs)
    if VALUE in params:
        head = params[VALUE].astype(jnp.float32)
        values = jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), head, precision="highest")
    return TokenStats(logprobs, entropy, values)


def rollout_objective(
    cfg: ModelConfig,
    execution: Execution,
    *,
    temperature: float,
    chunk_size: int,
    algorithm: AlgorithmConfig,
) -> Callable[[Tree, RolloutBatch], tuple[jax.Array, Metrics]]:
    """The loss of a batch, a sum over response tokens, and metrics as (sum, count).

    The k3 divergence from the reference is part of GRPO's loss only; PPO and RLOO have it in the rewards.
    """
    kl_coef = algorithm.kl_coef if algorithm.kind == "grpo" else 0.0

    def objective(params: Tree, batch: RolloutBatch) -> tuple[jax.Array, Metrics]:
        seen = token_stats(
            params,
            batch.seqs,
            batch.targets,
            cfg=cfg,
            execution=execution,
            temperature=temperature,
            chunk_size=chunk_size,
        )
        mask, count = batch.mask, batch.mask.sum()
        # Columns outside of the response have a ratio of 1.
        logprobs = jnp.where(mask > 0, seen.logprobs, batch.old)
        policy = policy_loss(logprobs, batch.old, batch.advantages, algorithm.clip_range)
        reference = jnp.where(mask > 0, batch.reference, batch.old)
        kl = divergence_per_token(logprobs, reference, "k3")
        loss = policy.loss + kl_coef * kl - algorithm.ent_coef * seen.entropy
        parts = {
            "policy_loss": policy.loss,
            "clipped": policy.clipped,
            "kl_in_loss": kl,
        }
        if VALUE in params:
            errors = value_loss(seen.values, batch.values, batch.returns, algorithm.clip_range_vf)
            loss = loss + algorithm.vf_coef * errors
            parts["value_loss"] = errors
        total = (loss * mask).sum()
        metrics = {name: ((part * mask).sum(), count) for name, part in parts.items()}
        return total, metrics | {"loss": (total, count)}

    return objective


class Clipped(NamedTuple):
    """loss: f32, same shape as the inputs; clipped: 1 if the bound is active."""

    loss: jax.Array
    clipped: jax.Array


def policy_loss(logprobs: jax.Array, old: jax.Array, advantages: jax.Array, clip: float) -> Clipped:
    """PPO's (arXiv 1707.06347, eq. 7) for each token: -min(r A, clip(r, 1 - clip, 1 + clip) A), r = p / p_old."""
    ratio = jnp.exp(logprobs - old)
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    plain, clipped = -ratio * advantages, -bounded * advantages
    return Clipped(jnp.maximum(plain, clipped), (clipped > plain).astype(jnp.float32))


def value_loss(values: jax.Array, old: jax.Array, returns: jax.Array, clip: float) -> jax.Array:
    """Half the larger squared error of the value and of the value clipped to within `clip` of the old one."""
    clipped = old + jnp.clip(values - old, -clip, clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)
