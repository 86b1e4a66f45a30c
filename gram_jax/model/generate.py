"""Autoregressive sampling: a pass over the prompts, then a loop that extends the cache token by token.

Every row has its own random key, so its noise does not depend on the batch composition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.batch import Array
from gram_jax.errors import DataError
from gram_jax.finite import check_finite
from gram_jax.model.attention.masked import MASK_VALUE, soft_cap
from gram_jax.model.cache import Cache, extend, prefill
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.heads import unembedding
from gram_jax.model.matmul import dot
from gram_jax.tree import Tree

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of it, which limits the number of programs


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling. Raises DataError for values out of range.

    temperature: 0 selects the most likely token. top_p: sample from the most likely tokens with this total probability
    (arXiv 1904.09751). seed: seed of the random numbers, which differ between prompts. stop_token_ids: tokens that end
    a response; the token is part of the response.

    >>> from gram_jax import SamplingConfig
    >>> SamplingConfig(max_new_tokens=8, temperature=0.7).top_p
    1.0
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise DataError(
                f"max_new_tokens = {self.max_new_tokens}, temperature = {self.temperature}, top_p = {self.top_p}: "
                "expected at least one token, a temperature of 0 or more, and top_p above 0 and up to 1"
            )


class Samples(NamedTuple):
    """Continuations of R prompts, at most N tokens each.

    tokens: i32 [R, N], 0 after the end. logprobs: f32 [R, N], log-probability of each token at the sampling temperature
    (1 if that is 0), before top_p; 0 after the end. lengths: i32 [R], including the stop token. stopped: bool [R],
    whether the row ends with a stop token.
    """

    tokens: Array
    logprobs: Array
    lengths: Array
    stopped: Array


def generate(
    params: Tree,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int] | np.ndarray],
    execution: Execution,
    sampling: SamplingConfig,
    *,
    batch_size: int = 32,
    first: int = 0,
) -> Samples:
    """Continue every prompt (token ids), up to and with a stop token.

    batch_size: prompts per batch, rounded up to a multiple of the mesh's batch shards. first: index of the first prompt
    in a larger list, of which these are a part: their samples are those of the whole list. The pass over the prompts
    uses the best attention that supports padding before them, not that of the execution. Raises DataError for an empty
    prompt and for one that leaves no space for new tokens in the model's context, NonFiniteError for logits that
    are not finite.
    """
    check_lengths(cfg, prompts, sampling.max_new_tokens)
    # Padding is before the prompts, which packed = False excludes.
    execution = replace(execution, attention="auto", packed=True)
    shards = execution.placement.batch_shards
    rows = -(-min(batch_size, max(1, len(prompts))) // shards) * shards
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    new = sampling.max_new_tokens
    found = _empty_samples(len(prompts), new, np.zeros)
    for begin in range(0, len(prompts), rows):
        members = order[begin : begin + rows]
        filled = np.pad(members, (0, rows - len(members)), mode="edge")
        tokens, lengths = _right_aligned([prompts[at] for at in filled])
        fold = jax.vmap(partial(jax.random.fold_in, jax.random.key(sampling.seed)))
        batch = _generate(
            params,
            cfg,
            tokens,
            lengths,
            fold(jnp.asarray(first + filled)),
            jnp.float32(sampling.temperature),
            jnp.float32(sampling.top_p),
            execution=execution,
            max_new_tokens=new,
            stop_token_ids=tuple(sorted(set(sampling.stop_token_ids))),
            greedy=sampling.temperature == 0,
            truncated=sampling.top_p < 1,
        )
        for whole, part in zip(found, jax.device_get(batch), strict=True):
            whole[members] = part[: len(members)]
    check_finite(found.logprobs, "the log-probabilities", "responses")
    return found


def check_lengths(
    cfg: ModelConfig, prompts: Sequence[Sequence[int] | np.ndarray], max_new_tokens: int
) -> None:
    """Raises DataError for an empty prompt and for one that leaves no space for the new tokens."""
    if any(len(prompt) == 0 for prompt in prompts):
        raise DataError("an empty prompt cannot be continued: expected at least one token")
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > cfg.context_length:
        raise DataError(
            f"a prompt has {longest} tokens, and the model's context of {cfg.context_length} leaves space for "
            f"{max(0, cfg.context_length - max_new_tokens)} with max_new_tokens = {max_new_tokens}: remove long "
            "prompts or lower max_new_tokens"
        )


def _right_aligned(prompts: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens i32 [B, P], every prompt ending in the last column; lengths i32 [B])."""
    lengths = np.array(list(map(len, prompts)), np.int32)
    width = -(-lengths.max() // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return tokens, lengths


def _empty_samples(rows: int, new: int, zeros: Callable[..., Array]) -> Samples:
    shape = (rows, new)
    return Samples(
        zeros(shape, np.int32), zeros(shape, np.float32), zeros(rows, np.int32), zeros(rows, bool)
    )


class _State(NamedTuple):
    step: jax.Array  # i32, number of chosen tokens
    cache: Cache
    logits: jax.Array  # f32 [B, V], of the next token
    samples: Samples


_STATIC = ("cfg", "execution", "max_new_tokens", "stop_token_ids", "greedy", "truncated")


@partial(jax.jit, static_argnames=_STATIC)
def _generate(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    execution: Execution,
    max_new_tokens: int,
    stop_token_ids: tuple[int, ...],
    greedy: bool,
    truncated: bool,
) -> Samples:
    """tokens: i32 [B, P], right-aligned; lengths: i32 [B]; keys: [B]. Ends when every row has stopped."""
    rows = tokens.shape[0]
    table = unembedding(params, cfg).astype(execution.compute_dtype)

    def logits_of(hidden: jax.Array) -> jax.Array:
        """Next-token logits of hidden [B, 1, D], f32 [B, V]."""
        return soft_cap(dot("bd,vd->bv", hidden[:, 0], table), cfg.traits.logit_softcap)

    def step(state: _State) -> _State:
        noise = jax.vmap(partial(jax.random.fold_in, data=state.step))(keys)
        chosen, logprob = choose_tokens(
            state.logits, noise, temperature, top_p, greedy=greedy, truncated=truncated
        )
        written, logprobs, lengths, stopped = state.samples
        chosen = jnp.where(stopped, 0, chosen)
        stopping = jnp.zeros(rows, bool)
        if stop_token_ids:
            stopping = jnp.isin(chosen, jnp.array(stop_token_ids, jnp.int32))
        hidden, cache = extend(params, cfg, chosen[:, None], state.cache, execution)
        samples = Samples(
            written.at[:, state.step].set(chosen),
            logprobs.at[:, state.step].set(jnp.where(stopped, 0.0, logprob)),
            lengths + ~stopped,
            stopped | stopping,
        )
        return _State(state.step + 1, cache, logits_of(hidden), samples)

    def unfinished(state: _State) -> jax.Array:
        return (state.step < max_new_tokens) & ~state.samples.stopped.all()

    hidden, cache = prefill(params, cfg, tokens, lengths, execution, capacity=max_new_tokens)
    empty = _empty_samples(rows, max_new_tokens, jnp.zeros)
    first = _State(jnp.int32(0), cache, logits_of(hidden), empty)
    return jax.lax.while_loop(unfinished, step, first).samples


def choose_tokens(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    greedy: bool,
    truncated: bool,
) -> tuple[jax.Array, jax.Array]:
    """(a token of each row i32 [B], its log-probability f32 [B]). logits: f32 [B, V]; keys: [B].

    greedy: take the most likely token. truncated: top_p is below 1.
    """
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
    """logprobs [B, V], masked except for the most likely tokens that together have top_p."""
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    # The least likely token that is kept: more likely ones have less than top_p together.
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logprobs >= least, logprobs, MASK_VALUE)
