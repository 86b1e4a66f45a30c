"""The decoder: tokens in, hidden states out; heads.py computes logits and rewards from these."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.batch import Sequences
from gram_jax.model.attention import ATTENTION_OUTPUT, attention
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.experts import ExpertLoad, load
from gram_jax.model.layer import cast_and_gather, residual, rms_norm, routed_layer
from gram_jax.model.layer_types import layer_variants
from gram_jax.model.matmul import PRODUCT
from gram_jax.tree import Tree


def hidden_states(
    params: Tree, cfg: ModelConfig, seqs: Sequences, execution: Execution
) -> jax.Array:
    """Final-normed residual stream of every position, [B, T, D] in the compute type."""
    return hidden_states_and_load(params, cfg, seqs, execution)[0]


def hidden_states_and_load(
    params: Tree, cfg: ModelConfig, seqs: Sequences, execution: Execution
) -> tuple[jax.Array, ExpertLoad | None]:
    """`hidden_states`, and the load of a mixture's experts, None for other models."""
    x = residual(embed_tokens(params["embed"], seqs.tokens, cfg, execution), execution)
    softcap = cfg.traits.attention_softcap
    variants = layer_variants(cfg, seqs.positions, seqs.tokens.shape[1])

    def step(
        x: jax.Array, of_layer: tuple[Tree, jax.Array | None]
    ) -> tuple[jax.Array, ExpertLoad | None]:
        weights, number = of_layer
        rope, window = variants.of(number)

        def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
            return attention(
                q, k, v, seqs.segments, execution, window=window, softcap=softcap
            ), None

        w = cast_and_gather(weights, cfg, execution)
        x, _, routing = routed_layer(x, w, cfg, rope, execution, mix)
        return x, None if routing is None else load(routing, seqs.segments > 0)

    inputs = params["layers"], variants.numbers
    x, of_experts = jax.lax.scan(_with_remat(step, execution), x, inputs)
    return rms_norm(x, params["final_norm"], cfg), of_experts


def embed_tokens(
    table: jax.Array, tokens: jax.Array, cfg: ModelConfig, execution: Execution
) -> jax.Array:
    """Rows of the table [V, D] for tokens [B, T], scaled if the family does: [B, T, D] in the compute type.

    The table is stored sharded along V. A lookup in this layout gathers f32 [B, T, D] on every device in the backward
    pass: 34 GB for 2 million tokens of an 8B model. The lookup in a table sharded along D exchanges only shards.
    """
    place = execution.placement.constrain
    # Two steps of one collective each; in a single step XLA first gathers the whole table.
    table = place(place(table, "lookup_vocab", "embed"), None, "embed")
    time = execution.placement.residual_time(tokens.shape[1])
    tokens = place(tokens, "lookup_rows", time)
    found = place(jnp.take(table, tokens, axis=0), "lookup_rows", time, "embed")
    found = found.astype(execution.compute_dtype)
    if cfg.traits.embed_scale is None:
        return found
    return found * jnp.asarray(cfg.traits.embed_scale, found.dtype)


def _with_remat(step: Callable, execution: Execution) -> Callable:
    """`step` with the policy of what its backward pass keeps and what it recomputes."""
    policies = jax.checkpoint_policies
    policy = {
        "none": _keep_all_but_casts,
        "dots": policies.save_only_these_names(PRODUCT, ATTENTION_OUTPUT),
        "attention": policies.save_only_these_names(ATTENTION_OUTPUT),
        "full": policies.nothing_saveable,
    }[execution.remat]
    return jax.checkpoint(step, policy=policy, prevent_cse=False)


def _keep_all_but_casts(primitive: Any, *_: Any, **__: Any) -> bool:
    """Recomputes cast and gathered weights, which over all layers are as large as the model."""
    return primitive.name not in ("convert_element_type", "sharding_constraint")
