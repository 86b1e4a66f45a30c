"""Prefix sharing: the same logits as without, the same bits in every batch, few programs, fewer tokens."""

import itertools
from collections.abc import Sequence

import jax
import jax.monitoring
import numpy as np
import pytest
from conftest import FAMILIES, tiny_config
from model_cases import LABELS, random_params
from scipy.special import expit

from gram_jax.batch import Sequences
from gram_jax.judge.encode import Encoded
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import hidden_at, label_logits
from gram_jax.scoring import engine as engine_module
from gram_jax.scoring.engine import RANKING_TREE_TOKENS, ScoringEngine
from gram_jax.scoring.prefix_layout import lay_out, prefix_tree_shape
from gram_jax.scoring.prefix_tree import BLOCK, prefix_tree_logits
from gram_jax.sharding import make_placement

LONGEST = 256
TAIL = np.array([5, 6, 7])  # the end of every comparison


def one_device():
    return make_placement({}, devices=jax.devices()[:1])


def make_engine(family: str = "llama", placement=None, **sizes) -> ScoringEngine:
    placement = placement or one_device()
    cfg = tiny_config(family, tied=family in ("llama", "qwen3"))
    params = random_params(cfg, placement)
    execution = Execution("float32", "blocked", "none", placement, packed=False)
    columns = sizes.pop("tokens_per_call", 1024)
    return ScoringEngine(params, cfg, LABELS, execution, LONGEST, "prefix_shared", columns, **sizes)


def words(random: np.random.Generator, most: int, least: int = 0) -> np.ndarray:
    return random.integers(0, 288, random.integers(least, most + 1)).astype(np.int32)


def group_of(
    random: np.random.Generator, prompt: int, response: int, count: int = 2
) -> list[Encoded]:
    """All ordered comparisons of random responses of at most `response` tokens; two make a pair."""
    return all_ordered(
        words(random, prompt, least=1), [words(random, response) for _ in range(count)]
    )


def shown(prompt: np.ndarray, first: np.ndarray, second: np.ndarray) -> Encoded:
    tokens = np.concatenate([prompt, first, second, TAIL]).astype(np.int32)
    cuts = (len(prompt), len(prompt) + len(first))
    return Encoded(tokens, np.zeros(len(tokens), np.float32), field_starts=cuts)


def all_ordered(prompt: np.ndarray, responses: Sequence[np.ndarray]) -> list[Encoded]:
    orders = itertools.permutations(range(len(responses)), 2)
    return [shown(prompt, responses[i], responses[j]) for i, j in orders]


def flat(groups: Sequence[Sequence[Encoded]]) -> list[Encoded]:
    return list(itertools.chain.from_iterable(groups))


def plain(engine: ScoringEngine, texts: Sequence[Encoded]) -> np.ndarray:
    """Logit difference of every text alone in a row, on one device."""
    tokens = np.zeros((len(texts), LONGEST), np.int32)
    segments = np.zeros_like(tokens)
    for row, text in enumerate(texts):
        tokens[row, : len(text.tokens)] = text.tokens
        segments[row, : len(text.tokens)] = 1
    positions = np.broadcast_to(np.arange(LONGEST, dtype=np.int32), tokens.shape)
    verdict_at = np.array([[len(text.tokens) - 1] for text in texts])
    where = Execution("float32", "blocked", "none", one_device())
    params = jax.tree.map(np.asarray, engine.params)
    seqs = Sequences(tokens, positions, segments)

    @jax.jit
    def logits(params):
        hidden = hidden_at(hidden_states(params, engine.cfg, seqs, where), verdict_at)
        return label_logits(params, engine.cfg, hidden, LABELS)

    found = logits(params)
    return np.asarray(found[:, 0, 0] - found[:, 0, 1])


