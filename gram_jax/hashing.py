"""Hashes for random decisions: equal on every machine and independent of the order of the data."""

import hashlib


def stable_hash(seed: int, *words: str) -> int:
    """An integer from 0 to 2**64 - 1, a function of (seed, words).

    >>> stable_hash(0, "a") == stable_hash(0, "a") != stable_hash(1, "a")
    True
    """
    text = "\0".join([str(seed), *words])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
