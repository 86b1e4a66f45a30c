"""The discriminative baseline: one response at a time gets a reward, and two rewards make a pair's score."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gram_jax.batch import PairBatch, Sequences
from gram_jax.errors import JudgeError
from gram_jax.interop.models import has_scalar_head, load_spec, load_tokenizer
from gram_jax.judge.encode import encode_items
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import AskedCompute, Execution, inference_execution
from gram_jax.model.heads import hidden_at, scalar_reward
from gram_jax.model.specs import SCALAR_HEAD
from gram_jax.ranking.jobs import RankingConfig, distinct_texts
from gram_jax.ranking.tournament import Ranking, ranking_of_rewards
from gram_jax.scoring.engine import default_tokens_per_call
from gram_jax.scoring.padded import pad_items, padded_batches, padded_lengths
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.scoring.scorer import (
    Scorer,
    Weights,
    check_budget,
    check_spec,
    default_window,
    load_weights,
)
from gram_jax.scoring.text_scorer import PairTexts, TextScorer
from gram_jax.sharding import Placement
from gram_jax.tree import Tree


class ScalarRewardModel(TextScorer):
    """A judge with a scalar head: a run of stage bradley_terry, or a reward model.

    It has all methods of a Scorer. A pair is scored by the Bradley-Terry model, P(first is better) = sigmoid of the
    difference of the rewards, so there is no position bias; a ranking of n responses computes n rewards, whatever its
    method. The bits of a reward do not depend on what else is scored.
    """

    def __init__(
        self,
        params: Tree,
        cfg: ModelConfig,
        tokenizer: Any,
        spec: JudgeSpec,
        execution: Execution,
        *,
        tokens_per_call: int | None = None,
    ):
        check_spec(spec, tokenizer, cfg)
        if SCALAR_HEAD not in params:
            raise JudgeError(
                "these weights have no scalar head: they are of a generative judge, which a Scorer reads. Choose the "
                "model of a run of stage bradley_terry"
            )
        super().__init__(tokenizer, spec)
        self.params, self.cfg, self.execution = params, cfg, execution
        self.window = default_window(execution)
        self.tokens_per_call = tokens_per_call or default_tokens_per_call(execution, "padded")
        shards, lengths = execution.placement.batch_shards, padded_lengths(spec.max_length)
        self.rows_per_call = {
            length: max(1, self.tokens_per_call // length) * shards for length in lengths
        }

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute_dtype: AskedCompute = "auto",
        weights: Weights = "auto",
        max_length: int | None = None,
        tokens_per_call: int | None = None,
        placement: Placement | None = None,
        spec: JudgeSpec | None = None,
    ) -> "ScalarRewardModel":
        """The model of a run of stage bradley_terry; options as of Scorer.load."""
        execution = inference_execution(compute_dtype, placement)
        tokenizer = load_tokenizer(name)
        spec = spec or load_spec(name)
        if spec is None:
            raise JudgeError(f"{name} carries no judge.json: expected a run of stage bradley_terry")
        check_budget(spec, max_length)
        cfg, params = load_weights(name, execution, weights)
        return cls(params, cfg, tokenizer, spec, execution, tokens_per_call=tokens_per_call)

    @property
    def program(self) -> str:
        """The program of rewards; its shapes follow from its number of tokens."""
        return f"scalar, {self.tokens_per_call} tokens"

    def warm_up(self, *, rankings: bool = False) -> None:
        """Compile the program of every length before the first call; rankings have no other."""
        for length, rows in self.rows_per_call.items():
            batch = pad_items([np.zeros(1, np.int32)] * rows, 1, length)
            jax.block_until_ready(_scalar_rewards(self.params, self.cfg, batch, self.execution))

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
            rewards = _scalar_rewards(self.params, self.cfg, batch, self.execution)
            found[indices[:, 0]] = np.asarray(jax.device_get(rewards))[: len(indices)]
        return found[:, 0], np.array([text.shortened for text in texts], bool)

    def stream(
        self,
        comparisons: Iterable[PairTexts],
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[PairScore]:
        """As Scorer.stream."""
        remaining = iter(comparisons)
        while window := list(islice(remaining, self.window)):
            items = ((prompt, text) for prompt, *pair in window for text in pair)
            rewards, shortened = (x.reshape(-1, 2) for x in self.rewards_and_shortened(items))
            progress(len(window))
            for (first, second), cut in zip(rewards.tolist(), shortened, strict=True):
                yield combine_orders(first - second, second - first, bool(cut.any()))

    def rank_many(
        self,
        items: Iterable[tuple[PromptLike, Sequence[str]]],
        config: RankingConfig | None = None,
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Ranking]:
        """As Scorer.rank_many; the order is that of the rewards with every method."""
        remaining = iter(items)
        while window := list(islice(remaining, self.window)):
            texts = [distinct_texts(responses) for _, responses in window]
            rewards, shortened = self.rewards_and_shortened(
                (prompt, text)
                for (prompt, _), own in zip(window, texts, strict=True)
                for text in own
            )
            progress(len(window))
            ends = np.cumsum([len(own) for own in texts])[:-1]
            for (_, responses), own, mine, cut in zip(
                window, texts, np.split(rewards, ends), np.split(shortened, ends), strict=True
            ):
                places = {text: at for at, text in enumerate(own)}
                ranking = ranking_of_rewards(mine).of_texts([places[text] for text in responses])
                yield ranking._replace(shortened=bool(cut.any()))


Judge = Scorer | ScalarRewardModel  # a judge whose model is in this process


def load_judge(name: str | Path, **options: Any) -> Judge:
    """The judge of a model by its name: a ScalarRewardModel if it has a scalar head, else a Scorer.

    options: those of Scorer.load.

    >>> type(load_judge("tiny-random")).__name__
    'Scorer'
    """
    return (ScalarRewardModel if has_scalar_head(name) else Scorer).load(name, **options)


@partial(jax.jit, static_argnames=("cfg", "execution"))
def _scalar_rewards(
    params: Tree, cfg: ModelConfig, batch: PairBatch, execution: Execution
) -> jax.Array:
    """batch.seqs: i32 [B, 1, T]; batch.verdict_at: i32 [B, 1], the last real columns. Returns f32 [B, 1]."""
    constrain = execution.placement.constrain
    seqs = Sequences(*(constrain(x[:, 0], "batch", "time") for x in batch.seqs))
    hidden = hidden_at(hidden_states(params, cfg, seqs, execution), batch.verdict_at)
    return constrain(scalar_reward(params, hidden))
