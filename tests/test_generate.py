"""Generation: transformers' greedy tokens, rows that do not see each other, probabilities that are drawn from."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES, tiny_config
from model_cases import random_params
from scipy.stats import chisquare

from gram_jax.batch import Sequences
from gram_jax.errors import DataError
from gram_jax.model import cache as cache_module
from gram_jax.model.attention import attention
from gram_jax.model.cache import extend, prefill
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.generate import (
    SamplingConfig,
    Stop,
    choose_tokens,
    generate,
    generate_copies,
)
from gram_jax.model.heads import unembedding


def prompts_of(sizes, vocab: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1, vocab, size).tolist() for size in sizes]


@pytest.fixture(scope="module")
def small():
    """A model, its weights, and one device."""
    from gram_jax.sharding import make_placement

    placement = make_placement({}, devices=jax.devices()[:1])
    cfg = tiny_config("qwen3", True)
    return cfg, random_params(cfg, placement), Execution("float32", "blocked", "none", placement)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family, execution, one_device):
    torch = pytest.importorskip("torch")
    from test_model_parity import in_pytorch

    cfg = tiny_config(family, family != "llama3")
    params = random_params(cfg, one_device)
    prompts = prompts_of((5, 17, 70), cfg.vocab_size)
    model = in_pytorch(cfg, params)
    found = generate(params, cfg, prompts, execution, SamplingConfig(24, temperature=0))
    for prompt, ours in zip(prompts, found.tokens, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert ours.tolist() == theirs[0, len(prompt) :].tolist()


def whole_logprobs(cfg, params, execution, tokens, temperature=1.0):
    """Log-probabilities of every next token by one pass over the whole row."""
    tokens = jnp.asarray([tokens], jnp.int32)
    positions = jnp.arange(tokens.shape[1])[None]
    seqs = Sequences(tokens, positions, jnp.ones_like(tokens))
    hidden = hidden_states(params, cfg, seqs, execution)
    logits = jnp.einsum("btd,vd->btv", hidden, unembedding(params, cfg)) / temperature
    return np.asarray(jax.nn.log_softmax(logits, -1))[0]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_logprobs_are_those_of_a_pass_over_the_whole_text(small, temperature):
    cfg, params, execution = small
    prompts = prompts_of((5, 40), cfg.vocab_size)
    sampling = SamplingConfig(12, temperature, seed=1, stop_token_ids=(3,))
    found = generate(params, cfg, prompts, execution, sampling)
    for row, prompt in enumerate(prompts):
        written = found.tokens[row, : found.lengths[row]].tolist()
        whole = whole_logprobs(cfg, params, execution, prompt + written, temperature or 1.0)
        expected = [whole[len(prompt) - 1 + at, token] for at, token in enumerate(written)]
        np.testing.assert_allclose(found.logprobs[row, : len(written)], expected, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_what_is_sampled_does_not_depend_on_the_batch(small):
    cfg, params, execution = small
    prompts = prompts_of((5, 17, 70, 3, 33), cfg.vocab_size)
    sampling = SamplingConfig(10, temperature=0.9, seed=4, stop_token_ids=(3,))
    together = generate(params, cfg, prompts, execution, sampling)
    in_twos = generate(params, cfg, prompts, execution, sampling, batch_size=2)
    assert together.tokens.tolist() == in_twos.tokens.tolist()
    alone = generate(params, cfg, prompts[:1], execution, sampling)
    assert alone.tokens[0].tolist() == together.tokens[0].tolist()
    other = generate(params, cfg, prompts, execution, dataclasses.replace(sampling, seed=5))
    assert together.tokens.tolist() != other.tokens.tolist()


def test_on_a_mesh_the_same_tokens(small, cube):
    cfg, _, execution = small
    params = random_params(cfg, cube)
    spread = dataclasses.replace(execution, placement=cube)
    prompts = prompts_of((5, 17, 30), cfg.vocab_size)
    greedy = SamplingConfig(8, temperature=0)
    one = generate(small[1], cfg, prompts, execution, greedy)
    assert generate(params, cfg, prompts, spread, greedy).tokens.tolist() == one.tokens.tolist()


def test_padding_before_a_prompt_is_told_apart_whatever_the_execution_promises(small, monkeypatch):
    cfg, params, execution = small
    asked = []

    def watched(q, k, v, segments, execution, **options):
        asked.append(execution)
        return attention(q, k, v, segments, execution, **options)

    monkeypatch.setattr(cache_module, "attention", watched)
    prompts, greedy = prompts_of((4, 19), cfg.vocab_size), SamplingConfig(3, temperature=0)
    for name in ("blocked", "cudnn"):  # the latter knows no segments, and needs a GPU
        promised = dataclasses.replace(execution, attention=name, packed=False)
        found = generate(params, cfg, prompts, promised, greedy)
        plain = generate(params, cfg, prompts, execution, greedy)
        assert found.tokens.tolist() == plain.tokens.tolist()
    assert asked and all(execution.packed for execution in asked)


@pytest.mark.parametrize(
    ("compute_dtype", "expected"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")]
)
def test_float32_is_computed_in_float32(small, compute_dtype, expected):
    cfg, params, execution = small
    execution = dataclasses.replace(execution, compute_dtype=compute_dtype)

    def run(tokens, lengths):
        _, cache = prefill(params, cfg, tokens, lengths, execution, capacity=2)
        return extend(params, cfg, tokens[:, :1], cache, execution)

    found = jax.make_jaxpr(run)(np.ones((1, 64), np.int32), np.array([64], np.int32))
    products = str(found).split("dot_general[")[1:]
    kinds = [re.findall(r"precision=\S*?(HIGHEST|DEFAULT)", product) for product in products]
    assert len(kinds) > 10 and all(kind == [expected] for kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [(7,), (1, 6), (3, 4)])
def test_reading_text_in_pieces_gives_the_hidden_states_of_the_whole(small, pieces):
    """Right-aligned rows of 5 and 9 tokens, and then 7 more of each."""
    cfg, params, execution = small
    rows = prompts_of((5 + 7, 9 + 7), cfg.vocab_size)
    tokens = np.array([[0] * 4 + rows[0], rows[1]], np.int32)
    lengths = np.array([5, 9], np.int32)
    hidden, cache = prefill(params, cfg, tokens[:, :9], lengths, execution, capacity=7)
    found, at = [hidden], 9
    for size in pieces:
        more, cache = extend(params, cfg, tokens[:, at : at + size], cache, execution)
        found.append(more)
        at += size
    assert cache.lengths.tolist() == [12, 16] and cache.end == 16
    for row, text in enumerate(rows):
        seqs = Sequences(*(np.array([x]) for x in (text, range(len(text)), [1] * len(text))))
        whole = hidden_states(params, cfg, seqs, execution)[0, lengths[row] - 1 :]
        np.testing.assert_allclose(np.concatenate(found, axis=1)[row], whole, atol=1e-5, rtol=1e-5)


def test_a_stop_token_ends_a_row_and_nothing_follows(small):
    cfg, params, execution = small
    prompts, greedy = prompts_of((6, 9, 12), cfg.vocab_size), SamplingConfig(12, temperature=0)
    free = generate(params, cfg, prompts, execution, greedy)
    stop = int(free.tokens[1, 4])
    stopping = dataclasses.replace(greedy, stop_token_ids=(stop,))
    found = generate(params, cfg, prompts, execution, stopping)
    for row in range(3):
        written = free.tokens[row].tolist()
        length = written.index(stop) + 1 if stop in written else 12
        assert found.lengths[row] == length and found.stopped[row] == (stop in written)
        assert found.tokens[row].tolist() == written[:length] + [0] * (12 - length)
        assert not found.logprobs[row, length:].any()
    assert found.stopped[1]


def draws(logits, count, **options):
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(0), n))(jnp.arange(count))
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    settings = {"temperature": 1.0, "top_p": 1.0, "greedy": False, "truncated": False} | options
    temperature, top_p = (jnp.float32(settings.pop(x)) for x in ("temperature", "top_p"))
    chosen, logprobs = choose_tokens(rows, keys, temperature, top_p, **settings)
    return np.asarray(chosen), np.asarray(logprobs)


LOGITS = np.log([0.5, 0.25, 0.15, 0.1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probability(temperature):
    chosen, logprobs = draws(LOGITS, 4000, temperature=temperature)
    p = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    assert chisquare(np.bincount(chosen, minlength=4), 4000 * p).pvalue > 0.001
    np.testing.assert_allclose(logprobs, np.log(p)[chosen], atol=1e-5)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.76, 3), (0.95, 4)])
def test_top_p_keeps_the_likeliest_tokens_and_their_proportions(top_p, kept):
    chosen, logprobs = draws(LOGITS, 3000, top_p=top_p, truncated=True)
    counts = np.bincount(chosen, minlength=4)
    assert (counts[:kept] > 0).all() and not counts[kept:].any()
    p = np.exp(LOGITS[:kept]) / np.exp(LOGITS[:kept]).sum()
    if kept > 1:
        assert chisquare(counts[:kept], 3000 * p).pvalue > 0.001
    np.testing.assert_allclose(logprobs, LOGITS[chosen], atol=1e-5)  # of the whole distribution


def test_what_cannot_be_generated_is_a_named_error(small):
    cfg, params, execution = small
    sampling = SamplingConfig(40)
    with pytest.raises(DataError, match="at least one token"):
        generate(params, cfg, [[]], execution, sampling)
    with pytest.raises(DataError, match="context of 512"):
        generate(params, cfg, [[1] * 500], execution, sampling)
    bad = (
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"temperature": -1.0},
        {"max_new_tokens": 0},
        {"seed": 2**32},
    )
    for wrong in bad:
        with pytest.raises(DataError, match=next(iter(wrong))):
            SamplingConfig(**{"max_new_tokens": 4} | wrong)
    assert generate(params, cfg, [], execution, SamplingConfig(4)).tokens.shape == (0, 4)


@pytest.mark.parametrize("window", [None, 6])
def test_samples_of_a_prompt_that_is_read_once_have_the_probabilities_of_the_whole_text(
    small, window
):
    cfg, params, execution = small
    if window is not None:
        traits = dataclasses.replace(cfg.traits, window=window, layer_types=("sliding", "full"))
        cfg = dataclasses.replace(cfg, traits=traits)
    short, long = prompts_of((5, 40), cfg.vocab_size)
    prompts = [short, long, short, long, short, long]
    found = generate(params, cfg, prompts, execution, SamplingConfig(10, 0.9, seed=2))
    assert len({tuple(row) for row in found.tokens.tolist()}) == 6
    for prompt, tokens, logprobs in zip(prompts, found.tokens, found.logprobs, strict=True):
        whole = whole_logprobs(cfg, params, execution, prompt + tokens.tolist(), 0.9)
        expected = [whole[len(prompt) - 1 + at, token] for at, token in enumerate(tokens)]
        np.testing.assert_allclose(logprobs, expected, atol=2e-5, rtol=0)


def test_a_condition_on_the_host_ends_a_row_at_its_next_check(small):
    cfg, params, execution = small
    (prompt,) = prompts_of((9,), cfg.vocab_size)
    keys = jax.random.split(jax.random.key(0), (1, 2))
    sampling = SamplingConfig(10, 5.0)
    free = generate_copies(params, cfg, [prompt], keys, execution, sampling)
    first = free.tokens[0, :2].tolist()
    assert free.tokens[1, :2].tolist() != first
    stop = Stop(lambda tokens: tokens[:2] == first, every=4)
    found = generate_copies(params, cfg, [prompt], keys, execution, sampling, stop=stop)
    assert found.lengths.tolist() == [4, 10] and not found.stopped.any()
    assert found.tokens[1].tolist() == free.tokens[1].tolist()
    assert found.tokens[0, :4].tolist() == free.tokens[0, :4].tolist()
