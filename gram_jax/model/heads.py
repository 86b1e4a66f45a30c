"""Logits of the two verdict labels, or a scalar reward, from hidden states (model/decoder.py)."""

import jax
import jax.numpy as jnp

from gram_jax.errors import LayoutError
from gram_jax.model.attention.masked import soft_cap
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import SCORE
from gram_jax.tree import Tree


def unembedding(params: Tree, cfg: ModelConfig) -> jax.Array:
    """The head, [V, D]: the embedding table itself if the two are tied. Raises LayoutError for a classifier."""
    if cfg.head != "language":
        raise LayoutError(
            f"this model's head is {cfg.head!r}: it gives labels or rewards and has no logits of the vocabulary, which "
            "stage pretrain and generation need. Use the language model that it was made from"
        )
    return params["embed"] if cfg.tied_head else params["head"]


def linear_head(params: Tree, cfg: ModelConfig) -> jax.Array:
    """`unembedding`, if its products are the logits. Raises LayoutError for a model with a soft cap of logits."""
    if cfg.traits.logit_softcap is not None:
        raise LayoutError(
            f"the logits of this model have a soft cap (final_logit_softcapping = {cfg.traits.logit_softcap:g}), which "
            "stage pretrain and reinforcement learning do not compute: stages finetune and bradley_terry, scoring and "
            "generation do"
        )
    return unembedding(params, cfg)


def label_logits(
    params: Tree, cfg: ModelConfig, hidden: jax.Array, label_ids: tuple[int, int]
) -> jax.Array:
    """Next-token logits of the two verdict labels, f32 [B, M, Y], for hidden states [B, M, D].

    The hidden states are gathered before (`hidden_at`), because XLA does not remove a product with the whole vocabulary
    of which two columns are used. The product is f32, because bf16 logits make false ties.
    """
    rows = label_rows(params, cfg, label_ids).astype(jnp.float32)
    logits = jnp.einsum("bmd,yd->bmy", hidden.astype(jnp.float32), rows, precision="highest")
    return soft_cap(logits, cfg.traits.logit_softcap)


def label_rows(params: Tree, cfg: ModelConfig, label_ids: tuple[int, int]) -> jax.Array:
    """The two rows of the head that give the logits of the labels, [Y, D]; a margin is the logit of the first."""
    if cfg.head == "language":
        return unembedding(params, cfg)[jnp.array(label_ids)]
    if cfg.head == "scalar":
        raise LayoutError("a scalar reward model has no labels: a ScalarRewardModel reads it")
    rows = params[SCORE]
    return rows if cfg.head == "labels" else jnp.concatenate([rows, jnp.zeros_like(rows)])


def scalar_reward(params: Tree, hidden: jax.Array) -> jax.Array:
    """Reward of the discriminative baseline: hidden [..., D] times its head [1, D], f32 [...]."""
    head = params[SCORE][0].astype(jnp.float32)
    return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), head, precision="highest")


def hidden_at(hidden: jax.Array, columns: jax.Array) -> jax.Array:
    """Rows of hidden [B, T, D] at the columns i32 [B, M]: [B, M, D]."""
    return jnp.take_along_axis(hidden, columns[..., None], axis=1)
