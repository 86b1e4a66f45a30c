"""Choices by hash: the same on every machine, whatever else is chosen."""

import hashlib


def drawn(seed: int, *what: str) -> int:
    """A number from 0 to 2**64 - 1 for these words.

    >>> drawn(0, "a") == drawn(0, "a") != drawn(1, "a")
    True
    """
    text = "\0".join([str(seed), *what])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
