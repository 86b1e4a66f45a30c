"""From two texts to a score: one path for files, evaluation, ranking and rewards.

score(a, b) and score(b, a) are the same computation and agree bit for bit, because both lay out the responses in one
canonical order. The batch that a pair is part of changes none of its bits (engine.py).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gram_jax.errors import GramWarning, JudgeError
from gram_jax.interop.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.judge.encode import Encoded, encode_items
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import DEFAULT_LENGTH, JudgeSpec, check_tokenizer, make_spec
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import AskedCompute, Execution, inference_execution
from gram_jax.model.quantize import quantize_int8
from gram_jax.model.specs import SCALAR_HEAD
from gram_jax.ranking.jobs import RankingConfig, RankingJob
from gram_jax.ranking.tournament import OrderMode, Ranking, RankingMethod
from gram_jax.scoring.engine import ScoringEngine, ScoringMethod
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

PairTexts = tuple[PromptLike, str, str]  # prompt, first response, second response
Weights = Literal["auto", "float32", "bfloat16", "int8"]

# Pairs that are tokenized while those before them are scored: enough to fill the calls.
CPU_WINDOW, ACCELERATOR_WINDOW = 64, 2048


class Scorer:
    """A judge that reads text.

    >>> judge = Scorer.load("tiny-random")     # random weights: its scores mean nothing
    >>> judge   # doctest: +ELLIPSIS
    Scorer(llama, 2 layers of 64, judge ..., at most ... tokens, ...)
    >>> score = judge.score("Name a prime.", "Seven.", "Nine.")
    >>> round(score.first + score.second, 6)
    1.0
    >>> judge.score("Name a prime.", "Nine.", "Seven.") == score.swapped()
    True
    >>> sorted(judge.rank("Name a prime.", ["Seven.", "Nine.", "Ten."]).order)   # best first, but for sorted
    [0, 1, 2]
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
        method: ScoringMethod | None = None,
    ):
        _check(spec, tokenizer, cfg)
        if SCALAR_HEAD in params:
            raise JudgeError(
                "these are the weights of the discriminative baseline (a scalar head): they rate one response at a "
                "time and give no verdicts. Choose the model of a run of stage finetune"
            )
        self.tokenizer, self.spec = tokenizer, spec
        self.engine = ScoringEngine(
            params, cfg, spec.label_ids, execution, spec.max_length, method, tokens_per_call
        )
        cpu = execution.placement.platform == "cpu"
        self.window = CPU_WINDOW if cpu else ACCELERATOR_WINDOW

    def __repr__(self) -> str:
        """Family and sizes of its model, its specification, and its number format."""
        cfg, spec = self.cfg, self.spec
        return (
            f"Scorer({cfg.family}, {cfg.layers} layers of {cfg.embed_size}, judge {spec.hash[:12]}, at most "
            f"{spec.max_length} tokens, {self.execution.compute_dtype})"
        )

    @property
    def params(self) -> Tree:
        """The judge's weights."""
        return self.engine.params

    @property
    def cfg(self) -> ModelConfig:
        """The judge's model."""
        return self.engine.cfg

    @property
    def execution(self) -> Execution:
        """How the model is run."""
        return self.engine.execution

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute_dtype: AskedCompute = "auto",
        weights: Weights = "auto",
        max_length: int | None = None,
        tokens_per_call: int | None = None,
        method: ScoringMethod | None = None,
        placement: Placement | None = None,
        spec: JudgeSpec | None = None,
    ) -> "Scorer":
        """The judge of a run, an exported folder, a hub name, a GGUF file, or one of our own names.

        compute_dtype "auto": bfloat16 on accelerators, float32 on a CPU. weights "auto": stored as they are computed
        with; "bfloat16" and "int8" (model/quantize.py) take half and a quarter of float32's memory. max_length: for a
        model that carries no judge.json, which is prompted with the default template. tokens_per_call: positions of one
        call and device; fewer need less memory. method: "prefix_shared" or "padded" (engine.py), by default what suits
        the devices. placement: by default every device holds all weights and scores its own pairs. spec: the judge
        specification to use instead of the saved one; `make_spec` builds it. Compiled programs are kept in the user's
        cache folder, or in JAX's own (compile_cache.py).
        """
        execution = inference_execution(compute_dtype, placement)
        tokenizer, cfg = load_tokenizer(name), model_config(name)
        spec = spec or load_spec(name)
        if spec is None:
            spec = make_spec(
                tokenizer, max_length=max_length or min(DEFAULT_LENGTH, cfg.context_length)
            )
            warnings.warn(
                f"{name} has no judge.json: its prompt is the default template, which it was not trained on",
                category=GramWarning,
                stacklevel=2,
            )
        elif max_length not in (None, spec.max_length):
            raise JudgeError(
                f"this judge was trained with a budget of {spec.max_length} tokens, found max_length {max_length}: "
                "max_length is for models that carry no judge.json"
            )
        _check(spec, tokenizer, cfg)  # before the weights are loaded
        held = execution.compute_dtype if weights in ("auto", "int8") else weights
        cfg, params = load_model(name, execution.placement, held)
        if weights == "int8":
            params = quantize_int8(params)
        return cls(
            params, cfg, tokenizer, spec, execution, tokens_per_call=tokens_per_call, method=method
        )

    def warm_up(self, *, rankings: bool = False) -> None:
        """Compile the program that scores pairs, and with `rankings` that of rankings, before the first call."""
        self.engine.warm_up(rankings=rankings)

    def score(self, prompt: PromptLike, first: str, second: str) -> PairScore:
        """Which of two responses answers the prompt better. A prompt is text or a list of messages."""
        return self.score_many([(prompt, first, second)])[0]

    def score_many(self, comparisons: Iterable[PairTexts]) -> list[PairScore]:
        """`score` of many (prompt, first, second), in their order."""
        return list(self.stream(comparisons))

    def stream(
        self,
        comparisons: Iterable[PairTexts],
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[PairScore]:
        """`score_many` for any number of comparisons: a window of them is held at a time.

        progress is called with the number of pairs that each call to the device has scored.
        """
        remaining = iter(comparisons)
        windows = iter(lambda: list(islice(remaining, self.window)), [])
        for texts, swapped in self._encode_ahead(windows):
            diffs = self.engine.label_logit_diffs(
                texts, paired=True, progress=lambda count: progress(count // 2)
            ).reshape(-1, 2)
            diffs[swapped] = diffs[swapped, ::-1]
            shortened = np.array([text.shortened for text in texts]).reshape(-1, 2)
            for (given, other), cut in zip(diffs.tolist(), shortened, strict=True):
                yield combine_orders(given, other, bool(cut.any()))

    def compare(self, prompt: PromptLike, responses: Sequence[str]) -> np.ndarray:
        """Log-odds that response i is better than response j, both orders of every pair: f32 [n, n], antisymmetric."""
        return self.rank(prompt, responses, method="round_robin").margins

    def rank(
        self,
        prompt: PromptLike,
        responses: Sequence[str],
        *,
        method: RankingMethod | None = None,
        order_mode: OrderMode = "both",
        references: int | Sequence[str] = (),
    ) -> Ranking:
        """Responses to one prompt from best to worst; `tournament` describes the methods (ranking/tournament.py).

        references, for the method "reference": texts to compare with, or the number of responses that serve as such.
        The result depends neither on the order of the responses nor on what else is ranked. Raises JudgeError for
        options that do not go together, and if there is nothing to rank.
        """
        config = RankingConfig(method, order_mode, _frozen(references))
        return next(self.rank_many([(prompt, responses)], config))

    def best(self, prompt: PromptLike, responses: Sequence[str], **options: Any) -> int:
        """Index of the best response; options as of `rank`."""
        return self.rank(prompt, responses, **options).order[0]

    def rank_many(
        self,
        items: Iterable[tuple[PromptLike, Sequence[str]]],
        config: RankingConfig | None = None,
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Ranking]:
        """`rank` of many (prompt, responses), in their order; the comparisons of a window share calls.

        progress is called with the number of rankings that are complete.
        """
        config, remaining = config or RankingConfig(), iter(items)
        while window := list(islice(remaining, self.window)):
            jobs = [RankingJob(prompt, responses, config) for prompt, responses in window]
            done = 0
            while active := [job for job in jobs if job.ranking is None]:
                progress(len(jobs) - len(active) - done)
                done = len(jobs) - len(active)
                self._compare(active)
            progress(len(jobs) - done)
            yield from (job.ranking for job in jobs if job.ranking is not None)

    def _compare(self, jobs: Sequence[RankingJob]) -> None:
        """One round of every tournament."""
        pending = [job.pending_comparisons() for job in jobs]
        texts = self._encode(chain.from_iterable(pending))
        diffs = self.engine.label_logit_diffs(texts, paired=False)
        ends = np.cumsum([len(of_job) for of_job in pending])
        for job, start, end in zip(jobs, [0, *ends], ends, strict=False):
            job.update(diffs[start:end], shortened=any(x.shortened for x in texts[start:end]))

    def _encode_ahead(
        self, windows: Iterator[list[PairTexts]]
    ) -> Iterator[tuple[list[Encoded], np.ndarray]]:
        """Encode every window, each while the one before it is scored."""
        if (first := next(windows, None)) is None:
            return
        with ThreadPoolExecutor(1) as thread:  # starts at the second window
            encoded = self._encode_pairs(first)
            for following in windows:
                pending = thread.submit(self._encode_pairs, following)
                yield encoded
                encoded = pending.result()
            yield encoded

    def _encode_pairs(self, pairs: Sequence[PairTexts]) -> tuple[list[Encoded], np.ndarray]:
        """Both orders of each pair, the canonical one first, and whether that is not the given one, bool [n]."""
        swapped, orders = [], []
        for prompt, first, second in pairs:
            swap = isinstance(first, str) and isinstance(second, str) and second < first
            one, other = (second, first) if swap else (first, second)
            swapped.append(swap)
            orders += [(prompt, one, other), (prompt, other, one)]
        return self._encode(orders), np.array(swapped)

    def _encode(self, comparisons: Iterable[PairTexts]) -> list[Encoded]:
        layout, max_length = self.spec.comparison, self.spec.max_length
        texts = encode_items(self.tokenizer, layout, comparisons, max_length)
        if any(text.shortened for text in texts):
            # The same words every time: Python shows a repeated warning once.
            warnings.warn(
                f"some comparisons are longer than {max_length} tokens and are shortened inside the responses; "
                "`shortened` of each result marks it",
                category=GramWarning,
                stacklevel=2,
            )
        return texts


def _check(spec: JudgeSpec, tokenizer: Any, cfg: ModelConfig) -> None:
    check_tokenizer(spec, tokenizer)
    if spec.max_length > cfg.context_length:
        raise JudgeError(
            f"max_length {spec.max_length} of the judge is more than the {cfg.context_length} tokens of the model's "
            "context: choose a smaller max_length"
        )


def _frozen(references: int | Sequence[str]) -> int | tuple[str, ...]:
    if isinstance(references, str):
        raise JudgeError("references are a list of texts, or a number; found one text")
    return references if isinstance(references, int) else tuple(references)