def check(engine: ScoringEngine, groups: Sequence[Sequence[Encoded]], *, paired: bool) -> None:
    texts = flat(groups)
    expected = plain(engine, texts)
    found = engine.label_logit_diffs(texts, paired=paired)
    largest = np.abs(expected).max()
    assert largest > 1  # the weights are large enough to tell
    np.testing.assert_allclose(found, expected, atol=2e-6 * largest, rtol=0)
    np.testing.assert_allclose(expit(found), expit(expected), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_beginnings_change_no_logit(family):
    """All ordered comparisons of 2 to 16 responses, ragged, and both orders of pairs."""
    engine, random = make_engine(family), np.random.default_rng(FAMILIES.index(family))
    counts = (2, 3, 5, 16) if family == "qwen3" else (2, 4, 7)
    check(engine, [group_of(random, 90, 70, n) for n in counts], paired=False)
    check(engine, [group_of(random, 90, 70) for _ in range(40)], paired=True)


def test_odd_trees_are_no_different():
    """Responses that are empty, equal or begin alike, prompts that differ in their last word, texts of all lengths."""
    engine, random = make_engine(), np.random.default_rng(7)
    prompt, long = words(random, 60, least=60), words(random, 90, least=90)
    rivals = [long, long[:40], long[:40].copy(), words(random, 0), long[:1], words(random, 30)]
    groups = [all_ordered(prompt, rivals), all_ordered(prompt[:-1], rivals[:3])]
    groups.append([shown(prompt[:size], long[:0], long[:0]) for size in range(1, 60, 7)])
    groups.append([shown(prompt[:3], long, long), shown(prompt[:60], long[:1], long[:1])])
    check(engine, groups, paired=False)
    check(engine, [[one, one] for group in groups for one in group], paired=True)
    check(engine, [group[:2] for group in groups], paired=True)


def test_a_group_that_does_not_fit_one_call_continues_in_the_next(monkeypatch):
    random = np.random.default_rng(3)
    responses = [words(random, 60, least=40) for _ in range(9)]
    group = all_ordered(words(random, 40, least=40), responses)
    monkeypatch.setattr(engine_module, "RANKING_TREE_TOKENS", 1024)
    cut = make_engine()
    found = cut.label_logit_diffs(group, paired=False)
    assert cut.counters.calls > 3
    alone = [cut.label_logit_diffs([text], paired=False)[0] for text in group]
    assert np.array_equal(found, alone)  # to the last bit
    check(cut, [group], paired=False)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_several_devices_find_the_same(mesh):
    engine, random = make_engine("qwen3", make_placement(mesh)), np.random.default_rng(5)
    groups = [group_of(random, 50, 50, 3) for _ in range(6)]
    check(engine, groups, paired=False)
    check(engine, [group[:1] + group[2:3] for group in groups], paired=True)


@pytest.mark.parametrize("paired", [True, False])
def test_the_batch_changes_no_bit(paired):
    """benchmarks/invariance.py has more of them, with the compiler's usual settings."""
    engine, random = make_engine(), np.random.default_rng(1)
    pool = [group_of(random, 30, 30, 2 if paired else 3) for _ in range(60)]
    alone = [engine.label_logit_diffs(group, paired=paired) for group in pool]
    done = 0
    while done < 2_000:
        chosen = random.integers(0, len(pool), random.integers(1, 200))
        found = engine.label_logit_diffs(flat([pool[at] for at in chosen]), paired=paired)
        expected = np.concatenate([alone[at] for at in chosen])
        assert np.array_equal(found.view(np.int32), expected.view(np.int32))
        done += len(found)


def test_a_comparison_of_a_ranking_does_not_depend_on_the_others():
    engine, random = make_engine(), np.random.default_rng(2)
    prompt, responses = words(random, 40, least=9), [words(random, 40) for _ in range(8)]
    orders = list(itertools.permutations(range(8), 2))
    found = engine.label_logit_diffs(all_ordered(prompt, responses), paired=False)
    whole = dict(zip(orders, found, strict=True))
    for _ in range(20):
        some = sorted(orders[at] for at in random.choice(len(orders), 9, replace=False))
        group = [shown(prompt, responses[i], responses[j]) for i, j in some]
        other = group_of(random, 90, 60)
        found = engine.label_logit_diffs([*other, *group], paired=False)[len(other) :]
        assert found.tolist() == [float(whole[pair]) for pair in some]


def test_many_pairs_of_mixed_lengths_need_few_programs():
    """2,000 pairs of a pool, and none of them compiles anything after the warm-up."""
    engine, random = make_engine(), np.random.default_rng(4)
    before = prefix_tree_logits._cache_size()
    engine.warm_up(rankings=True)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    pool = [
        group_of(random, size, size) for size, count in ((12, 400), (80, 40)) for _ in range(count)
    ]
    done = 0
    while done < 2_000:
        chosen = random.integers(0, 400 if done else 440, 500)
        engine.label_logit_diffs(flat([pool[at] for at in chosen]), paired=True)
        done += len(chosen)
    engine.label_logit_diffs(flat(pool[400:]), paired=True)
    assert compiled == []
    assert prefix_tree_logits._cache_size() - before <= 2  # pairs, and trees of rankings


def test_best_of_sixteen_computes_less_than_two_fifths_of_the_tokens():
    """Prompts of 390 and responses of 370 tokens, as real ones have on average; padding counted too."""
    random = np.random.default_rng(0)
    prompt = np.arange(390)
    responses = [random.integers(0, 1000, random.integers(200, 541)) for _ in range(16)]
    texts = all_ordered(prompt, responses)
    shape = prefix_tree_shape(2048, RANKING_TREE_TOKENS)
    calls = list(lay_out(texts, shape, rows=1, paired=False))
    requested = sum(len(text.tokens) for text in texts)
    assert sum(call.work.tokens_requested for call in calls) == requested
    assert sum(len(call.indices) for call in calls) == 240
    tokens = sum(call.work.tokens_unique for call in calls)
    computed = sum(-(-int(used) // BLOCK) for call in calls for used in call.batch.used)
    assert tokens <= 0.38 * requested
    assert computed * BLOCK <= 0.4 * requested


def test_what_was_computed_is_counted():
    engine, random = make_engine(), np.random.default_rng(6)
    prompt, a, b = (words(random, 40, least=20) for _ in range(3))
    group = all_ordered(prompt, [a, b])
    engine.label_logit_diffs(group, paired=True)
    work, length = engine.counters, len(group[0].tokens)
    assert (work.sequences, work.calls, work.tokens_requested) == (2, 1, 2 * length)
    assert work.tokens_unique == 2 * length - len(prompt)
    shared = len(prompt) * (len(prompt) + 1) // 2
    assert work.attention_pairs == length * (length + 1) - shared
    assert work.tokens_computed == BLOCK


@pytest.mark.parametrize("paired", [True, False])
def test_the_number_of_tokens_per_call_changes_no_bit(paired):
    """Rows of other lengths have other numbers of verdicts, whose products must have the same shapes."""
    random = np.random.default_rng(7)
    texts = flat([group_of(random, 60, 40, 2 if paired else 3) for _ in range(12)])
    found = [
        make_engine(tokens_per_call=tokens).label_logit_diffs(texts, paired=paired)
        for tokens in ((768, 2304, 4096) if paired else (1024, 40_000))
    ]
    for other in found[1:]:
        assert other.tolist() == found[0].tolist()
