"""The discriminative baseline: one response at a time gets a reward, and two rewards make a pair's score."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gram_jax.batch import PairBatch, Sequences
from gram_jax.checkpoint.run_info import read_info
from gram_jax.compiler import with_compiler_options
from gram_jax.errors import JudgeError
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.interop.resolve import resolve_model
from gram_jax.judge.encode import encode_items
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import JudgeSpec, check_tokenizer
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import AskedCompute, Execution, inference_execution
from gram_jax.model.heads import hidden_at, scalar_reward
from gram_jax.model.specs import SCALAR_HEAD
from gram_jax.scoring.engine import default_tokens_per_call
from gram_jax.scoring.padded import padded_batches, padded_lengths
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.scoring.scorer import PairTexts
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

WINDOW = 1024  # comparisons that are encoded together


class ScalarRewardModel:
    """A model of stage bradley_terry that reads text; evaluation uses its `stream` as a Scorer's."""

    def __init__(
        self,
        params: Tree,
        cfg: ModelConfig,
        tokenizer: Any,
        spec: JudgeSpec,
        execution: Execution,
    ):
        check_tokenizer(spec, tokenizer)
        if SCALAR_HEAD not in params:
            raise JudgeError(
                "these weights have no scalar head: they are of a generative judge, which a Scorer reads. Choose the "
                "model of a run of stage bradley_terry"
            )
        self.params, self.cfg, self.tokenizer = params, cfg, tokenizer
        self.spec, self.execution = spec, execution
        tokens, shards = (
            default_tokens_per_call(execution, "padded"),
            execution.placement.batch_shards,
        )
        lengths = padded_lengths(spec.max_length)
        self.rows_per_call = {length: max(1, tokens // length) * shards for length in lengths}

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute_dtype: AskedCompute = "auto",
        placement: Placement | None = None,
    ) -> "ScalarRewardModel":
        """The model of a run of stage bradley_terry; options as of a Scorer. Raises JudgeError for another stage."""
        execution = inference_execution(compute_dtype, placement)
        spec = load_spec(name)
        if spec is None:
            raise JudgeError(f"{name} carries no judge.json: expected a run of stage bradley_terry")
        cfg, params = load_model(name, execution.placement, execution.compute_dtype)
        return cls(params, cfg, load_tokenizer(name), spec, execution)

    def rewards(self, items: Iterable[tuple[PromptLike, str]]) -> np.ndarray:
        """Reward of each (prompt, response), f32 [n]; only differences under one prompt mean something."""
        return self.rewards_and_shortened(items)[0]

    def rewards_and_shortened(
        self, items: Iterable[tuple[PromptLike, str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`rewards`, and which responses did not fit the token budget and were shortened, bool [n]."""
        texts = encode_items(self.tokenizer, self.spec.response, items, self.spec.max_length)
        tokens, lengths = [text.tokens for text in texts], list(self.rows_per_call)
        found = np.zeros((len(texts), 1), np.float32)
        for indices, batch in padded_batches(tokens, 1, lengths, self.rows_per_call):
            program = with_compiler_options(
                _scalar_rewards, self.execution.placement, "cfg", "execution"
            )
            rewards = program(self.params, self.cfg, batch, self.execution)
            found[indices[:, 0]] = np.asarray(jax.device_get(rewards))[: len(indices)]
        return found[:, 0], np.array([text.shortened for text in texts], bool)

    def stream(
        self,
        comparisons: Iterable[PairTexts],
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[PairScore]:
        """PairScore of every (prompt, first, second), by the Bradley-Terry model; position_bias is 0.

        progress is called with the number of pairs just scored.
        """
        remaining = iter(comparisons)
        while window := list(islice(remaining, WINDOW)):
            items = ((prompt, text) for prompt, *pair in window for text in pair)
            rewards, shortened = (x.reshape(-1, 2) for x in self.rewards_and_shortened(items))
            progress(len(window))
            for (first, second), cut in zip(rewards.tolist(), shortened, strict=True):
                yield combine_orders(first - second, second - first, bool(cut.any()))


def is_baseline(name: str | Path) -> bool:
    """Whether a model's name is that of a run of stage bradley_terry, which a ScalarRewardModel reads."""
    source = resolve_model(name)
    if source.kind != "run" or source.path is None:
        return False
    return read_info(source.path).get("stage") == "bradley_terry"


@partial(jax.jit, static_argnames=("cfg", "execution"))
def _scalar_rewards(
    params: Tree, cfg: ModelConfig, batch: PairBatch, execution: Execution
) -> jax.Array:
    """batch.seqs: i32 [B, 1, T]; batch.verdict_at: i32 [B, 1], the last real columns. Returns f32 [B, 1]."""
    constrain = execution.placement.constrain
    seqs = Sequences(*(constrain(x[:, 0], "batch", "time") for x in batch.seqs))
    hidden = hidden_at(hidden_states(params, cfg, seqs, execution), batch.verdict_at)
    return constrain(scalar_reward(params, hidden))
