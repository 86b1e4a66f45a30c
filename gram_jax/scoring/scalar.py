"""The discriminative baseline at work: one response at a time gets a reward, and two rewards make a pair's score."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gram_jax.batch import Sequences
from gram_jax.checkpoint.run_info import read_info
from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.errors import JudgeError
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.interop.resolve import resolve_model
from gram_jax.judge.encode import Encoded, encode_items
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import JudgeSpec, check_tokenizer
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import AskedCompute, Execution
from gram_jax.model.heads import hidden_at, scalar_reward
from gram_jax.model.specs import SCALAR_HEAD
from gram_jax.scoring.engine import default_tokens_per_call
from gram_jax.scoring.padded import pad_rows, padded_lengths
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.scoring.scorer import PairTexts, compute_type
from gram_jax.sharding import Placement, make_placement
from gram_jax.tree import Tree

WINDOW = 1024  # comparisons that are encoded together


class ScalarRewardModel:
    """A model of stage bradley_terry that reads text. `stream` is as a Scorer's, so that both are evaluated alike."""

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
                "these weights have no scalar head: they belong to a generative judge, which a Scorer reads. Choose "
                "the model of a run of stage bradley_terry"
            )
        self.params, self.cfg, self.tokenizer = params, cfg, tokenizer
        self.spec, self.execution = spec, execution
        self.lengths = padded_lengths(spec.max_length)
        self.tokens_per_call = default_tokens_per_call(execution, "padded")

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute_dtype: AskedCompute = "auto",
        placement: Placement | None = None,
    ) -> "ScalarRewardModel":
        """The model of a run of stage bradley_terry; compute as for a Scorer. Raises JudgeError for another stage."""
        keep_compiled_programs()
        placement = placement or make_placement({"data": -1})
        number_format = compute_type(compute_dtype, placement)
        spec = load_spec(name)
        if spec is None:
            raise JudgeError(f"{name} carries no judge.json: expected a run of stage bradley_terry")
        cfg, params = load_model(name, placement, number_format)
        execution = Execution(number_format, "auto", "none", placement, packed=False)
        return cls(params, cfg, load_tokenizer(name), spec, execution)

    def rewards(self, items: Iterable[tuple[PromptLike, str]]) -> np.ndarray:
        """Reward of each (prompt, response), f32 [n]; only differences under one prompt mean something."""
        return self.rewards_and_shortened(items)[0]

    def rewards_and_shortened(
        self, items: Iterable[tuple[PromptLike, str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`rewards`, and which responses did not fit the token budget and were shortened, bool [n]."""
        texts = self._encode(items)
        return self._rewards(texts), np.array([text.shortened for text in texts], bool)

    def stream(
        self,
        comparisons: Iterable[PairTexts],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[PairScore]:
        """PairScore of every (prompt, first, second), by the Bradley-Terry model; position_bias is 0.

        progress is called with the number of pairs just scored.
        """
        remaining = iter(comparisons)
        while window := list(islice(remaining, WINDOW)):
            texts = self._encode((p, text) for p, *pair in window for text in pair)
            rewards = self._rewards(texts)
            if progress is not None:
                progress(len(window))
            for at in range(len(window)):
                first, second = rewards[2 * at : 2 * at + 2].tolist()
                cut = any(text.shortened for text in texts[2 * at : 2 * at + 2])
                yield combine_orders(first - second, second - first, cut)

    def _encode(self, items: Iterable[tuple[PromptLike, str]]) -> list[Encoded]:
        return encode_items(self.tokenizer, self.spec.response, items, self.spec.max_length)

    def _rewards(self, texts: list[Encoded]) -> np.ndarray:
        """Texts of one padded length at a time: rows of one call, the last call filled up with its last text."""
        found = np.zeros(len(texts), np.float32)
        sizes = np.array([len(text.tokens) for text in texts])
        shards = self.execution.placement.batch_shards
        for low, length in zip((0, *self.lengths), self.lengths, strict=False):
            members = np.flatnonzero((sizes > low) & (sizes <= length))
            rows = max(1, self.tokens_per_call // length) * shards
            for start in range(0, len(members), rows):
                here = members[start : start + rows]
                filled = np.pad(here, (0, rows - len(here)), mode="edge")
                seqs, last = pad_rows([texts[i].tokens for i in filled], length)
                rewards = _scalar_rewards(
                    self.params, self.cfg, seqs, last[:, None], self.execution
                )
                found[here] = np.asarray(jax.device_get(rewards))[: len(here)]
        return found


def is_baseline(name: str | Path) -> bool:
    """Whether a model's name is that of a run of stage bradley_terry, which a ScalarRewardModel reads."""
    source = resolve_model(name)
    if source.kind != "run" or source.path is None:
        return False
    return read_info(source.path).get("stage") == "bradley_terry"


@partial(jax.jit, static_argnames=("cfg", "execution"))
def _scalar_rewards(
    params: Tree, cfg: ModelConfig, seqs: Sequences, at: jax.Array, execution: Execution
) -> jax.Array:
    """seqs: i32 [B, T]; at: i32 [B, 1], the last real columns. Returns f32 [B]."""
    constrain = execution.placement.constrain
    seqs = Sequences(*(constrain(x, "batch", "time") for x in seqs))
    hidden = hidden_at(hidden_states(params, cfg, seqs, execution), at)
    return constrain(scalar_reward(params, hidden)[:, 0])
