"""From two texts to a score: one way for files, evaluation, ranking and rewards.

Two responses are put in one fixed order before they are encoded, so that score(a, b) and score(b, a)
are the same computation and agree bit for bit. What a pair is scored beside changes none of its bits
(scoring/core.py says why).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gram_jax.checkpoint.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.data.encode import Encoded, Prompt, encode_comparisons
from gram_jax.errors import JudgeError
from gram_jax.judge import DEFAULT_LENGTH, JudgeSpec, check_tokenizer, make_spec
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.scoring.core import Core, Method, method_for
from gram_jax.scoring.core import tokens_per_call as default_tokens
from gram_jax.scoring.ranking import order_of, round_robin, strengths, table_of
from gram_jax.sharding import Placement, make_placement
from gram_jax.tree import Tree

Comparison = tuple[Prompt, str, str]

# Comparisons that are encoded while those before them are scored: enough to fill the calls.
WINDOW = {"cpu": 64, "gpu": 2048, "tpu": 2048}


class PairScore(NamedTuple):
    """What the judge says of a pair, both orders together.

    first, second: probability that this response is the better one; they sum to 1.
    margin: log-odds of the first, the mean over both orders of the difference of the label logits.
    order_gap: P(first) when shown first minus P(first) when shown second; 0 for a judge without position preference.
    shortened: the texts did not fit the token budget and were cut inside the responses.
    """

    first: float
    second: float
    margin: float
    order_gap: float
    shortened: bool

    def swapped(self) -> "PairScore":
        """The score of the same pair with the responses exchanged."""
        return self._replace(first=self.second, second=self.first, margin=-self.margin)


class Scorer:
    """A judge that reads text.

    >>> judge = Scorer.load("tiny-random")
    >>> score = judge.score("Name a prime.", "Seven.", "Nine.")
    >>> round(score.first + score.second, 6)
    1.0
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
        if "score" in params:
            raise JudgeError(
                "these are the weights of the discriminative baseline (a scalar head): they rate one response at a "
                "time and give no verdicts. Choose the model of a run of stage judge"
            )
        _check_budget(spec, cfg)
        self.tokenizer, self.spec = tokenizer, spec
        self.shortened = 0  # pairs so far that did not fit
        method = method or method_for(execution)
        self.core = Core(
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
        compute: Literal["auto", "float32", "bfloat16"] = "auto",
        max_length: int | None = None,
        tokens_per_call: int | None = None,
        placement: Placement | None = None,
        spec: JudgeSpec | None = None,
    ) -> "Scorer":
        """The judge of a run, an exported folder, a hub name, a GGUF file, or one of our own names.

        compute "auto": bfloat16 on accelerators, float32 on a CPU. Without a placement every device holds all
        weights and scores its own pairs. A model that carries no judge.json is asked with the default template, for
        which max_length can be given. tokens_per_call: how much one call and device takes; less needs less memory.
        spec: how to ask, in place of what was saved with the model; `make_spec` builds it.
        """
        placement = placement or make_placement({"data": -1})
        if compute == "auto":
            on_cpu = placement.mesh.devices.flat[0].platform == "cpu"
            compute = "float32" if on_cpu else "bfloat16"
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
        cfg, params = load_model(name, placement, compute)
        execution = Execution(compute, "auto", "none", placement, packed=False)
        return cls(params, cfg, tokenizer, spec, execution, tokens_per_call=tokens_per_call)

    def score(self, prompt: Prompt, first: str, second: str) -> PairScore:
        """Which of two responses answers the prompt better. A prompt is text or a list of messages."""
        return self.score_many([(prompt, first, second)])[0]

    def score_many(self, comparisons: Iterable[Comparison]) -> list[PairScore]:
        """`score` of many (prompt, first, second), in their order."""
        return list(self.stream(comparisons))

    def stream(
        self,
        comparisons: Iterable[Comparison],
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
            pending = following and ahead.submit(self._encode, following)
            while pending:
                encoded = pending.result()
                following = next(windows, None)
                pending = following and ahead.submit(self._encode, following)
                yield from self._score(encoded, progress)

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> np.ndarray:
        """Log-odds that response i is better than response j: f32 [n, n], antisymmetric."""
        pairs = round_robin(len(responses))
        scores = self.score_many((prompt, responses[i], responses[j]) for i, j in pairs)
        return table_of(len(responses), [score.margin for score in scores])

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[int]:
        """Indices of the responses, best first: every one meets every other, and log-odds are summed."""
        return order_of(strengths(self.compare(prompt, responses)))

    def best(self, prompt: Prompt, responses: Sequence[str]) -> int:
        """Index of the best response."""
        if not responses:
            raise JudgeError("there is no best of no responses: expected at least one")
        return self.rank(prompt, responses)[0]

    def _encode(self, window: Sequence[Comparison]) -> list[tuple[bool, tuple[Encoded, Encoded]]]:
        """Both orders of every pair, and whether the fixed order is not the given one."""
        turned = [_is_turned(first, second) for _, first, second in window]
        fixed = [(p, b, a) if t else (p, a, b) for (p, a, b), t in zip(window, turned, strict=True)]
        shown = [shown for p, a, b in fixed for shown in ((p, a, b), (p, b, a))]
        encoded = encode_comparisons(self.tokenizer, self.spec, shown, overlong="shorten")
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
            _pair_score(gap, other, any(side.shortened for side in pair))
            for gap, other, (_, pair) in zip(gaps[::2], gaps[1::2], window, strict=True)
        ]
        self._count_shortened(scores)
        return [
            score.swapped() if t else score for score, (t, _) in zip(scores, window, strict=True)
        ]

    def _count_shortened(self, scores: Sequence[PairScore]) -> None:
        cut = sum(score.shortened for score in scores)
        if cut and not self.shortened:
            warnings.warn(
                f"{cut} of {len(scores)} pairs are longer than {self.spec.max_length} tokens and were shortened "
                "inside the responses (said once; PairScore.shortened marks each)",
                stacklevel=2,
            )
        self.shortened += cut


def _check_budget(spec: JudgeSpec, cfg: ModelConfig) -> None:
    if spec.max_length > cfg.context_length:
        raise JudgeError(
            f"the judge may read {spec.max_length} tokens (max_length), the model was made for "
            f"{cfg.context_length}: choose a smaller max_length"
        )


def _is_turned(first: str, second: str) -> bool:
    """Whether the fixed order of two responses, that of their text, is not the given one."""
    return isinstance(first, str) and isinstance(second, str) and second < first


def _pair_score(gap: np.float32, other: np.float32, shortened: bool) -> PairScore:
    """From the label logits' difference as given and with the responses exchanged.

    The larger probability is rounded to float32 and the smaller one is what is left of 1: both sum
    to exactly 1, and exchanging the responses exchanges them bit for bit.
    """
    gap, other = float(gap), float(other)
    leaning = np.tanh(gap / 2), np.tanh(other / 2)  # towards whatever was shown first
    lead = (leaning[0] - leaning[1]) / 4
    high = float(np.float32(0.5 + abs(lead)))
    first, second = (high, 1 - high) if lead >= 0 else (1 - high, high)
    return PairScore(
        first=first,
        second=second,
        margin=(gap - other) / 2,
        order_gap=float(leaning[0] + leaning[1]) / 2,
        shortened=shortened,
    )
