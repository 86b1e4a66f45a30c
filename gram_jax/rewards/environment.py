"""Rewards from environment variables, for trainers that load a reward function from a file and pass no settings.

GRAM_JAX_JUDGE: the model. GRAM_JAX_COMPARE_WITH (reference), GRAM_JAX_SCALE (probability), GRAM_JAX_LENGTH_PENALTY (0):
the form of the reward. GRAM_JAX_REFERENCES: a JSON list of texts that all responses are compared with.
GRAM_JAX_END_TOKENS: a JSON list of the policy's end tokens, if it is of no family that rewards/chats.py lists.
GRAM_JAX_POLICY: a model whose greedy response, of at most GRAM_JAX_MAX_NEW_TOKENS (256) tokens, is the reference if
there is no other.
"""

import json
import os
import sys
from functools import cache
from threading import Lock
from typing import cast

from gram_jax.errors import DataError
from gram_jax.generation.generator import TextGenerator
from gram_jax.generation.greedy import MAX_NEW_TOKENS, GreedyResponses
from gram_jax.rewards.forms import ComparedWith, RewardForm, Rewards, RewardScale
from gram_jax.rewards.group_buffer import GroupBuffer
from gram_jax.scoring.request_batcher import BatchedScorer, RequestBatcher
from gram_jax.scoring.scalar import load_judge

_LOADING = Lock()


def rewards_from_environment() -> Rewards:
    """Loaded once per process, by the first thread that calls. Raises DataError for missing or wrong variables."""
    with _LOADING:
        return load_rewards()


@cache
def load_rewards() -> Rewards:
    """Rewards from the environment; not thread-safe (rewards_from_environment is)."""
    model = os.environ.get("GRAM_JAX_JUDGE")
    if not model:
        raise DataError(
            "GRAM_JAX_JUDGE is not set: expected the judge, as a run, an exported folder or a hub name"
        )
    try:
        references, ends = _texts("GRAM_JAX_REFERENCES"), _texts("GRAM_JAX_END_TOKENS")
        penalty = float(os.environ.get("GRAM_JAX_LENGTH_PENALTY", "0"))
        max_new_tokens = int(os.environ.get("GRAM_JAX_MAX_NEW_TOKENS", MAX_NEW_TOKENS))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "GRAM_JAX_REFERENCES and GRAM_JAX_END_TOKENS are JSON lists of texts, GRAM_JAX_LENGTH_PENALTY a number, "
            f"GRAM_JAX_MAX_NEW_TOKENS an integer: {error}"
        ) from error
    form = RewardForm(  # checks both words
        compare_with=cast(ComparedWith, os.environ.get("GRAM_JAX_COMPARE_WITH", "reference")),
        scale=cast(RewardScale, os.environ.get("GRAM_JAX_SCALE", "probability")),
        references=references,
        length_penalty=penalty,
        end_tokens=ends,
    )
    write = None
    if policy := os.environ.get("GRAM_JAX_POLICY"):
        form.check_writer()  # before anything is loaded
        write = GreedyResponses(TextGenerator.load(policy), max_new_tokens=max_new_tokens)
    # Trainers send one sample at a time from many threads, and a padded call costs the same for one as for many.
    judge = BatchedScorer(RequestBatcher(load_judge(model), max_queue=sys.maxsize))
    return Rewards(judge, form, write=write, buffer=GroupBuffer())


def _texts(variable: str) -> tuple[str, ...]:
    """The texts of a variable, () if it is not set. Raises ValueError if they are not a JSON list of texts."""
    found = json.loads(os.environ.get(variable, "[]"))
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{variable} is {found!r:.60}")
    return tuple(found)
