"""Scorer: a judge whose model runs in this process."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.errors import GramWarning, JudgeError
from gram_jax.interop.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.judge.encode import Encoded
from gram_jax.judge.spec import DEFAULT_LENGTH, JudgeSpec, check_verdicts, make_spec
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import AskedCompute, Execution, inference_execution
from gram_jax.model.quantize import Weights, loaded_dtype, quantize
from gram_jax.model.specs import SCORE
from gram_jax.scoring.engine import ScoringEngine, ScoringMethod
from gram_jax.scoring.fingerprint import local_identity
from gram_jax.scoring.text_scorer import ScorerIdentity, TextScorer
from gram_jax.scoring.think import Think
from gram_jax.scoring.thinking import ThinkingScorer
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

# Pairs that are tokenized while those before them are scored: enough to fill the calls.
CPU_WINDOW, ACCELERATOR_WINDOW = 64, 2048


class Scorer(TextScorer):
    """A judge whose model runs in this process; `Scorer.load` loads one.

    >>> judge = Scorer.load("tiny-random")     # random weights: its scores mean nothing
    >>> judge   # doctest: +ELLIPSIS
    Scorer(llama, 2 layers of 64, judge ..., at most ... tokens, ...)
    >>> score = judge.score("Name a prime.", "Seven.", "Nine.")
    >>> round(score.first + score.second, 6)
    1.0
    >>> judge.score("Name a prime.", "Nine.", "Seven.") == score.swapped()
    True
    >>> order = judge.rank("Name a prime.", ["Seven.", "Nine.", "Ten."]).order   # best first
    >>> sorted(order)
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
        check_verdicts(spec, tokenizer)
        check_context(spec, cfg)
        if SCORE in params and cfg.head in ("language", "scalar"):
            raise JudgeError(
                "these are the weights of the discriminative baseline (a scalar head): they rate one response at a "
                "time and give no verdicts. Load them with load_judge, which returns a judge with the same methods"
            )
        super().__init__(tokenizer, spec)
        self.engine = ScoringEngine(
            params, cfg, spec.label_ids, execution, spec.max_length, method, tokens_per_call
        )
        self.window, self.call_tokens = text_window(execution, self.engine.tokens_per_call)

    def __repr__(self) -> str:
        """Family and sizes of its model, its specification, and its number format."""
        cfg, spec = self.cfg, self.spec
        return (
            f"Scorer({cfg.family}, {cfg.layers} layers of {cfg.embed_size}, judge {spec.hash[:12]}, at most "
            f"{spec.max_length} tokens, {self.execution.compute_dtype})"
        )

    @property
    def params(self) -> Tree:
        """Weights of the model."""
        return self.engine.params

    @property
    def cfg(self) -> ModelConfig:
        """Config of the model."""
        return self.engine.cfg

    @property
    def execution(self) -> Execution:
        """Compute dtype, attention back end and placement."""
        return self.engine.execution

    @property
    def identity(self) -> ScorerIdentity:
        """What the results depend on, apart from the specification. The fingerprint reads all weights."""
        return local_identity(self.params, self.execution, self.program)

    @property
    def program(self) -> str:
        """The program that scores pairs: "prefix_shared" or "padded"."""
        return self.engine.program

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
        """Load the judge of a run, an exported folder, a hub name, a GGUF file, or a built-in name.

        compute_dtype: dtype of matrix products; "auto" is bfloat16 on accelerators and float32 on CPUs. weights: format
        in which weights are held; "auto" is the compute dtype. "bfloat16" and "int8" take half and a quarter of the
        memory of float32; "int8_dynamic" and "float8_dynamic" also compute products in 8 bits (model/quantize.py).
        max_length: maximum number of tokens of a comparison, for a model without
        judge.json; such a model gets the default template, with a warning. tokens_per_call: number of positions per
        call and device; fewer need less memory. method: "prefix_shared" or "padded" (docs/scoring.md); the default
        depends on the devices. placement: mesh of the weights; by default every device holds all weights and scores its
        own pairs. spec: judge specification to use instead of the saved one, from `make_spec`.

        Compiled programs are cached on disk (compile_cache.py). Raises CheckpointError, LayoutError or NonFiniteError
        if the model cannot be loaded, and JudgeError if specification and model do not fit each other.
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
        else:
            check_budget(spec, max_length)
        check_verdicts(spec, tokenizer)  # before the weights are loaded
        check_context(spec, cfg)
        cfg, params = load_weights(name, execution, weights)
        return cls(
            params, cfg, tokenizer, spec, execution, tokens_per_call=tokens_per_call, method=method
        )

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Logit differences of encoded comparisons, as ScoringEngine.label_logit_diffs returns them."""
        return self.engine.label_logit_diffs(sequences, paired=paired, progress=progress)

    def thinking(self, think: Think) -> ThinkingScorer:
        """The judge with rationales before its verdicts. Raises JudgeError if its specification has none."""
        return ThinkingScorer(self, self.engine, think)

    def warm_up(self, *, rankings: bool = False) -> None:
        """Compile the program that scores pairs before the first call. rankings: compile that of rankings too."""
        self.engine.warm_up(rankings=rankings)


def load_weights(
    name: str | Path, execution: Execution, weights: Weights
) -> tuple[ModelConfig, Tree]:
    """Config and weights of a model, held in the format `weights`."""
    held = loaded_dtype(weights, execution.compute_dtype)
    cfg, params = load_model(name, execution.placement, held)
    return cfg, quantize(params, weights)


def text_window(execution: Execution, tokens_per_call: int) -> tuple[int, int]:
    """`window` and `call_tokens` of a TextScorer on these devices."""
    if execution.placement.platform == "cpu":
        return CPU_WINDOW, TextScorer.call_tokens
    return ACCELERATOR_WINDOW, tokens_per_call * execution.placement.batch_shards  # padded calls


def check_budget(spec: JudgeSpec, max_length: int | None) -> None:
    """Raises JudgeError if max_length differs from that of the saved specification."""
    if max_length not in (None, spec.max_length):
        raise JudgeError(
            f"this judge was trained with a budget of {spec.max_length} tokens, found max_length {max_length}: "
            "max_length is for models that carry no judge.json"
        )


def check_context(spec: JudgeSpec, cfg: ModelConfig) -> None:
    """Raises JudgeError for a token budget that exceeds the model's context."""
    if spec.max_length > cfg.context_length:
        raise JudgeError(
            f"max_length {spec.max_length} of the judge is more than the {cfg.context_length} tokens of the model's "
            "context: choose a smaller max_length"
        )
