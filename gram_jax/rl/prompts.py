"""The prompts that a policy answers, and which of them a step takes."""

from dataclasses import dataclass

import numpy as np

from gram_jax.console import Console
from gram_jax.data.comparison import Comparison
from gram_jax.data.records import read_records, source_kind
from gram_jax.errors import DataError
from gram_jax.generation.generator import TextGenerator
from gram_jax.judge.messages import Prompt


@dataclass(frozen=True)
class Prompts:
    """Different prompts, with their tokens as the policy reads them, and the responses that people preferred."""

    prompts: list[Prompt]
    tokens: list[np.ndarray]
    preferred: dict[Prompt, str]

    def draw(self, count: int, number: int, seed: int) -> list[int]:
        """Which prompts step `number` takes: every prompt once before any comes again."""
        size = len(self.prompts)
        places = range(number * count, (number + 1) * count)
        orders = {
            turn: np.random.default_rng([seed, turn]).permutation(size)
            for turn in {place // size for place in places}
        }
        return [int(orders[place // size][place % size]) for place in places]


def read_prompts(
    source: str,
    generator: TextGenerator,
    *,
    schema: str,
    longest: int,
    limit: int | None,
    console: Console,
) -> Prompts:
    """The prompts of a source that have at most `longest` tokens, `limit` of them.

    Raises DataError where none is left, and what reading raises.
    """
    records, _ = read_records(source, source_kind(source, schema=schema), schema=schema)
    prompts = list(dict.fromkeys(record.prompt for record in records))
    tokens = [generator.encode(prompt) for prompt in prompts]
    kept = [at for at, ids in enumerate(tokens) if len(ids) <= longest][:limit]
    if not kept:
        raise DataError(f"{source}: none of {len(prompts)} prompts has at most {longest} tokens")
    if len(kept) < len(prompts):
        console.say(f"{source}: {len(kept):,} of {len(prompts):,} prompts are taken")
    preferred = {
        record.prompt: record.chosen
        for record in reversed(records)  # the first one of a prompt stays
        if isinstance(record, Comparison) and record.has_preference
    }
    return Prompts([prompts[at] for at in kept], [tokens[at] for at in kept], preferred)
