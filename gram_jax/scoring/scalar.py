"""The discriminative baseline: one response at a time gets a reward, and two rewards make a pair's score."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gram_jax.batch import PairBatch, Sequences
from gram_jax.compiler import with_compiler_options
from gram_jax.data.inputs import PairTexts
from gram_jax.errors import JudgeError
from gram_jax.finite import check_finite
from gram_jax.interop.models import has_scalar_head, load_tokenizer, reward_spec
from gram_jax.judge.encode import Encoded, ItemEncoder, encode_items
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import JudgeSpec, check_tokenizer
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import AskedCompute, Execution, inference_execution
from gram_jax.model.heads import hidden_at, scalar_reward
from gram_jax.model.quantize import Weights
from gram_jax.model.specs import SCORE
from gram_jax.scoring.engine import default_tokens_per_call
from gram_jax.scoring.fingerprint import local_identity
from gram_jax.scoring.padded import pad_items, padded_batches, padded_lengths
from gram_jax.scoring.scorer import (
    Scorer,
    check_budget,
    check_context,
    load_weights,
    text_window,
)
from gram_jax.scoring.text_scorer import ComparisonEncoder, ScorerIdentity, TextScorer
from gram_jax.sharding import Placement
from gram_jax.tree import Tree


class ScalarRewardModel(TextScorer):
    """A judge with a scalar head: a run of stage bradley_terry, or a reward model.

    It has all methods of a Scorer. A pair is scored by the Bradley-Terry model, P(first is better) = sigmoid of the
    difference of the rewards, so there is no position bias. Each round of a ranking computes the reward of each
    response once. The bits of a reward do not depend on what else is scored.
    """

    reads_comparisons = False

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
        check_tokenizer(spec, tokenizer)
        check_context(spec, cfg)
        if SCORE not in params:
            raise JudgeError(
                "these weights have no scalar head: they are of a generative judge, which a Scorer reads. Choose the "
                "model of a run of stage bradley_terry"
            )
        super().__init__(tokenizer, spec)
        self.params, self.cfg, self.execution = params, cfg, execution
        self.tokens_per_call = tokens_per_call or default_tokens_per_call(execution, "padded")
        self.window, self.call_tokens = text_window(execution, self.tokens_per_call)
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
        """A run of stage bradley_terry, or a reward model with one label; options as of Scorer.load."""
        execution = inference_execution(compute_dtype, placement)
        tokenizer = load_tokenizer(name)
        spec = spec or reward_spec(name, tokenizer, max_length)
        check_budget(spec, max_length)
        cfg, params = load_weights(name, execution, weights)
        return cls(params, cfg, tokenizer, spec, execution, tokens_per_call=tokens_per_call)

    @property
    def identity(self) -> ScorerIdentity:
        """What the results depend on, apart from the specification. The fingerprint reads all weights."""
        return local_identity(self.params, self.execution, self.program)

    @property
    def program(self) -> str:
        """The program of rewards; its shapes follow from its number of tokens."""
        return f"scalar, {self.tokens_per_call} tokens"

    def warm_up(self, *, rankings: bool = False) -> None:
        """Compile the program of every length before the first call; rankings have no other."""
        for length, rows in self.rows_per_call.items():
            batch = pad_items([np.zeros(1, np.int32)] * rows, 1, length)
            jax.block_until_ready(self._program(self.params, self.cfg, batch, self.execution))

    def rewards(self, items: Iterable[tuple[PromptLike, str]]) -> np.ndarray:
        """Reward of each (prompt, response), f32 [n]; only differences under one prompt mean something."""
        texts = encode_items(self.tokenizer, self.spec.response, items, self.spec.max_length)
        return self._rewards([text.tokens for text in texts])

    def encoder(self) -> ComparisonEncoder:
        """Encodes each response of a comparison with the prompt, and puts the two texts together."""
        return _ResponsesEncoder(
            ItemEncoder(self.tokenizer, self.spec.response, self.spec.max_length)
        )

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Reward of the first response minus that of the second, f32 [n]; a text that occurs twice is computed once."""
        both = [np.split(text.tokens, text.field_starts[:1]) for text in sequences]
        known: dict[bytes, int] = {}
        at = [known.setdefault(x.tobytes(), len(known)) for pair in both for x in pair]
        rewards = self._rewards([np.frombuffer(text, np.int32) for text in known])
        progress(len(sequences))
        first, second = rewards[np.array(at, int).reshape(-1, 2)].T
        return first - second

    @property
    def _program(self) -> Callable[..., jax.Array]:
        return with_compiler_options(_scalar_rewards, self.execution.placement, "cfg", "execution")

    def _rewards(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        found = np.zeros((len(texts), 1), np.float32)
        for indices, batch in padded_batches(
            texts, 1, list(self.rows_per_call), self.rows_per_call
        ):
            rewards = self._program(self.params, self.cfg, batch, self.execution)
            found[indices[:, 0]] = np.asarray(jax.device_get(rewards))[: len(indices)]
        return check_finite(found[:, 0], "the rewards", "responses")


class _ResponsesEncoder(NamedTuple):
    """field_starts of what it returns: where the text of the second response begins."""

    one: ItemEncoder

    def encode(self, items: Iterable[PairTexts]) -> list[Encoded]:
        items = list(items)
        texts = self.one.encode((prompt, text) for prompt, *pair in items for text in pair)
        return [
            Encoded(
                tokens=np.concatenate([first.tokens, second.tokens]),
                weights=np.concatenate([first.weights, second.weights]),
                removed=first.removed + second.removed,
                replaced=first.replaced + second.replaced,
                field_starts=(len(first.tokens), len(first.tokens)),
            )
            for first, second in zip(texts[::2], texts[1::2], strict=True)
        ]


Judge = Scorer | ScalarRewardModel  # a judge whose model is in this process


def load_judge(name: str | Path, **options: Any) -> Judge:
    """Load a judge by name: a ScalarRewardModel if the model has a scalar head, else a Scorer.

    options: the keyword arguments of Scorer.load. Raises its errors.

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
