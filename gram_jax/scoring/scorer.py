"""From two texts to a score: one way for files, evaluation, ranking and rewards.

Two responses are put in one fixed order before they are encoded, so that score(a, b) and score(b, a)
are the same computation and agree bit for bit. What a pair is scored beside changes none of its bits
(scoring/engine.py says why).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.errors import JudgeError
from gram_jax.interop.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.judge.encode import Encoded, encode_items
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import DEFAULT_LENGTH, JudgeSpec, check_tokenizer, make_spec
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import AskedCompute, Compute, Execution
from gram_jax.model.quantize import quantize_int8
from gram_jax.model.specs import SCALAR_HEAD
from gram_jax.ranking.jobs import RankingConfig, RankingJob
from gram_jax.ranking.tournament import Orders, Ranking, RankingMethod
from gram_jax.scoring.engine import Method, ScoringEngine, default_tokens, method_for
from gram_jax.sharding import Placement, make_placement
from gram_jax.tree import Tree

PairTexts = tuple[PromptLike, str, str]
Weights = Literal["auto", "float32", "bfloat16", "int8"]

# Comparisons that are encoded while those before them are scored: enough to fill the calls.
WINDOW = {"cpu": 64, "gpu": 2048, "tpu": 2048}


class PairScore(NamedTuple):
    """What the judge says of a pair, both orders together.

    first, second: probability that this response is the better one; they sum to 1.
    margin: log-odds of the first, the mean over both orders of the difference of the label logits.
    position_bias: P(first) when shown first minus P(first) when shown second; 0 without a preference for a position.
    shortened: the texts did not fit the token budget and were cut inside the responses.

    >>> score = PairScore(first=0.75, second=0.25, margin=1.1, position_bias=0.05, shortened=False)
    >>> score.swapped()
    PairScore(first=0.25, second=0.75, margin=-1.1, position_bias=0.05, shortened=False)
    """

    first: float
    second: float
    margin: float
    position_bias: float
    shortened: bool

    def swapped(self) -> "PairScore":
        """The score of the same pair with the responses exchanged."""
        return self._replace(first=self.second, second=self.first, margin=-self.margin)


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
        method: Method | None = None,
    ):
        check_tokenizer(spec, tokenizer)
        if SCALAR_HEAD in params:
            raise JudgeError(
                "these are the weights of the discriminative baseline (a scalar head): they rate one response at a "
                "time and give no verdicts. Choose the model of a run of stage judge"
            )
        _check_budget(spec, cfg)
        self.tokenizer, self.spec = tokenizer, spec
        self.shortened = 0  # pairs and comparisons so far that did not fit
        method = method or method_for(execution)
        self.core = ScoringEngine(
            params,
            cfg,
            spec.label_ids,
            execution,
            spec.max_length,
            method,
            tokens_per_call or default_tokens(execution, method),
        )
        platform = execution.placement.mesh.devices.flat[0].platform
        self.window = WINDOW.get(platform, WINDOW["gpu"])

    def __repr__(self) -> str:
        """Family and sizes of its model, by which specification it is asked, and its number format."""
        cfg, spec = self.cfg, self.spec
        return (
            f"Scorer({cfg.family}, {cfg.layers} layers of {cfg.embed_size}, judge {spec.hash[:12]}, at most "
            f"{spec.max_length} tokens, {self.execution.compute})"
        )

    @property
    def params(self) -> Tree:
        """The judge's weights."""
        return self.core.params

    @property
    def cfg(self) -> ModelConfig:
        """Its model."""
        return self.core.cfg

    @property
    def execution(self) -> Execution:
        """How it is run."""
        return self.core.execution

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute: AskedCompute = "auto",
        weights: Weights = "auto",
        max_length: int | None = None,
        tokens_per_call: int | None = None,
        method: Method | None = None,
        placement: Placement | None = None,
        spec: JudgeSpec | None = None,
    ) -> "Scorer":
        """The judge of a run, an exported folder, a hub name, a GGUF file, or one of our own names.

        compute "auto": bfloat16 on accelerators, float32 on a CPU. weights "auto": stored as they are computed with;
        "bfloat16" and "int8" (model/quantize.py) take half and a quarter of float32's memory. Without a placement every
        device holds all weights and scores its own pairs. A model that carries no judge.json is asked with the default
        template, for which max_length can be given. tokens_per_call: how much one call and device takes; less needs
        less memory. method: "shared" or "rows" (scoring/engine.py), by default what suits the devices. spec: the judge
        specification to use instead of the saved one; `make_spec` builds it. Compiled programs are kept in the user's
        cache folder, or in JAX's own (compile_cache.py).
        """
        keep_compiled_programs()
        placement = placement or make_placement({"data": -1})
        number_format = compute_type(compute, placement)
        tokenizer, cfg = load_tokenizer(name), model_config(name)
        spec = spec or load_spec(name)
        if spec is None:
            spec = make_spec(
                tokenizer, max_length=max_length or min(DEFAULT_LENGTH, cfg.context_length)
            )
            warnings.warn(
                f"{name} carries no judge.json: it is asked with the default template, which it was not taught",
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
        self.core.warm_up(trees=rankings)

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
        # The next window is tokenized while the device works on this one.
        with ThreadPoolExecutor(1) as ahead:
            following = next(windows, None)
            pending = ahead.submit(self._encode_pairs, following) if following else None
            while pending:
                encoded = pending.result()
                following = next(windows, None)
                pending = ahead.submit(self._encode_pairs, following) if following else None
                yield from self._score(encoded, progress)

    def compare(self, prompt: PromptLike, responses: Sequence[str]) -> np.ndarray:
        """Log-odds that response i is better than response j, both orders of every pair: f32 [n, n], antisymmetric."""
        return self.rank(prompt, responses, method="round_robin").margins

    def rank(
        self,
        prompt: PromptLike,
        responses: Sequence[str],
        *,
        method: RankingMethod | None = None,
        orders: Orders = "both",
        references: int | Sequence[str] = (),
    ) -> Ranking:
        """Responses to one prompt from best to worst: `tournament` says by which methods (ranking/tournament.py).

        references, for the method "reference": texts to compare with, or how many of the responses shall serve as such.
        The result depends neither on the order of the responses nor on what else is ranked. Raises JudgeError for
        options that do not go together, and where there is nothing to rank.
        """
        contest = RankingConfig(method, orders, _frozen(references))
        return next(self.rank_many([(prompt, responses)], contest))

    def best(self, prompt: PromptLike, responses: Sequence[str], **options: Any) -> int:
        """Index of the best response; options as of `rank`."""
        return self.rank(prompt, responses, **options).order[0]

    def rank_many(
        self,
        items: Iterable[tuple[PromptLike, Sequence[str]]],
        contest: RankingConfig | None = None,
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Ranking]:
        """`rank` of many (prompt, responses), in their order; a window of them is worked on together.

        progress is called with the number of rankings that became ready.
        """
        contest, remaining = contest or RankingConfig(), iter(items)
        while window := list(islice(remaining, self.window)):
            entries = [RankingJob(prompt, responses, contest) for prompt, responses in window]
            ready = 0
            while active := [entry for entry in entries if entry.ranking is None]:
                progress(len(entries) - len(active) - ready)
                ready = len(entries) - len(active)
                self._play(active)
            progress(len(entries) - ready)
            yield from (entry.ranking for entry in entries if entry.ranking is not None)

    def _play(self, entries: Sequence[RankingJob]) -> None:
        """One round of every tournament."""
        shown = [entry.shown() for entry in entries]
        flat = [comparison for of_entry in shown for comparison in of_entry]
        encoded = iter(self._encode(flat))
        groups = [list(islice(encoded, len(of_entry))) for of_entry in shown]
        gaps = self.core.gaps(groups, pairs=False)
        cuts = [any(text.shortened for text in group) for group in groups]
        ends = np.cumsum([len(group) for group in groups])[:-1]
        for entry, of_entry, cut in zip(entries, np.split(gaps, ends), cuts, strict=True):
            entry.answer(of_entry, shortened=cut)
        self._count_shortened([text.shortened for group in groups for text in group], "comparisons")

    def _encode(self, shown: Iterable[PairTexts]) -> list[Encoded]:
        layout, max_length = self.spec.comparison, self.spec.max_length
        return encode_items(self.tokenizer, layout, shown, max_length)

    def _encode_pairs(
        self, window: Sequence[PairTexts]
    ) -> list[tuple[bool, tuple[Encoded, Encoded]]]:
        """Both orders of every pair, and whether the fixed order is not the given one."""
        turned = [_is_turned(first, second) for _, first, second in window]
        fixed = [(p, b, a) if t else (p, a, b) for (p, a, b), t in zip(window, turned, strict=True)]
        shown = [shown for p, a, b in fixed for shown in ((p, a, b), (p, b, a))]
        encoded = self._encode(shown)
        return list(zip(turned, zip(encoded[::2], encoded[1::2], strict=True), strict=True))

    def _score(
        self,
        window: Sequence[tuple[bool, tuple[Encoded, Encoded]]],
        progress: Callable[[int], None],
    ) -> list[PairScore]:
        answered = 0

        def count(sequences: int) -> None:
            nonlocal answered
            before, answered = answered // 2, answered + sequences
            progress(answered // 2 - before)

        gaps = self.core.gaps([pair for _, pair in window], pairs=True, progress=count)
        scores = [
            combine_orders(gap, other, any(side.shortened for side in pair))
            for gap, other, (_, pair) in zip(gaps[::2], gaps[1::2], window, strict=True)
        ]
        self._count_shortened([score.shortened for score in scores], "pairs")
        return [
            score.swapped() if t else score for score, (t, _) in zip(scores, window, strict=True)
        ]

    def _count_shortened(self, shortened: Sequence[bool], what: str) -> None:
        cut = sum(shortened)
        if cut and not self.shortened:
            warnings.warn(
                f"{cut} of {len(shortened)} {what} are longer than {self.spec.max_length} tokens and were shortened "
                "inside the responses (said once; `shortened` of each result marks it)",
                stacklevel=2,
            )
        self.shortened += cut


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


def _is_turned(first: str, second: str) -> bool:
    """Whether the fixed order of two responses, that of their text, is not the given one."""
    return isinstance(first, str) and isinstance(second, str) and second < first


def combine_orders(
    gap: float | np.floating, other: float | np.floating, shortened: bool
) -> PairScore:
    """From the label logits' difference as given and with the responses exchanged.

    The larger probability is rounded to float32 and the smaller one is what is left of 1: both sum
    to exactly 1, and exchanging the responses exchanges them bit for bit.
    """
    here, there = float(gap), float(other)
    leaning = np.tanh(here / 2), np.tanh(there / 2)  # towards whatever was shown first
    lead = (leaning[0] - leaning[1]) / 4
    high = float(np.float32(0.5 + abs(lead)))
    first, second = (high, 1 - high) if lead >= 0 else (1 - high, high)
    return PairScore(
        first=first,
        second=second,
        margin=(here - there) / 2,
        position_bias=float(leaning[0] + leaning[1]) / 2,
        shortened=shortened,
    )
