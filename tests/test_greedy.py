"""A policy's greedy responses as references: each written once, for all callers that wait in one batch."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from gram_jax.errors import DataError
from gram_jax.rl import greedy
from gram_jax.rl.greedy import GreedyResponses
from gram_jax.rl.policy import Policy
from gram_jax.rl.texts import prompt_of


class Writer:
    """A policy that answers with the question in capitals; it remembers its batches and waits at `gate`."""

    def __init__(self):
        self.batches: list[tuple[int, int, int]] = []
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()

    def encode_all(self, prompts, new):
        if any(len(prompt[-1].content) > 9 for prompt in prompts):
            raise DataError("no room")

    def write(self, prompts, *, new, temperature, rows):
        self.asked.set()
        self.gate.wait(20)
        assert temperature == 0
        self.batches.append((len(set(prompts)), len(prompts), rows))
        return SimpleNamespace(texts=[prompt[-1].content.upper() for prompt in prompts])


def asked(*texts: str):
    return [prompt_of(text) for text in texts]


def test_each_prompt_is_written_once_in_batches_of_few_sizes():
    writer = Writer()
    write = GreedyResponses(writer, new=8)
    assert write(asked("a", "b", "a", "c")) == ["A", "B", "A", "C"]
    assert write(asked("c", "a")) == ["C", "A"] and write([]) == []
    assert write(asked("d", "a")) == ["D", "A"]
    assert write(asked(*(f"q{at}" for at in range(40)))) == [f"Q{at}" for at in range(40)]
    assert writer.batches == [(3, 4, 4), (1, 1, 1), (40, 64, 32)]


def test_callers_that_wait_are_written_for_together():
    writer = Writer()
    write = GreedyResponses(writer, new=8)
    writer.gate.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(write, asked("a"))
        assert writer.asked.wait(20)
        others = [pool.submit(write, asked(f"b{at % 4}")) for at in range(8)]
        while len(write._wanted) < 4:
            assert not first.done()
        bad = pool.submit(write, asked("a very long one"))
        with pytest.raises(DataError, match="no room"):  # at once, and for nobody else
            bad.result(20)
        writer.gate.set()
        assert first.result(20) == ["A"]
        assert [x.result(20) for x in others] == [[f"B{at % 4}"] for at in range(8)]
    assert writer.batches == [(1, 1, 1), (4, 4, 4)]


def test_what_has_not_been_asked_for_lately_is_forgotten(monkeypatch):
    monkeypatch.setattr(greedy, "REMEMBERED", 2)
    writer = Writer()
    write = GreedyResponses(writer, new=8)
    for text in ("a", "b", "a", "c", "a", "b"):
        assert write(asked(text)) == [text.upper()]
    assert len(writer.batches) == 4  # a, b, c, and b again
    assert write(asked("x", "y", "z")) == ["X", "Y", "Z"]


def test_a_failure_is_its_callers_and_the_next_is_answered():
    writer = Writer()
    write = GreedyResponses(writer, new=8)
    writer.write, real = lambda *a, **b: 1 / 0, writer.write
    with pytest.raises(ZeroDivisionError):
        write(asked("a"))
    writer.write = real
    assert write(asked("a", "b")) == ["A", "B"]


def test_a_real_policy_writes_what_it_writes_alone():
    policy = Policy.load("tiny-random", compute="float32")
    prompts = asked("Hi", "Name a tree.", "Count to three, and then to four.")
    alone = [policy.write([prompt], new=6, temperature=0).texts[0] for prompt in prompts]
    assert GreedyResponses(policy, new=6)(prompts) == alone
    with pytest.raises(DataError, match="leave out long prompts"):
        GreedyResponses(policy, new=6)(asked("word " * 20_000))
    with pytest.raises(DataError, match="at least one token"):
        GreedyResponses(policy, new=0)
