"""The objectives of stages 1 and 2 and of the discriminative baseline.

An objective is a function (params, batch) -> (loss, metrics). The loss is a sum and every metric a pair (sum, count),
so that micro-batches and devices add up and are divided once. metrics["loss"] is (the loss, the sum of weights).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.batch import BradleyTerryBatch, RationaleBatch, TokenBatch, VerdictBatch
from gram_jax.losses import (
    label_margin,
    next_token_nll,
    order_divergence,
    ranking_nll,
    smoothed_verdict_nll,
)
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states_and_load
from gram_jax.model.execution import Execution
from gram_jax.model.experts import ExpertLoad, balance_loss, max_load
from gram_jax.model.heads import hidden_at, label_logits, linear_head, scalar_reward
from gram_jax.tree import Tree

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[Tree, Any], tuple[jax.Array, Metrics]]


def pretrain_objective(cfg: ModelConfig, execution: Execution, *, chunk_size: int) -> Objective:
    """Stage 1: next-token loss of both responses given the prompt. chunk_size: maximum rows of logits in memory."""

    def objective(params: Tree, batch: TokenBatch) -> tuple[jax.Array, Metrics]:
        hidden, experts = hidden_states_and_load(params, cfg, batch.seqs, execution)
        head = linear_head(params, cfg)
        loss, count = next_token_nll(
            hidden,
            head,
            batch.targets,
            batch.weights,
            chunk_size=chunk_size,
            placement=execution.placement,
        )
        return _with_balance(cfg, experts, loss, {"loss": (loss, count)})

    return objective


def verdict_objective(
    cfg: ModelConfig, execution: Execution, *, label_ids: tuple[int, int], smoothing: float
) -> Objective:
    """Stage 2: cross-entropy over the two verdict labels, with label smoothing.

    Metrics: accuracy (the right label's logit is strictly larger), margin (its logit minus the other's), p_first (the
    probability of the response shown first; its mean is 0.5 without position bias).
    """

    def objective(params: Tree, batch: VerdictBatch) -> tuple[jax.Array, Metrics]:
        hidden, experts = hidden_states_and_load(params, cfg, batch.seqs, execution)
        logits = label_logits(params, cfg, hidden_at(hidden, batch.verdict_at), label_ids)
        margin = label_margin(logits, batch.label)
        metrics = _weighted(
            batch.weights,
            loss=smoothed_verdict_nll(logits, batch.label, smoothing),
            accuracy=margin > 0,
            margin=margin,
            p_first=jax.nn.sigmoid(logits[..., 0] - logits[..., 1]),
        )
        return _with_balance(cfg, experts, metrics["loss"][0], metrics)

    return objective


def consistent_verdict_objective(
    cfg: ModelConfig,
    execution: Execution,
    *,
    label_ids: tuple[int, int],
    smoothing: float,
    consistency: float,
) -> Objective:
    """Stage 2 on labeled and unlabeled pairs: the verdict loss, plus `consistency` x the divergence of both orders.

    Both orders of a pair are in adjacent slots of a row. A pair with the label -1 has no verdict loss. The loss is
    divided by the weights of all documents, labeled or not. Metrics: those of `verdict_objective`, verdict_loss of
    the labeled pairs, and order_divergence of all pairs (losses.order_divergence).
    """

    def objective(params: Tree, batch: VerdictBatch) -> tuple[jax.Array, Metrics]:
        hidden, experts = hidden_states_and_load(params, cfg, batch.seqs, execution)
        logits = label_logits(params, cfg, hidden_at(hidden, batch.verdict_at), label_ids)
        margin = label_margin(logits, batch.label)
        logit_diff = logits[..., 0] - logits[..., 1]
        metrics = _weighted(
            jnp.where(batch.label >= 0, batch.weights, 0.0),
            verdict_loss=smoothed_verdict_nll(logits, batch.label, smoothing),
            accuracy=margin > 0,
            margin=margin,
        )
        metrics |= _weighted(batch.weights, p_first=jax.nn.sigmoid(logit_diff))
        as_given, swapped = logit_diff[..., ::2], logit_diff[..., 1::2]
        divergence = order_divergence(as_given, swapped)
        metrics |= _weighted(batch.weights[..., ::2], order_divergence=divergence)
        # A pair is two documents, so its divergence counts twice.
        total = metrics["verdict_loss"][0] + 2 * consistency * metrics["order_divergence"][0]
        metrics |= {"loss": (total, metrics["p_first"][1])}
        return _with_balance(cfg, experts, total, metrics)

    return objective


def rationale_objective(
    cfg: ModelConfig,
    execution: Execution,
    *,
    label_ids: tuple[int, int],
    smoothing: float,
    verdict_weight: float,
    rationale_weight: float,
    chunk_size: int,
) -> Objective:
    """Stage 2 with rationales: verdict_weight times the verdict's loss plus rationale_weight times the rationale's.

    The loss of a rationale is the mean over its tokens, so that each document counts once. Logits of the vocabulary are
    computed for these tokens only, at most `chunk_size` of them at a time. Metrics: those of `verdict_objective`;
    verdict_nll and rationale_nll, the two parts.
    """
    shards = execution.placement.mesh.shape["sequence"]

    def objective(params: Tree, batch: RationaleBatch) -> tuple[jax.Array, Metrics]:
        hidden, experts = hidden_states_and_load(params, cfg, batch.seqs, execution)
        at, targets, weights = (
            jnp.pad(x, ((0, 0), (0, -x.shape[1] % shards)))
            for x in (batch.target_at, batch.targets, batch.target_weights)
        )
        written, tokens = next_token_nll(
            hidden_at(hidden, at),
            linear_head(params, cfg),
            targets,
            weights,
            chunk_size=chunk_size,
            placement=execution.placement,
        )
        logits = label_logits(params, cfg, hidden_at(hidden, batch.verdict_at), label_ids)
        margin = label_margin(logits, batch.label)
        metrics = _weighted(
            batch.weights,
            verdict_nll=smoothed_verdict_nll(logits, batch.label, smoothing),
            accuracy=margin > 0,
            margin=margin,
            p_first=jax.nn.sigmoid(logits[..., 0] - logits[..., 1]),
        )
        verdicts, count = metrics["verdict_nll"]
        loss = verdict_weight * verdicts + rationale_weight * written
        metrics |= {"loss": (loss, count), "rationale_nll": (written, tokens)}
        return _with_balance(cfg, experts, loss, metrics)

    return objective


def bradley_terry_objective(cfg: ModelConfig, execution: Execution) -> Objective:
    """Discriminative baseline: Bradley-Terry loss of `scalar_reward` at each document's last column."""

    def objective(params: Tree, batch: BradleyTerryBatch) -> tuple[jax.Array, Metrics]:
        hidden, experts = hidden_states_and_load(params, cfg, batch.seqs, execution)
        chosen = scalar_reward(params, hidden_at(hidden, batch.chosen_at))
        rejected = scalar_reward(params, hidden_at(hidden, batch.rejected_at))
        metrics = _weighted(
            batch.weights,
            loss=ranking_nll(chosen, rejected),
            accuracy=chosen > rejected,
            margin=chosen - rejected,
            mean_reward=(chosen + rejected) / 2,
        )
        return _with_balance(cfg, experts, metrics["loss"][0], metrics)

    return objective


def _with_balance(
    cfg: ModelConfig, experts: ExpertLoad | None, loss: jax.Array, metrics: Metrics
) -> tuple[jax.Array, Metrics]:
    """The loss with the load-balancing loss of a mixture of experts, and the metrics with its load.

    Metrics: balance_loss and max_load (model/experts.py), of each micro-batch. In the loss, balance_loss has the factor
    of the model's config and the weight of the micro-batch. metrics["loss"] stays the objective's own.
    """
    if cfg.experts is None or experts is None:
        return loss, metrics
    one, balance = jnp.float32(1), balance_loss(experts)
    metrics |= {"balance_loss": (balance, one), "max_load": (max_load(experts), one)}
    return loss + cfg.experts.balance * balance * metrics["loss"][1], metrics


def _weighted(weights: jax.Array, **values: jax.Array) -> Metrics:
    """(weighted sum, sum of weights) of every value; slots of weight 0 are ignored."""
    weights = weights.astype(jnp.float32)
    count = weights.sum()
    return {
        name: (jnp.sum(jnp.where(weights != 0, weights * value, 0.0)), count)
        for name, value in values.items()
    }
