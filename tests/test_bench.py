"""The throughput report: its counts against counting by hand, and what it rejects."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import run_cli
from conftest import tiny_config

from gram_jax.errors import GramError
from gram_jax.interop.models import load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.plan.bench import MIX, BenchConfig, run_bench
from gram_jax.plan.flops import judging_flops, layer_weights
from gram_jax.plan.workloads import random_pairs, random_ranking
from gram_jax.scoring.calls import WorkCounters

SPEC = make_spec(load_tokenizer("tiny-random"), max_length=256)

pytestmark = pytest.mark.filterwarnings("ignore:.*no judge.json")


def by_hand(cfg, sequences: list[int]) -> float:
    """Multiply-adds of every product for sequences that share nothing, one by one."""
    D, N, K, H, F = cfg.embed_size, cfg.query_heads, cfg.kv_heads, cfg.head_size, cfg.mlp_size
    total = 0
    for length in sequences:
        for layer in range(cfg.layers):
            for token in range(length):
                total += 2 * 2 * D * K * H  # its key and its value
                if layer < cfg.layers - 1 or token == length - 1:
                    total += 2 * (D * N * H + N * H * D + 3 * D * F) + 2 * 2 * N * H * (token + 1)
    return total


def test_flops_are_those_that_verdicts_need():
    cfg, lengths = tiny_config("qwen3", True), [3, 5, 8]
    tokens, pairs = sum(lengths), sum(n * (n + 1) // 2 for n in lengths)
    work = WorkCounters(3, tokens_requested=tokens, tokens_unique=tokens, attention_pairs=pairs)
    everything = 2 * layer_weights(cfg) * tokens + 4 * cfg.layers * cfg.query_heads * 16 * pairs
    assert judging_flops(cfg, work) == by_hand(cfg, lengths) < everything


def test_workloads_have_the_lengths_that_they_say():
    first, second, *_ = random_pairs("100", 3, 500, 50)
    assert len(first.tokens) == len(second.tokens) == 100
    at = first.field_starts[0]
    assert np.array_equal(first.tokens[:at], second.tokens[:at])
    assert sorted(first.tokens[at:]) == sorted(second.tokens[at:])
    lengths = [len(text.tokens) for text in random_pairs(MIX, 2000, 100_000, 50)[::2]]
    assert 560 < np.median(lengths) < 640
    assert 0.08 < np.mean(np.array(lengths) > 1500) < 0.15
    assert len(random_ranking(5, 100, 50)) == 20


@pytest.mark.slow
def test_what_is_reported_is_what_was_done():
    wanted = BenchConfig(
        model="tiny-random", lengths=("64", MIX), best_of=(4,), pairs=3, rounds=2, max_length=256
    )
    found = run_bench(wanted).to_dict()
    json.dumps(found)
    fixed, mix, ranked = found["workloads"]
    assert fixed["comparisons"] == mix["comparisons"] == 3 and ranked["comparisons"] == 6
    assert fixed["work"]["tokens_requested"] == 3 * 2 * 64 and fixed["work"]["sequences"] == 6
    head = int(64 * 0.35)
    assert fixed["work"]["tokens_unique"] == 3 * (2 * 64 - head)
    assert fixed["shared"] == pytest.approx(head / 128)
    assert ranked["shared"] > 0.4
    for one in found["workloads"]:
        assert 0 < one["useful"] <= 1 and 0 < one["of_ceiling"] < 1
        assert one["pairs_per_second"] == pytest.approx(one["comparisons"] / one["seconds"])
        assert one["of_peak"] is None
    assert {*found["seconds_before"]} == {"load", "compile and warm up"}
    assert found["peak_bytes"] > 1e8


@pytest.mark.slow
def test_texts_are_measured_from_text_to_score(tmp_path: Path):
    source = tmp_path / "pairs.jsonl"
    row = {"prompt": "q", "response_a": "x", "response_b": "yy"}
    source.write_text("".join(json.dumps(row | {"prompt": "q" * n}) + "\n" for n in range(1, 6)))
    words = (
        f"bench {source} -m tiny-random --pairs 4 --rounds 1 --json --weights int8 --method padded"
    )
    done = run_cli(*words.split())
    found = json.loads(done.stdout)
    assert found["program"] == "padded" and found["workloads"][0]["comparisons"] == 4
    assert "tokenize" in found["seconds_before"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": "a", "model_config": "b"},
        {"model_config": "qwen3-1.7b", "source": "x.jsonl"},
        {"model_config": "qwen3-1.7b", "spec": SPEC},
        {"model": "a", "lengths": ("1k",)},
        {"model": "tiny-random", "lengths": ("300",), "max_length": 256},
        {"model": "tiny-random", "lengths": ("300",), "spec": SPEC},
        {"model_config": "no-such-shape"},
    ],
)
def test_options_that_do_not_go_together_are_rejected(options):
    with pytest.raises(GramError, match=r"model|length|256"):
        run_bench(BenchConfig(**options))
