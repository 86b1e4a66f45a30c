"""The decoder: tokens in, hidden states out. Pre-norm, rotary, grouped-query attention, SwiGLU.

It stops at hidden states. Who wants the whole vocabulary multiplies in chunks (losses.py); who
wants a verdict multiplies by two rows of the head (`label_logits`).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.model.attention import KEPT, attention
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.lora import CONTRACTED
from gram_jax.model.matmul import product
from gram_jax.model.rope import Rotation, rotate, rotation
from gram_jax.model.specs import param_specs
from gram_jax.tree import Tree


def hidden_states(
    params: Tree, cfg: ModelConfig, seqs: Sequences, execution: Execution
) -> jax.Array:
    """Final-normed residual stream of every position, [B, T, D] in the compute type."""
    place = execution.placement.constrain
    x = place(look_up(params["embed"], seqs.tokens, execution), "batch", "time", "act_embed")
    turn = rotation(seqs.positions, cfg)

    def step(x: jax.Array, weights: Tree) -> tuple[jax.Array, None]:
        return _layer(x, weights, cfg, turn, seqs.segments, execution), None

    x, _ = jax.lax.scan(_remember(step, execution), x, params["layers"])
    return rms_norm(x, params["final_norm"], cfg.norm_eps)


def look_up(table: jax.Array, tokens: jax.Array, execution: Execution) -> jax.Array:
    """Rows of the table [V, D] for tokens [B, T]: [B, T, D] in the compute type.

    The table is stored cut along V. Looked up so, every device finds rows for the whole batch, and
    the backward pass gathers f32 [B, T, D] on each of them: 34 GB for 2 million tokens of an 8B
    model. Cut along D instead, a device finds its columns, and what travels is its own share.
    """
    place = execution.placement.constrain
    # In two steps, each of which is one collective; in one, XLA first makes the table whole.
    table = place(place(table, "lookup_vocab", "embed"), None, "embed")
    tokens = place(tokens, "lookup_rows", "time")
    found = place(jnp.take(table, tokens, axis=0), "lookup_rows", "time", "embed")
    return found.astype(execution.compute)


def unembedding(params: Tree, cfg: ModelConfig) -> jax.Array:
    """The head, [V, D]: the embedding table itself where the two are tied."""
    return params["embed"] if cfg.tied_head else params["head"]


def label_logits(
    params: Tree,
    cfg: ModelConfig,
    seqs: Sequences,
    verdict_at: jax.Array,
    label_ids: tuple[int, int],
    execution: Execution,
) -> jax.Array:
    """Next-token logits of the two verdict labels at the verdict columns, f32 [B, M, Y].

    verdict_at: i32 [B, M]. The hidden states are gathered first: XLA does not by itself remove a
    product with the whole vocabulary of which two columns are read. The product is f32, as bf16
    logits make false ties.
    """
    hidden = hidden_at(hidden_states(params, cfg, seqs, execution), verdict_at)
    return read_labels(hidden, params, cfg, label_ids)


def read_labels(
    hidden: jax.Array, params: Tree, cfg: ModelConfig, label_ids: tuple[int, int]
) -> jax.Array:
    """Logits of the two labels for final hidden states [B, M, D], f32 [B, M, Y]."""
    rows = unembedding(params, cfg)[jnp.array(label_ids)].astype(jnp.float32)
    return jnp.einsum("bmd,yd->bmy", hidden.astype(jnp.float32), rows, precision="highest")


def scalar_reward(params: Tree, hidden: jax.Array) -> jax.Array:
    """The discriminative head: hidden [..., D] times params["score"] [D], f32 [...]."""
    score = params["score"].astype(jnp.float32)
    return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), score, precision="highest")


def hidden_at(hidden: jax.Array, columns: jax.Array) -> jax.Array:
    """Rows of hidden [B, T, D] at the columns i32 [B, M]: [B, M, D]."""
    return jnp.take_along_axis(hidden, columns[..., None], axis=1)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight, along the last axis, in f32 (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype)


def _layer(
    x: jax.Array,
    weights: Tree,
    cfg: ModelConfig,
    turn: Rotation,
    segments: jax.Array,
    execution: Execution,
) -> jax.Array:
    """One layer: attention, then MLP, each added to the residual stream x [B, T, D]."""
    w = at_use(weights, cfg, execution)
    h = rms_norm(x, w["attention_norm"], cfg.norm_eps)
    q = heads(h, w, "q", cfg, turn, execution)
    k = heads(h, w, "k", cfg, turn, execution)
    v = heads(h, w, "v", cfg, turn, execution)
    return finish_layer(x, attention(q, k, v, segments, execution), w, cfg, execution)


def heads(
    h: jax.Array,
    w: Tree,
    name: Literal["q", "k", "v"],
    cfg: ModelConfig,
    turn: Rotation,
    execution: Execution,
) -> jax.Array:
    """Queries, keys or values of the normed h [B, T, D]: [B, T, N or K, H], normed and turned as the family does."""
    x = _project(h, w, name)
    if name != "v":
        if cfg.qk_norm:
            x = rms_norm(x, w[f"{name}_norm"], cfg.norm_eps)
        x = rotate(x, turn)
    axis = "act_heads" if name == "q" else "act_kv_heads"
    return execution.placement.constrain(x, "batch", "time", axis, "head_size")


def finish_layer(
    x: jax.Array, mixed: jax.Array, w: Tree, cfg: ModelConfig, execution: Execution
) -> jax.Array:
    """What follows on the attention's output `mixed` [B, T, N, H]: its projection, then the MLP."""
    place = execution.placement.constrain
    x = x + _project(mixed, w, "o")
    h = rms_norm(x, w["mlp_norm"], cfg.norm_eps)
    h = jax.nn.silu(_project(h, w, "gate")) * _project(h, w, "up")
    x = x + _project(place(h, "batch", "time", "act_mlp"), w, "down")
    return place(x, "batch", "time", "act_embed")


