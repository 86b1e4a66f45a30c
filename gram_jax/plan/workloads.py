"""Comparisons of random tokens with the lengths of real ones."""

import itertools

import numpy as np

from gram_jax.judge.encode import Encoded

# Long-tailed lengths, as pairs of real data have them: median 600, a tenth above 1,500.
MIX = "mix"
MIX_MEDIAN, MIX_SIGMA = 600, 0.75
HEAD = 0.35  # share of a sequence that is instruction and question; both responses have the rest
RANKED_LENGTH = 1024


def random_pairs(length: str, count: int, max_length: int, vocab: int) -> list[Encoded]:
    """Both orders of `count` pairs of random tokens: sequences of `length` tokens, or of the long-tailed mix."""
    random = np.random.default_rng(0)
    if length == MIX:
        drawn = np.exp(random.normal(np.log(MIX_MEDIAN), MIX_SIGMA, count))
        lengths = np.clip(drawn, 32, max_length).astype(int)
    else:
        lengths = np.full(count, int(length))
    orders = []
    for total in lengths:
        head = int(total * HEAD)
        one = int((total - head) * random.uniform(0.3, 0.7))
        texts = [random.integers(0, vocab, size) for size in (head, one, total - head - one)]
        orders += [_encoded(texts[0], *pair) for pair in (texts[1:], texts[:0:-1])]
    return orders


def random_ranking(count: int, max_length: int, vocab: int) -> list[Encoded]:
    """All ordered comparisons of `count` responses to one prompt, of at most about RANKED_LENGTH tokens each."""
    random = np.random.default_rng(0)
    length = min(RANKED_LENGTH, max_length)
    head = random.integers(0, vocab, int(length * HEAD))
    size = (length - len(head)) // 2
    responses = [
        random.integers(0, vocab, int(size * random.uniform(0.7, 1.3))) for _ in range(count)
    ]
    orders = itertools.permutations(range(count), 2)
    return [_encoded(head, responses[i], responses[j]) for i, j in orders]


def _encoded(head: np.ndarray, first: np.ndarray, second: np.ndarray) -> Encoded:
    tokens = np.concatenate([head, first, second]).astype(np.int32)
    starts = (len(head), len(head) + len(first))
    return Encoded(tokens, np.zeros(len(tokens), np.float32), field_starts=starts)
