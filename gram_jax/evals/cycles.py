"""Cycles of preferences: a is better than b, b than c, and c than a."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gram_jax.data.records import Comparison
from gram_jax.judge.messages import Prompt
from gram_jax.ranking.tournament import count_cycles


def cycle_rate(tables: Iterable[np.ndarray]) -> float | None:
    """Share of cycles among the triples of responses whose three pairs were compared; None without such a triple.

    tables: of each prompt f64 [n, n], log-odds that response i is better than j, antisymmetric, nan if not compared.
    """
    counts = [
        count_cycles(table, ~np.isnan(table) & ~np.eye(len(table), dtype=bool)) for table in tables
    ]
    cyclic, triples = np.sum(counts, axis=0) if counts else (0.0, 0.0)
    return float(cyclic / triples) if triples else None


def pair_tables(pairs: Sequence[Comparison], margin: np.ndarray) -> Iterator[np.ndarray]:
    """A table of each prompt from labeled pairs; margin: log-odds of the chosen responses, [n]."""
    of_prompt: dict[Prompt, list[int]] = defaultdict(list)
    for at, pair in enumerate(pairs):
        of_prompt[pair.prompt].append(at)
    for group in of_prompt.values():
        if len(group) > 2:  # a triple has three pairs
            yield _table([pairs[at] for at in group], margin[group])


def _table(pairs: Sequence[Comparison], margin: np.ndarray) -> np.ndarray:
    texts = {text for pair in pairs for text in (pair.chosen, pair.rejected)}
    index = {text: at for at, text in enumerate(sorted(texts))}
    table = np.full((len(index), len(index)), np.nan)
    for pair, log_odds in zip(pairs, margin.tolist(), strict=True):
        i, j = index[pair.chosen], index[pair.rejected]
        table[i, j], table[j, i] = log_odds, -log_odds
    return table
