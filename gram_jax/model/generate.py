"""Autoregressive sampling: a pass over the prompts, then a loop that extends the cache token by token.

Every row has its own random key, so its noise does not depend on the batch composition. Continuations of the same
prompt share its keys and values (shared_cache.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax import tree
from gram_jax.batch import Array
from gram_jax.errors import DataError
from gram_jax.finite import check_finite
from gram_jax.model.attention.masked import MASK_VALUE, soft_cap
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Compute, Execution
from gram_jax.model.heads import unembedding
from gram_jax.model.matmul import dot
from gram_jax.model.shared_cache import SharedCache, extend_copies, read_prompts
from gram_jax.tree import Tree

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of it, which limits the number of programs


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling. Raises DataError for values out of range.

    temperature: 0 selects the most likely token. top_p: sample from the most likely tokens with this total probability
    (arXiv 1904.09751). seed: seed of the random numbers, which differ between prompts; less than 2^32. stop_token_ids:
    tokens that end a response; the token is part of the response.

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
        if not 0 <= self.seed < 2**32:  # jax.random.key ignores higher bits
            raise DataError(f"seed = {self.seed}: expected 0 or more and less than 2^32")


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


class Stop(NamedTuple):
    """A condition on the tokens of a row that ends it, checked on the host after every `every` tokens.

    found: called with the tokens of a row so far. The row keeps the tokens up to the check.
    """

    found: Callable[[list[int]], bool]
    every: int = 16


def generate(
    params: Tree,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int] | np.ndarray],
    execution: Execution,
    sampling: SamplingConfig,
    *,
    batch_size: int = 32,
    first: int = 0,
    stop: Stop | None = None,
) -> Samples:
    """Continue every prompt (token ids), up to and with a stop token.

    A prompt that occurs several times, as for several samples, is read once. batch_size: rows per batch, rounded up to
    a multiple of the mesh's batch shards. first: index of the first prompt in a larger list, of which these are a part:
    their samples are those of the whole list. stop: ends rows besides the stop tokens. The pass over the prompts uses
    the best attention that supports padding before them, not that of the execution. On a CPU in bfloat16, layers
    multiply bfloat16 weights by float32 activations. Raises DataError for an empty prompt and for one that leaves no
    space for new tokens in the model's context, NonFiniteError for logits that are not finite.
    """
    check_lengths(cfg, prompts, sampling.max_new_tokens)
    shards = execution.placement.batch_shards
    rows = -(-min(batch_size, max(1, len(prompts))) // shards) * shards
    groups = _groups_of_equal(prompts, rows)
    found = _empty_samples(len(prompts), sampling.max_new_tokens, np.zeros)
    fold = jax.vmap(partial(jax.random.fold_in, jax.random.key(sampling.seed)))
    copies = groups.shape[1]
    per_batch = max(1, rows // copies)
    if _spread(per_batch, copies, shards) is None:
        per_batch = -(-per_batch // shards) * shards
    for begin in range(0, len(groups), per_batch):
        members = groups[begin : begin + per_batch]
        filled = np.pad(members, ((0, per_batch - len(members)), (0, 0)), mode="edge")
        keys = fold(jnp.asarray(first + filled.reshape(-1))).reshape(filled.shape)
        shown = [prompts[at] for at in filled[:, 0]]
        batch = generate_copies(params, cfg, shown, keys, execution, sampling, stop=stop)
        for whole, part in zip(found, batch, strict=True):
            whole[members.reshape(-1)] = part[: members.size]
    return found


def _groups_of_equal(prompts: Sequence[Sequence[int] | np.ndarray], rows: int) -> np.ndarray:
    """Indices of prompts, i [U, n], longest first: each row has n equal ones, for the largest n up to `rows`."""
    same: dict[bytes, list[int]] = {}
    for at, prompt in enumerate(prompts):
        same.setdefault(np.asarray(prompt, np.int32).tobytes(), []).append(at)
    size = math.gcd(*(len(members) for members in same.values())) if same else 1
    while size > rows:
        size = next(part for part in range(size - 1, 0, -1) if size % part == 0)
    longest = sorted(same, key=len, reverse=True)
    return np.array([at for key in longest for at in same[key]], int).reshape(-1, size)


def _spread(prompts: int, copies: int, shards: int) -> int | None:
    """How often prompts are repeated, with fewer copies each, so that they fill all shards; None if they cannot."""
    times = shards // math.gcd(prompts, shards)
    return times if copies % times == 0 else None


def generate_copies(
    params: Tree,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[int] | np.ndarray],
    keys: jax.Array,
    execution: Execution,
    sampling: SamplingConfig,
    *,
    stop: Stop | None = None,
) -> Samples:
    """One batch: n continuations of each of U prompts, rows u n to u n + n - 1. Arrays of the host.

    keys: random keys [U, n]; those of `sampling` are not used. The bits of a row depend on U, n, the padded length and
    its own prompt and key alone. stop: ends rows besides the stop tokens.
    """
    shards = execution.placement.batch_shards
    # Padding is before the prompts, which packed = False excludes.
    execution = replace(execution, attention="auto", packed=True)
    tokens, lengths = _right_aligned(prompts)
    spread = _spread(len(prompts), keys.shape[1], shards) or 1
    tokens, lengths = np.repeat(tokens, spread, axis=0), np.repeat(lengths, spread)
    keys = keys.reshape(len(tokens), -1)
    new = sampling.max_new_tokens
    head = execution.compute_dtype
    if head == "bfloat16" and execution.placement.platform == "cpu":
        params, execution = _widened(params), replace(execution, compute_dtype="float32")
    program: dict[str, Any] = {"execution": execution, "head": head}
    state = begin_batch(params, cfg, tokens, lengths, copies=keys.shape[1], new=new, **program)
    program |= {
        "stop_token_ids": tuple(sorted(set(sampling.stop_token_ids))),
        "greedy": sampling.temperature == 0,
        "truncated": sampling.top_p < 1,
    }
    temperature, top_p = jnp.float32(sampling.temperature), jnp.float32(sampling.top_p)
    checks = range(stop.every, new, stop.every) if stop else ()
    for end in (*checks, new):
        state = advance_batch(
            params, cfg, state, keys, temperature, top_p, jnp.int32(end), **program
        )
        if stop is not None:
            state = _with_stopped(state, stop)
        if np.asarray(state.ended).all():
            break
    found = Samples(*(np.array(part) for part in jax.device_get(state.samples)))
    check_finite(found.logprobs, "the log-probabilities", "responses")
    return found


def _with_stopped(state: "BatchState", stop: Stop) -> "BatchState":
    """The state with those rows ended that the condition ends."""
    tokens, lengths, ended = jax.device_get(
        (state.samples.tokens, state.samples.lengths, state.ended)
    )
    found = [
        bool(done) or stop.found(row[:length].tolist())
        for row, length, done in zip(tokens, lengths, ended, strict=True)
    ]
    return state._replace(ended=jnp.asarray(np.array(found)))


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


@jax.jit
def _widened(params: Tree) -> Tree:
    """The matrices of the layers rounded to bfloat16 and held as float32, which a CPU multiplies faster.

    XLA on a CPU converts a bfloat16 matrix to float32 in every step of the loop over layers and tokens.
    """

    def wide(path: str, weight: jax.Array) -> jax.Array:
        kept = path.endswith("_norm") or path == "lora_scale" or "scales/" in path
        if kept or weight.dtype.itemsize == 1:
            return weight
        return jax.lax.reduce_precision(weight.astype(jnp.float32), 8, 7)

    return params | {"layers": tree.map_with_path(wide, params["layers"])}


class BatchState(NamedTuple):
    step: jax.Array  # i32, number of chosen tokens
    cache: SharedCache
    logits: jax.Array  # f32 [B, V], of the next token
    samples: Samples
    ended: jax.Array  # bool [B], by a stop token or otherwise


@partial(jax.jit, static_argnames=("cfg", "execution", "head", "copies", "new"))
def begin_batch(
    params: Tree,
    cfg: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    execution: Execution,
    head: Compute,
    copies: int,
    new: int,
) -> BatchState:
    """Read the prompts, i32 [U, P], right-aligned, for `copies` continuations of `new` tokens each."""
    hidden, cache = read_prompts(
        params, cfg, tokens, lengths, execution, copies=copies, capacity=new
    )
    rows = len(tokens) * copies
    logits = jnp.repeat(_logits_of(params, cfg, hidden, head), copies, axis=0)
    ended = jnp.zeros(rows, bool)
    return BatchState(jnp.int32(0), cache, logits, _empty_samples(rows, new, jnp.zeros), ended)


_STATIC = ("cfg", "execution", "head", "stop_token_ids", "greedy", "truncated")


@partial(jax.jit, static_argnames=_STATIC, donate_argnames=("state",))
def advance_batch(
    params: Tree,
    cfg: ModelConfig,
    state: BatchState,
    keys: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    until: jax.Array,
    *,
    execution: Execution,
    head: Compute,
    stop_token_ids: tuple[int, ...],
    greedy: bool,
    truncated: bool,
) -> BatchState:
    """Choose tokens up to number `until`, or until every row has ended. keys: [U, n]."""

    def step(state: BatchState) -> BatchState:
        noise = jax.vmap(partial(jax.random.fold_in, data=state.step))(keys.reshape(-1))
        chosen, logprob = choose_tokens(
            state.logits, noise, temperature, top_p, greedy=greedy, truncated=truncated
        )
        written, logprobs, lengths, stopped = state.samples
        chosen = jnp.where(state.ended, 0, chosen)
        stopping = jnp.zeros(len(chosen), bool)
        if stop_token_ids:
            stopping = jnp.isin(chosen, jnp.array(stop_token_ids, jnp.int32)) & ~state.ended
        hidden, cache = extend_copies(
            params, cfg, chosen.reshape(keys.shape), state.cache, execution
        )
        samples = Samples(
            written.at[:, state.step].set(chosen),
            logprobs.at[:, state.step].set(jnp.where(state.ended, 0.0, logprob)),
            lengths + ~state.ended,
            stopped | stopping,
        )
        logits = _logits_of(params, cfg, hidden, head)
        return BatchState(state.step + 1, cache, logits, samples, state.ended | stopping)

    def unfinished(state: BatchState) -> jax.Array:
        return (state.step < until) & ~state.ended.all()

    return jax.lax.while_loop(unfinished, step, state)


def _logits_of(params: Tree, cfg: ModelConfig, hidden: jax.Array, dtype: Compute) -> jax.Array:
    """Next-token logits of hidden [B, 1, D], f32 [B, V]; the product has operands of this dtype."""
    table = unembedding(params, cfg).astype(dtype)
    return soft_cap(dot("bd,vd->bv", hidden[:, 0].astype(dtype), table), cfg.traits.logit_softcap)


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
        chosen = _draw(jax.vmap(jax.random.uniform)(keys), jnp.exp(allowed))
    chosen = chosen.astype(jnp.int32)
    return chosen, jnp.take_along_axis(logprobs, chosen[:, None], axis=1)[:, 0]


BLOCK = 128  # of the vocabulary, in `_draw`


def _draw(uniform: jax.Array, weights: jax.Array) -> jax.Array:
    """An index of each row with probability in proportion to its weight, i32 [B]. weights: f32 [B, V].

    Inverts the distribution function, first over blocks, then inside one. Noise for every token (Gumbel) takes half of
    the time of a step of SmolLM2-135M on a CPU: 31 ms for 16 rows, this 1 ms.
    """
    B, V = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    ends = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    at = uniform * ends[:, -1]
    block = jnp.argmax(ends > at[:, None], axis=-1)
    before = jnp.where(
        block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0
    )
    inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
    over = (jnp.cumsum(inside, axis=-1) > (at - before)[:, None]) & (inside > 0)
    # Rounding may leave nothing over: then the last token of the block that has a weight.
    last = BLOCK - 1 - jnp.argmax(inside[:, ::-1] > 0, axis=-1)
    return block * BLOCK + jnp.where(over.any(axis=-1), jnp.argmax(over, axis=-1), last)


def _nucleus(logprobs: jax.Array, top_p: jax.Array) -> jax.Array:
    """logprobs [B, V], masked except for the most likely tokens that together have top_p."""
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    # The least likely token that is kept: more likely ones have less than top_p together.
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logprobs >= least, logprobs, MASK_VALUE)