def _project(x: jax.Array, w: Tree, name: str) -> jax.Array:
    """x times the matrix `name`, plus its bias and its low-rank update where there are any."""
    y = product(x, w[name], CONTRACTED[name])
    if f"{name}_bias" in w:
        y = y + w[f"{name}_bias"]
    if name in w.get("lora", {}):
        thin = product(x, w["lora"][name]["a"], CONTRACTED[name])
        y = y + product(thin * w["lora_scale"].astype(x.dtype), w["lora"][name]["b"], 1)
    return y


def at_use(weights: Tree, cfg: ModelConfig, execution: Execution) -> Tree:
    """One layer's weights as it multiplies by them: in the compute type, whole along "embed".

    Casting here, inside the scan, keeps a single layer's copy alive; casting before the gather over
    fsdp halves what travels. Norms stay f32.
    """
    specs, scales = param_specs(cfg)["layers"], weights.get("scales", {})

    def ready(path: str, weight: jax.Array) -> jax.Array:
        if path.endswith("_norm") or path == "lora_scale" or path.startswith("scales/"):
            return weight
        if path in scales:
            weight = weight.astype(jnp.float32) * scales[path]  # int8 (model/quantize.py)
        weight = weight.astype(execution.compute)
        if path in specs:
            axes = (None if axis == "embed" else axis for axis in specs[path].axes[1:])
            weight = execution.placement.constrain(weight, *axes)
        return weight

    return tree.map_with_path(ready, weights)


def _remember(step: Callable, execution: Execution) -> Callable:
    """`step` with the choice of what its backward pass keeps and what it computes again."""
    policies = jax.checkpoint_policies
    policy = {
        "none": _keep_all_but_casts,
        "dots": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT)
        ),
        "full": policies.nothing_saveable,
    }[execution.remat]
    return jax.checkpoint(step, policy=policy, prevent_cse=False)


def _keep_all_but_casts(primitive: Any, *_: Any, **__: Any) -> bool:
    """Cast and gathered weights are made again: over all layers they would be a second model."""
    return primitive.name not in ("convert_element_type", "sharding_constraint")
