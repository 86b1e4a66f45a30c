"""The judge that environment variables describe, for trainers that load a reward from a file and pass no settings.

GRAM_JAX_JUDGE: the model, as everywhere. GRAM_JAX_AGAINST (reference), GRAM_JAX_AS (probability),
GRAM_JAX_LENGTH_PENALTY (0): the form of the reward. GRAM_JAX_REFERENCES: a JSON list of texts that all responses are
compared with. GRAM_JAX_POLICY, GRAM_JAX_NEW (256): a model whose greedy response, of so many tokens at most, is the
reference where there is no other.
"""

import json
import os
import sys
from functools import cache
from threading import Lock
from typing import cast

from gram_jax.errors import DataError
from gram_jax.generation.generator import Policy
from gram_jax.generation.greedy import NEW, GreedyResponses
from gram_jax.rewards.forms import Against, As, RewardForm, Rewards, check_written
from gram_jax.scoring.request_batcher import BatchedScorer, RequestBatcher
from gram_jax.scoring.scorer import Scorer

_LOADING = Lock()


def rewards_from_environment() -> Rewards:
    """Loaded once for a process, by whichever thread asks first. Raises DataError for what is missing or wrong."""
    with _LOADING:
        return _load()


@cache
def _load() -> Rewards:
    model = os.environ.get("GRAM_JAX_JUDGE")
    if not model:
        raise DataError(
            "GRAM_JAX_JUDGE is not set: expected the judge to reward with, as a run, an exported folder or a hub name"
        )
    try:
        references = json.loads(os.environ.get("GRAM_JAX_REFERENCES", "[]"))
        penalty = float(os.environ.get("GRAM_JAX_LENGTH_PENALTY", "0"))
        new = int(os.environ.get("GRAM_JAX_NEW", NEW))
    except ValueError as error:
        raise DataError(
            "GRAM_JAX_REFERENCES is a JSON list of texts, GRAM_JAX_LENGTH_PENALTY a number, GRAM_JAX_NEW a whole "
            f"one: {error}"
        ) from error
    form = RewardForm(  # which refuses other words than its own
        against=cast(Against, os.environ.get("GRAM_JAX_AGAINST", "reference")),
        as_=cast(As, os.environ.get("GRAM_JAX_AS", "probability")),
        references=tuple(references),
        length_penalty=penalty,
    )
    policy = os.environ.get("GRAM_JAX_POLICY")
    if policy:
        check_written(form)  # before anything is loaded
    write = GreedyResponses(Policy.load(policy), new=new) if policy else None
    # Both trainers ask for a sample at a time from many threads, and a padded call costs the same for one as for many.
    judge = BatchedScorer(RequestBatcher(Scorer.load(model), max_queue=sys.maxsize))
    return Rewards(judge, form, write=write)
