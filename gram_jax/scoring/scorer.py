"""From two texts to a score: one path for files, evaluation, ranking and rewards.

score(a, b) and score(b, a) are the same computation and agree bit for bit, because both lay out the responses in one
canonical order. The batch that a pair is part of changes none of its bits (engine.py).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.errors import GramWarning, JudgeError
from gram_jax.interop.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.judge.encode import Encoded, encode_items
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import DEFAULT_LENGTH, JudgeSpec, check_tokenizer, make_spec
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import AskedCompute, Compute, Execution
from gram_jax.model.quantize import quantize_int8
from gram_jax.model.specs import SCALAR_HEAD
from gram_jax.ranking.jobs import RankingConfig, RankingJob
from gram_jax.ranking.tournament import OrderMode, Ranking, RankingMethod
from gram_jax.scoring.engine import (
    ScoringEngine,
    ScoringMethod,
    default_method,
    default_tokens_per_call,
)
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.sharding import Placement, make_placement
from gram_jax.tree import Tree

PairTexts = tuple[PromptLike, str, str]  # prompt, first response, second response
Weights = Literal["auto", "float32", "bfloat16", "int8"]

# Pairs that are tokenized while the window before them is scored: enough to fill the calls.
WINDOW = {"cpu": 64, "gpu": 2048, "tpu": 2048}


class _Window(NamedTuple):
    """Encoded pairs. texts: both orders of each, the canonical one first; swapped: bool [n], if it is not the given."""

    texts: list[Encoded]
    swapped: np.ndarray


class Scorer:
    """A judge that reads text.

    >>> judge = Scorer.load("tiny-random")     # random weights: what it says means nothing
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
        check_tokenizer(spec, tokenizer)
        if SCALAR_HEAD in params:
            raise JudgeError(
                "these are the weights of the discriminative baseline (a scalar head): they rate one response at a "
                "time and give no verdicts. Choose the model of a run of stage finetune"
            )
        _check_budget(spec, cfg)
        self.tokenizer, self.spec = tokenizer, spec
        method = method or default_method(execution)
        self.engine = ScoringEngine(
            params,
            cfg,
            spec.label_ids,
            execution,
            spec.max_length,
            method,
            tokens_per_call or default_tokens_per_call(execution, method),
        )
        platform = execution.placement.mesh.devices.flat[0].platform
        self.window = WINDOW.get(platform, WINDOW["gpu"])

    def __repr__(self) -> str:
        """Family and sizes of its model, by which specification it is asked, and its number format."""
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
        """Its model."""
        return self.engine.cfg

    @property
    def execution(self) -> Execution:
        """How it is run."""
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

        compute "auto": bfloat16 on accelerators, float32 on a CPU. weights "auto": stored as they are computed with;
        "bfloat16" and "int8" (model/quantize.py) take half and a quarter of float32's memory. Without a placement every
        device holds all weights and scores its own pairs. A model that carries no judge.json is asked with the default
        template, for which max_length can be given. tokens_per_call: positions of one call and device; fewer need
        less memory. method: "prefix_shared" or "padded" (engine.py), by default what suits the devices. spec: the judge
        specification to use instead of the saved one; `make_spec` builds it. Compiled programs are kept in the user's
        cache folder, or in JAX's own (compile_cache.py).
        """
        keep_compiled_programs()
        placement = placement or make_placement({"data": -1})
        number_format = compute_type(compute_dtype, placement)
        tokenizer, cfg = load_tokenizer(name), model_config(name)
        spec = spec or load_spec(name)
        if spec is None:
            spec = make_spec(
                tokenizer, max_length=max_length or min(DEFAULT_LENGTH, cfg.context_length)
            )
            warnings.warn(
                f"{name} carries no judge.json: it is asked with the default template, which it was not taught",
                category=GramWarning,
                stacklevel=2,
            )
        elif max_length not in (None, spec.max_length):
            raise JudgeError(
                f"this judge was taught with a budget of {spec.max_length} tokens, asked for is {max_length}: "
                "max_length is for models that carry no judge.json"
            )
        check_tokenizer(spec, tokenizer)
        _check_budget(spec, cfg)
        cfg, params = load_model(
            name, placement, number_format if weights in ("auto", "int8") else weights
        )
        if weights == "int8":
            params = quantize_int8(params)
        execution = Execution(number_format, "auto", "none", placement, packed=False)
        return cls(
            params,
            cfg,
            tokenizer,
            spec,
            execution,
            tokens_per_call=tokens_per_call,
            method=method,
        )

    def warm_up(self, *, rankings: bool = False) -> None:
        """Compile before the first call what scoring pairs needs, and what ranking needs besides."""
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
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[PairScore]:
        """`score_many` for any number of comparisons: a window of them is held at a time.

        progress is called with the number of pairs that each call to the device has scored.
        """
        remaining = iter(comparisons)
        progress = progress or (lambda count: None)
        windows = iter(lambda: list(islice(remaining, self.window)), [])
        for window in self._encode_ahead(windows):
            yield from self._score(window, progress)

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
        """Responses to one prompt from best to worst: `tournament` says by which methods (ranking/tournament.py).

        references, for the method "reference": texts to compare with, or how many of the responses shall serve as such.
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
        flat = list(chain.from_iterable(pending))
        texts = self._encode(flat)
        diffs = self.engine.label_logit_diffs(texts, paired=False)
        self._warn_if_shortened(texts)
        ends = np.cumsum([len(of_job) for of_job in pending])
        for job, start, end in zip(jobs, [0, *ends], ends, strict=False):
            job.update(diffs[start:end], shortened=any(x.shortened for x in texts[start:end]))

    def _encode_ahead(self, windows: Iterator[list[PairTexts]]) -> Iterator[_Window]:
        """Encode every window; if there are several, each while the one before it is scored, in a thread."""
        first, following = next(windows, None), next(windows, None)
        if first is not None and following is None:
            yield self._encode_pairs(first)
        elif first is not None:
            with ThreadPoolExecutor(1) as thread:
                encoded = self._encode_pairs(first)
                while following is not None:
                    pending = thread.submit(self._encode_pairs, following)
                    yield encoded
                    following, encoded = next(windows, None), pending.result()
                yield encoded

    def _encode(self, comparisons: Iterable[PairTexts]) -> list[Encoded]:
        layout, max_length = self.spec.comparison, self.spec.max_length
        return encode_items(self.tokenizer, layout, comparisons, max_length)

    def _encode_pairs(self, pairs: Sequence[PairTexts]) -> _Window:
        swapped = [_is_swapped(first, second) for _, first, second in pairs]
        canonical = [
            (prompt, b, a) if swap else (prompt, a, b)
            for (prompt, a, b), swap in zip(pairs, swapped, strict=True)
        ]
        orders = [order for p, a, b in canonical for order in ((p, a, b), (p, b, a))]
        return _Window(self._encode(orders), np.array(swapped, bool))

    def _score(self, window: _Window, progress: Callable[[int], None]) -> list[PairScore]:
        # A call scores whole pairs.
        diffs = self.engine.label_logit_diffs(
            window.texts, paired=True, progress=lambda count: progress(count // 2)
        )
        diffs = diffs.reshape(-1, 2)
        diffs[window.swapped] = diffs[window.swapped, ::-1]
        self._warn_if_shortened(window.texts)
        shortened = np.array([text.shortened for text in window.texts], bool).reshape(-1, 2)
        return [
            combine_orders(diff, swapped, bool(cut.any()))
            for (diff, swapped), cut in zip(diffs.tolist(), shortened, strict=True)
        ]

    def _warn_if_shortened(self, texts: Sequence[Encoded]) -> None:
        if any(text.shortened for text in texts):
            # The same words every time: Python shows a repeated warning once.
            warnings.warn(
                f"some comparisons are longer than {self.spec.max_length} tokens and are shortened inside the "
                "responses; `shortened` of each result marks it",
                category=GramWarning,
                stacklevel=2,
            )


def compute_type(asked: AskedCompute, placement: Placement) -> Compute:
    """ "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if asked != "auto":
        return asked
    return "float32" if placement.mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def _check_budget(spec: JudgeSpec, cfg: ModelConfig) -> None:
    if spec.max_length > cfg.context_length:
        raise JudgeError(
            f"the judge may read {spec.max_length} tokens (max_length), the model was made for "
            f"{cfg.context_length}: choose a smaller max_length"
        )


def _frozen(references: int | Sequence[str]) -> int | tuple[str, ...]:
    if isinstance(references, str):
        raise JudgeError("references are a list of texts, or a number; found one text")
    return references if isinstance(references, int) else tuple(references)


def _is_swapped(first: str, second: str) -> bool:
    """Whether the canonical order of two responses, that of their text, is not the given one."""
    return isinstance(first, str) and isinstance(second, str) and second < first
