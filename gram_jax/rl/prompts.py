"""The prompts of a run, and those of a step."""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np

from gram_jax.data.mapping import ColumnMap
from gram_jax.data.reading import read_records
from gram_jax.data.records import Comparison
from gram_jax.errors import DataError
from gram_jax.generation.generator import TextGenerator
from gram_jax.judge.messages import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts, their tokens for the policy, and the preferred responses of the data."""

    prompts: list[Prompt]
    tokens: list[np.ndarray]
    preferred: dict[Prompt, str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the prompts' tokens and the preferred responses."""
        digest = hashlib.sha256()
        for prompt, tokens in zip(self.prompts, self.tokens, strict=True):
            digest.update(np.int64(len(tokens)).tobytes() + tokens.astype(np.int32).tobytes())
            digest.update(self.preferred.get(prompt, "").encode() + b"\0")
        return digest.hexdigest()[:16]

    def draw(self, count: int, number: int, seed: int) -> list[int]:
        """Indices of the prompts of step `number`: every prompt once before one is repeated."""
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
    map: ColumnMap | None = None,
    longest: int,
    limit: int | None,
) -> PromptSet:
    """Up to `limit` prompts of a source with at most `longest` tokens each.

    Raises DataError if there are none, or what reading raises.
    """
    records, _ = read_records(source, "prompts", schema=schema, map=map)
    prompts = list(dict.fromkeys(record.prompt for record in records))
    tokens = [generator.encode(prompt) for prompt in prompts]
    kept = [at for at, ids in enumerate(tokens) if len(ids) <= longest][:limit]
    if not kept:
        raise DataError(f"{source}: none of {len(prompts)} prompts has at most {longest} tokens")
    if len(kept) < len(prompts):
        logger.info("%s: %d of %d prompts are taken", source, len(kept), len(prompts))
    preferred = {
        record.prompt: record.chosen
        for record in reversed(records)  # keeps the first one of a prompt
        if isinstance(record, Comparison) and record.has_preference
    }
    return PromptSet([prompts[at] for at in kept], [tokens[at] for at in kept], preferred)
