"""The sampler: transformers' greedy tokens, rows that do not see each other, probabilities that are drawn from."""

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
from gram_jax.model import generate as sampler
from gram_jax.model.attention import attention
from gram_jax.model.decoder import hidden_states, unembedding
from gram_jax.model.execution import Execution
from gram_jax.model.generate import _choose, sample


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


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family, execution, one_device):
    torch = pytest.importorskip("torch")
    from test_model_parity import in_pytorch

    cfg = tiny_config(family, family != "llama3")
    params = random_params(cfg, one_device)
    prompts = prompts_of((5, 17, 70), cfg.vocab_size)
    model = in_pytorch(cfg, params)
    found = sample(params, cfg, prompts, execution, new=24, stops=(), temperature=0)
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


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_logprobs_are_those_of_a_pass_over_the_whole_text(small, temperature):
    cfg, params, execution = small
    prompts = prompts_of((5, 40), cfg.vocab_size)
    found = sample(
        params, cfg, prompts, execution, new=12, stops=(3,), temperature=temperature, seed=1
    )
    for row, prompt in enumerate(prompts):
        written = found.tokens[row, : found.lengths[row]].tolist()
        whole = whole_logprobs(cfg, params, execution, prompt + written, temperature or 1.0)
        expected = [whole[len(prompt) - 1 + at, token] for at, token in enumerate(written)]
        np.testing.assert_allclose(found.logprobs[row, : len(written)], expected, atol=2e-5, rtol=0)


def test_what_is_sampled_does_not_depend_on_the_company(small):
    cfg, params, execution = small
    prompts = prompts_of((5, 17, 70, 3, 33), cfg.vocab_size)
    options = {"new": 10, "stops": (3,), "temperature": 0.9, "seed": 4}
    together = sample(params, cfg, prompts, execution, **options)
    in_twos = sample(params, cfg, prompts, execution, rows=2, **options)
    assert together.tokens.tolist() == in_twos.tokens.tolist()
    assert sample(params, cfg, prompts[:1], execution, **options).tokens[0].tolist() == (
        together.tokens[0].tolist()
    )
    other = sample(params, cfg, prompts, execution, **options | {"seed": 5})
    assert together.tokens.tolist() != other.tokens.tolist()


def test_on_a_mesh_the_same_tokens(small, cube):
    cfg, _, execution = small
    params = random_params(cfg, cube)
    spread = dataclasses.replace(execution, placement=cube)
    prompts = prompts_of((5, 17, 30), cfg.vocab_size)
    options = {"new": 8, "stops": (), "temperature": 0}
    one = sample(small[1], cfg, prompts, execution, **options)
    assert sample(params, cfg, prompts, spread, **options).tokens.tolist() == one.tokens.tolist()


def test_padding_before_a_prompt_is_told_apart_whatever_the_execution_promises(small, monkeypatch):
    cfg, params, execution = small
    asked = []

    def watched(q, k, v, segments, execution):
        asked.append(execution)
        return attention(q, k, v, segments, execution)

    monkeypatch.setattr(sampler, "attention", watched)
    prompts = prompts_of((4, 19), cfg.vocab_size)
    for name in ("blocked", "cudnn"):  # the latter knows no segments, and needs a GPU
        promised = dataclasses.replace(execution, attention=name, packed=False)
        found = sample(params, cfg, prompts, promised, new=3, stops=(), temperature=0)
        plain = sample(params, cfg, prompts, execution, new=3, stops=(), temperature=0)
        assert found.tokens.tolist() == plain.tokens.tolist()
    assert asked and all(execution.packed for execution in asked)


@pytest.mark.parametrize(("compute", "expected"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_float32_is_sampled_from_in_float32(small, compute, expected):
    cfg, params, execution = small
    spread = dataclasses.replace(execution, compute=compute)
    ids = np.ones((1, 64), np.int32)
    keys = jax.random.split(jax.random.key(0), 1)
    options = {"new": 2, "stops": (), "greedy": True, "truncated": False, "execution": spread}
    found = jax.make_jaxpr(
        lambda tokens: sampler._generate(
            params, cfg, tokens, np.zeros(1, int), keys, 1.0, 1.0, **options
        )
    )(ids)
    products = str(found).split("dot_general[")[1:]
    kinds = [re.findall(r"precision=\S*?(HIGHEST|DEFAULT)", product) for product in products]
    assert len(kinds) > 10 and all(kind == [expected] for kind in kinds)


def test_a_stop_token_ends_a_row_and_nothing_follows(small):
    cfg, params, execution = small
    prompts = prompts_of((6, 9, 12), cfg.vocab_size)
    free = sample(params, cfg, prompts, execution, new=12, stops=(), temperature=0)
    stop = int(free.tokens[1, 4])
    found = sample(params, cfg, prompts, execution, new=12, stops=(stop,), temperature=0)
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
    chosen, logprobs = _choose(rows, keys, temperature, top_p, **settings)
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


def test_what_cannot_be_sampled_is_a_named_error(small):
    cfg, params, execution = small
    with pytest.raises(DataError, match="without a token"):
        sample(params, cfg, [[]], execution, new=4, stops=())
    with pytest.raises(DataError, match="do not fit the 512 positions"):
        sample(params, cfg, [[1] * 500], execution, new=40, stops=())
    with pytest.raises(DataError, match="top_p above 0"):
        sample(params, cfg, [[1]], execution, new=4, stops=(), top_p=0.0)
    assert sample(params, cfg, [], execution, new=4, stops=()).tokens.shape == (0, 4)
