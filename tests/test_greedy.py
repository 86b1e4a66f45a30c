"""A policy's greedy responses as references: generated once each, for all waiting callers in one batch."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from fake_judge import FakeJudge

from gram_jax.errors import DataError
from gram_jax.generation.generator import TextGenerator
from gram_jax.generation.greedy import GreedyResponses
from gram_jax.model.generate import SamplingConfig
from gram_jax.rewards.forms import RewardForm, Rewards
from gram_jax.rewards.messages import prompt_of


class Writer:
    """A policy that answers with the question in capitals; it remembers its batches and waits at `gate`."""

    cfg = SimpleNamespace(context_length=100)

    def __init__(self):
        self.batches: list[tuple[int, int, int]] = []
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()

    def encode_all(self, prompts, max_new_tokens):
        if any(len(prompt[-1].content) > 9 for prompt in prompts):
            raise DataError("no room")
        return [prompt[-1].content for prompt in prompts]

    def generate_from_tokens(self, tokens, sampling, *, batch_size):
        self.asked.set()
        self.gate.wait(20)
        assert sampling.temperature == 0
        self.batches.append((len(set(tokens)), len(tokens), batch_size))
        return SimpleNamespace(texts=[text.upper() for text in tokens])


def asked(*texts: str):
    return [prompt_of(text) for text in texts]


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def write(writer) -> GreedyResponses:
    return GreedyResponses(writer, max_new_tokens=8)


@contextmanager
def busy(writer: Writer, ask, *given):
    """A pool of threads, of which one waits in a generation of ask(*given); and its future."""
    writer.asked.clear()
    writer.gate.clear()
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(ask, *given)
        assert writer.asked.wait(20)
        yield pool, first


def until_pending(write: GreedyResponses, count: int, first) -> None:
    while write.pending < count:
        assert not first.done()


def test_each_prompt_is_written_once_in_batches_of_few_sizes(writer, write):
    assert write(asked("a", "b", "a", "c")) == ["A", "B", "A", "C"]
    assert write(asked("c", "a")) == ["C", "A"] and write([]) == []
    assert write(asked("d", "a")) == ["D", "A"]
    assert write(asked(*(f"q{at}" for at in range(40)))) == [f"Q{at}" for at in range(40)]
    assert writer.batches == [(3, 4, 4), (1, 1, 1), (40, 64, 32)]


def test_prompts_of_waiting_callers_are_one_batch(writer, write):
    with busy(writer, write, asked("a")) as (pool, first):
        others = [pool.submit(write, asked(f"b{at % 4}")) for at in range(8)]
        until_pending(write, 4, first)
        bad = pool.submit(write, asked("a very long one"))
        with pytest.raises(DataError, match="no room"):  # at once, and for nobody else
            bad.result(20)
        writer.gate.set()
        assert first.result(20) == ["A"]
        assert [x.result(20) for x in others] == [[f"B{at % 4}"] for at in range(8)]
    assert writer.batches == [(1, 1, 1), (4, 4, 4)]


def test_a_timeout_is_an_error_and_cached_prompts_do_not_wait(writer, write):
    assert write(asked("known")) == ["KNOWN"]
    with busy(writer, write, asked("a")) as (_, first):
        assert write(asked("known", "known")) == ["KNOWN"] * 2
        with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
            write(asked("b"), 0.05)
        writer.gate.set()
        assert first.result(20) == ["A"]
    assert write(asked("c")) == ["C"] and write(asked("b")) == ["B"]
    assert writer.batches[2:] == [(2, 2, 2)]  # b was still wanted, and came along


def test_a_failed_batch_is_retried_without_the_other_callers(writer, write):
    real = writer.generate_from_tokens

    def weak(tokens, sampling, **options):
        if "bad" in tokens:
            raise MemoryError
        return real(tokens, sampling, **options)

    writer.generate_from_tokens = weak
    with busy(writer, write, asked("a")) as (pool, first):
        others = {text: pool.submit(write, asked(text)) for text in ("b", "bad")}
        until_pending(write, 2, first)
        writer.gate.set()
        assert first.result(20) == ["A"] and others["b"].result(20) == ["B"]
        with pytest.raises(MemoryError):
            others["bad"].result(20)


def test_prompts_of_threads_of_one_reward_are_one_batch(writer, write):
    rewards = Rewards(FakeJudge(), RewardForm("reference"), write=write)
    with busy(writer, rewards.of, ["a"], ["A"]) as (pool, first):
        others = [pool.submit(rewards.of, [f"b{at}"], [f"B{at}"]) for at in range(4)]
        until_pending(write, 4, first)
        writer.gate.set()
        assert [x.result(20) for x in (first, *others)] == [[0.5]] * 5
    assert writer.batches == [(1, 1, 1), (4, 4, 4)]


def test_the_least_recently_used_prompt_is_dropped(writer):
    write = GreedyResponses(writer, max_new_tokens=8, cache_size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        assert write(asked(text)) == [text.upper()]
    assert len(writer.batches) == 4  # a, b, c, and b again
    assert write(asked("x", "y", "z")) == ["X", "Y", "Z"]


def test_a_failed_call_raises_and_the_next_one_succeeds(writer, write):
    writer.generate_from_tokens, real = lambda *a, **b: 1 / 0, writer.generate_from_tokens
    with pytest.raises(ZeroDivisionError):
        write(asked("a"))
    writer.generate_from_tokens = real
    assert write(asked("a", "b")) == ["A", "B"]


def test_a_real_model_generates_what_it_generates_alone():
    generator = TextGenerator.load("tiny-random", compute_dtype="float32")
    prompts = asked("Hi", "Name a tree.", "Count to three, and then to four.")
    greedy = SamplingConfig(max_new_tokens=6, temperature=0)
    alone = [generator.generate([prompt], greedy).texts[0] for prompt in prompts]
    assert GreedyResponses(generator, max_new_tokens=6)(prompts) == alone
    with pytest.raises(DataError, match="max_new_tokens = 6"):
        GreedyResponses(generator, max_new_tokens=6)(asked("word " * 20_000))
    for max_new_tokens in (0, generator.cfg.context_length):
        with pytest.raises(DataError, match="at least one token, and fewer than the"):
            GreedyResponses(generator, max_new_tokens=max_new_tokens)
