"""Text from a model, a token at a time: one pass over the prompts, then a loop over a cache of keys and values.

Rows of a batch are right-aligned prompts, so that every row's next token stands in the same column. The noise of a row
follows from its own key: what is sampled for it does not depend on what is sampled beside it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.batch import Array, Sequences
from gram_jax.errors import DataError
from gram_jax.model.attention import attention
from gram_jax.model.attention.scores import dot
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import (
    at_use,
    finish_layer,
    heads,
    look_up,
    rms_norm,
    unembedding,
)
from gram_jax.model.execution import Execution
from gram_jax.model.rope import rotation
from gram_jax.tree import Tree

BUCKET = 64  # prompts are padded to a multiple of it: one program for each
MASKED = -1e30


class Samples(NamedTuple):
    """What was written for R prompts, at most N tokens each.

    tokens: i32 [R, N], 0 behind the end. logprobs: f32 [R, N], log-probability of each under the model at the sampling
    temperature (1 for greedy), before top_p; 0 behind the end. lengths: i32 [R], the stop token counted. stopped: bool
    [R], whether it ended by one.
    """

    tokens: Array
    logprobs: Array
    lengths: Array
    stopped: Array


def sample(
    params: Tree,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int] | np.ndarray],
    execution: Execution,
    *,
    new: int,
    stops: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows: int = 32,
) -> Samples:
    """Continue every prompt by at most `new` tokens, up to and with a stop token.

    prompts: token ids. temperature 0 takes the likeliest token; top_p keeps the likeliest ones that together have that
    probability. seed: of the noise; row r of the prompts has its own, whatever the batches. rows: worked on at a time,
    made a multiple of the mesh's batch shards. The pass over the prompts takes the best attention that tells their
    padding apart, whatever the execution names. Raises DataError for an empty prompt, and for one that leaves no room
    in the model's context.
    """
    _check(cfg, prompts, new, temperature, top_p)
    # Padding stands before the prompts: rows do not begin with their only document, as packed = False would promise.
    execution = replace(execution, attention="auto", packed=True)
    shards = execution.placement.batch_shards
    rows = -(-min(rows, max(1, len(prompts))) // shards) * shards
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    found = Samples(
        np.zeros((len(prompts), new), np.int32),
        np.zeros((len(prompts), new), np.float32),
        np.zeros(len(prompts), np.int32),
        np.zeros(len(prompts), bool),
    )
    ends = tuple(sorted(set(stops)))
    for begin in range(0, len(prompts), rows):
        members = order[begin : begin + rows]
        filled = np.pad(members, (0, rows - len(members)), mode="edge")
        tokens, starts = _aligned([prompts[at] for at in filled])
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(filled))
        answer = _generate(
            params,
            cfg,
            tokens,
            starts,
            keys,
            jnp.float32(temperature),
            jnp.float32(top_p),
            execution=execution,
            new=new,
            stops=ends,
            greedy=temperature == 0,
            truncated=top_p < 1,
        )
        for whole, part in zip(found, jax.device_get(answer), strict=True):
            whole[members] = part[: len(members)]
    return found


def _check(
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int] | np.ndarray],
    new: int,
    temperature: float,
    top_p: float,
) -> None:
    if new < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise DataError(
            f"new = {new}, temperature = {temperature}, top_p = {top_p}: expected at least one token, a temperature "
            "of 0 or more, and top_p above 0 and up to 1"
        )
    if any(len(prompt) == 0 for prompt in prompts):
        raise DataError("a prompt without a token has nothing to be continued")
    longest = max(map(len, prompts), default=0)
    if longest + new > cfg.context_length:
        raise DataError(
            f"a prompt of {longest} tokens and {new} new ones do not fit the {cfg.context_length} positions that the "
            "model was made for: shorten the prompts or ask for less"
        )


def _aligned(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """tokens i32 [B, P], prompts at the right end; starts i32 [B], the column in which each begins."""
    width = -(-max(map(len, prompts)) // BUCKET) * BUCKET
    tokens = np.zeros((len(prompts), width), np.int32)
    starts = np.array([width - len(prompt) for prompt in prompts], np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, starts[row] :] = prompt
    return tokens, starts


class _Cache(NamedTuple):
    """keys, values: [L, B, P + N, K, H] in the compute type."""

    keys: jax.Array
    values: jax.Array


class _State(NamedTuple):
    at: jax.Array  # i32, tokens written
    cache: _Cache
    logits: jax.Array  # f32 [B, V], of the next token
    tokens: jax.Array  # i32 [B, N]
    logprobs: jax.Array  # f32 [B, N]
    lengths: jax.Array  # i32 [B]
    done: jax.Array  # bool [B]


@partial(jax.jit, static_argnames=("cfg", "execution", "new", "stops", "greedy", "truncated"))
def _generate(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    starts: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    execution: Execution,
    new: int,
    stops: tuple[int, ...],
    greedy: bool,
    truncated: bool,
) -> Samples:
    """tokens: i32 [B, P]; starts: i32 [B]; keys: [B]. Ends as soon as every row has stopped."""
    rows, width = tokens.shape
    cache, logits = _prefill(params, cfg, tokens, starts, new, execution)

    def step(state: _State) -> _State:
        noise = jax.vmap(partial(jax.random.fold_in, data=state.at))(keys)
        chosen, logprob = _choose(
            state.logits, noise, temperature, top_p, greedy=greedy, truncated=truncated
        )
        chosen = jnp.where(state.done, 0, chosen)
        stopping = jnp.isin(chosen, jnp.array(stops, jnp.int32)) if stops else jnp.zeros(rows, bool)
        column = width + state.at
        cache, logits = _advance(
            params, cfg, chosen, column - starts, column, starts, state.cache, execution
        )
        return _State(
            state.at + 1,
            cache,
            logits,
            state.tokens.at[:, state.at].set(chosen),
            state.logprobs.at[:, state.at].set(jnp.where(state.done, 0.0, logprob)),
            state.lengths + ~state.done,
            state.done | stopping,
        )

    first = _State(
        jnp.int32(0),
        cache,
        logits,
        jnp.zeros((rows, new), jnp.int32),
        jnp.zeros((rows, new), jnp.float32),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, bool),
    )
    last = jax.lax.while_loop(lambda s: (s.at < new) & ~s.done.all(), step, first)
    return Samples(last.tokens, last.logprobs, last.lengths, last.done)


def _prefill(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    starts: jax.Array,
    new: int,
    execution: Execution,
) -> tuple[_Cache, jax.Array]:
    """The cache of the prompts, with room for `new` more columns, and the logits of the first new token."""
    place = execution.placement.constrain
    width = tokens.shape[1]
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    real = columns >= starts[:, None]
    seqs = Sequences(tokens, jnp.where(real, columns - starts[:, None], 0), real.astype(jnp.int32))
    x = place(look_up(params["embed"], seqs.tokens, execution), "batch", "time", "act_embed")
    turn = rotation(seqs.positions, cfg)

    def layer(x: jax.Array, weights: Tree) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        w = at_use(weights, cfg, execution)
        h = rms_norm(x, w["attention_norm"], cfg.norm_eps)
        q, k, v = (heads(h, w, name, cfg, turn, execution) for name in ("q", "k", "v"))
        mixed = attention(q, k, v, seqs.segments, execution)
        return finish_layer(x, mixed, w, cfg, execution), (k, v)

    x, kept = jax.lax.scan(layer, x, params["layers"])
    room = [(0, 0), (0, 0), (0, new), (0, 0), (0, 0)]
    cache = _Cache(*(_placed(jnp.pad(part, room), execution) for part in kept))
    return cache, _logits(params, cfg, x[:, -1], execution)


def _advance(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    column: jax.Array,
    starts: jax.Array,
    cache: _Cache,
    execution: Execution,
) -> tuple[_Cache, jax.Array]:
    """One token of every row, i32 [B], into the cache at `column`; the logits of the next one."""
    place = execution.placement.constrain
    x = place(look_up(params["embed"], tokens[:, None], execution), "batch", None, "act_embed")
    turn = rotation(positions[:, None].astype(jnp.int32), cfg)
    columns = jnp.arange(cache.keys.shape[2])[None]
    seen = (columns >= starts[:, None]) & (columns <= column)

    # The cache is carried and written in place; as outputs of the scan it would be copied in every step.
    def layer(
        carry: tuple[jax.Array, _Cache], inputs: tuple[jax.Array, Tree]
    ) -> tuple[tuple[jax.Array, _Cache], None]:
        (x, cache), (number, weights) = carry, inputs
        w = at_use(weights, cfg, execution)
        h = rms_norm(x, w["attention_norm"], cfg.norm_eps)
        q, k, v = (heads(h, w, name, cfg, turn, execution) for name in ("q", "k", "v"))
        cache = _Cache(
            *(
                jax.lax.dynamic_update_slice(part, one[None], (number, 0, column, 0, 0))
                for part, one in zip(cache, (k, v), strict=True)
            )
        )
        k, v = (jax.lax.dynamic_index_in_dim(part, number, 0, keepdims=False) for part in cache)
        mixed = _look_back(q, k, v, seen)
        return (finish_layer(x, mixed, w, cfg, execution), cache), None

    numbers = jnp.arange(cache.keys.shape[0])
    (x, cache), _ = jax.lax.scan(layer, (x, cache), (numbers, params["layers"]))
    return cache, _logits(params, cfg, x[:, 0], execution)


def _look_back(q: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> jax.Array:
    """Attention of one query a row. q: [B, 1, N, H]; keys, values: [B, T, K, H]; seen: bool [B, T]."""
    rows, _, count, size = q.shape
    grouped = q.reshape(rows, keys.shape[2], count // keys.shape[2], size)
    scores = dot("bkgh,btkh->bkgt", grouped, keys)
    scores = jnp.where(seen[:, None, None], scores * size**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    mixed = dot("bkgt,btkh->bkgh", weights, values)
    return mixed.astype(q.dtype).reshape(q.shape)


def _logits(params: Tree, cfg: ModelConfig, x: jax.Array, execution: Execution) -> jax.Array:
    """Of the residual stream's last column [B, D]: f32 [B, V]."""
    hidden = rms_norm(x, params["final_norm"], cfg.norm_eps)
    table = unembedding(params, cfg).astype(execution.compute)
    return dot("bd,vd->bv", hidden, table)


def _choose(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    greedy: bool,
    truncated: bool,
) -> tuple[jax.Array, jax.Array]:
    """A token for each row and its log-probability. logits: f32 [B, V]; keys: [B]."""
    if not greedy:
        logits = logits / temperature
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    if greedy:
        chosen = jnp.argmax(logits, axis=-1)
    else:
        allowed = _nucleus(logprobs, top_p) if truncated else logprobs
        chosen = jax.vmap(jax.random.categorical)(keys, allowed)
    chosen = chosen.astype(jnp.int32)
    return chosen, jnp.take_along_axis(logprobs, chosen[:, None], axis=1)[:, 0]


def _nucleus(logprobs: jax.Array, top_p: jax.Array) -> jax.Array:
    """Without the tokens that are less likely than those which together have top_p (arXiv 1904.09751)."""
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    # The least likely token that is kept: those before it have less than top_p together.
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logprobs >= least, logprobs, MASKED)


def _placed(part: jax.Array, execution: Execution) -> jax.Array:
    constrain = execution.placement.constrain
    return constrain(part, None, "batch", None, "act_kv_heads", "head_size")
