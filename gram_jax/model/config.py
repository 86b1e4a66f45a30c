"""ModelConfig: sizes and traits of a decoder. Sizes have no default, so every importer states all of them."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from gram_jax.errors import LayoutError

# The largest value of each size that a config may state, far above every published model: arrays and programs are
# made from these numbers before a weight is read.
LARGEST = {
    "vocab_size": 2**24,
    "embed_size": 2**20,
    "layers": 1024,
    "query_heads": 2**14,
    "kv_heads": 2**14,
    "head_size": 2**14,
    "mlp_size": 2**22,
    "context_length": 2**30,
    "original_context": 2**30,
}
MOST_EXPERTS = 2**14
# The other numbers.
# Upper bounds of positive numbers, which a value must be below.
POSITIVE = {"norm_eps": 1.0} | dict.fromkeys(
    ("rope_theta", "factor", "low_frequency_factor", "high_frequency_factor"), 1e30
)


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """Another theta for texts beyond the model's context. Within the context it changes nothing."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's long-context scaling of the rotary frequencies."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071). attention_factor: of cosines and sines; None: by `factor` and the two mscales.

    truncate: round the bounds of the interpolated dimensions. query_beta: queries are multiplied by 1 + query_beta
    log(1 + floor(position / original_context)) (Ministral 3), None for 1.
    """

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None
    truncate: bool
    query_beta: float | None = None


# What the last hidden state is multiplied by: the vocabulary; one row, for a reward; one row, for the log-odds of the
# first label; a row for each of the two labels.
Head = Literal["language", "scalar", "margin", "labels"]
HEAD_ROWS: dict[Head, int] = {"language": 0, "scalar": 1, "margin": 1, "labels": 2}


@dataclass(frozen=True)
class LongScaling:
    """LongRoPE of Phi-3 (arXiv 2402.13753), with the divisors of texts within the original context.

    short, long: divisors of the frequencies, within and beyond the original context. extended_context: the length that
    the longer divisors allow, which the decoder does not compute.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    extended_context: int
    attention_factor: float | None


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling

LayerType = Literal["full", "sliding", "no_rope"]


@dataclass(frozen=True)
class Traits:
    """Differences of a family's decoder from Llama's, whose values are the defaults.

    layer_types: of the first layers, repeated over all: "full" attention; "sliding": a query sees `window` keys, its
    own included, and rotates by local_rope_theta without scaling (None: as "full"); "no_rope": full, without rotation.
    rotary_size: number of leading dimensions of a head that rotate, None for all.
    norms: of the inputs of attention and MLP ("pre"), of their outputs ("post"), or of both. norm_offset: added to the
    weights of norms. projection_norm: qk_norm spans all heads. query_scale: factor of q k^T, None for H^-0.5.
    attention_softcap, logit_softcap: c in c tanh(x / c) of attention scores and of next-token logits.
    """

    layer_types: tuple[LayerType, ...] = ("full",)
    window: int | None = None
    local_rope_theta: float | None = None
    rotary_size: int | None = None
    norms: Literal["pre", "post", "both"] = "pre"
    norm_offset: float = 0.0
    projection_norm: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embed_scale: float | None = None
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None


@dataclass(frozen=True)
class Experts:
    """The MLPs of a mixture of experts (model/experts.py); mlp_size is the width of one.

    count: E. per_token: k, experts that a token is sent to. normalized: their weights are divided by their sum.
    balance: factor of the load-balancing loss in training, 0 without it.
    """

    count: int
    per_token: int
    normalized: bool
    balance: float


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and settings of a decoder with rotary positions, grouped-query attention and a gated MLP.

    head: "language" for next tokens; "scalar", "margin" or "labels" for the rows of a classifier. traits: differences
    from Llama. Raises LayoutError for values that no model can have.

    >>> from dataclasses import replace
    >>> from gram_jax.plan.models import published_config
    >>> qwen: ModelConfig = published_config("qwen3-1.7b")
    >>> qwen.layers, qwen.embed_size, qwen.query_heads // qwen.kv_heads
    (28, 2048, 2)
    >>> replace(qwen, layers=2).layers
    2
    """

    family: (
        str  # model_type of Hugging Face: determines names of tensors and the class of an export
    )
    vocab_size: int  # V
    embed_size: int  # D
    layers: int  # L
    query_heads: int  # N
    kv_heads: int  # K
    head_size: int  # H
    mlp_size: int  # F
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    qkv_bias: bool
    qk_norm: bool
    tied_head: bool
    context_length: int  # maximum length of a sequence
    head: Head = "language"
    traits: Traits = Traits()
    experts: Experts | None = None  # instead of one MLP in each layer

    def __post_init__(self) -> None:
        """Raises LayoutError with a list of all values that no model can have."""
        scaling = vars(self.rope_scaling) if self.rope_scaling else {}
        values = vars(self) | scaling
        problems = [
            f"{name} = {values[name]!r} (expected {expected})"
            for name in (*LARGEST, *POSITIVE)
            if name in values and (expected := misfit(name, values[name]))
        ]
        if not problems and (self.query_heads % self.kv_heads or self.head_size % 2):
            problems.append(
                f"{self.query_heads} query heads over {self.kv_heads} key-value heads of size {self.head_size} "
                "(expected a multiple of the key-value heads, and an even size)"
            )
        problems += [
            f"{name} = {value} (expected a finite number)"
            for name, value in scaling.items()
            if name not in POSITIVE and isinstance(value, float) and not math.isfinite(value)
        ]
        if (
            experts := self.experts
        ) and not 1 <= experts.per_token <= experts.count <= MOST_EXPERTS:
            problems.append(
                f"{experts.per_token} of {experts.count} experts for each token (expected 1 to all, of at most "
                f"{MOST_EXPERTS:,})"
            )
        factors = [scaling.get(f"{end}_frequency_factor") for end in ("low", "high")]
        if None not in factors and factors[0] == factors[1]:
            problems.append("rope scaling with equal low and high frequency factors")
        if problems:
            raise LayoutError(
                "the config has values that no model can have:\n  " + "\n  ".join(problems)
            )


def misfit(name: str, value: Any) -> str | None:
    """The expected values of a field of ModelConfig or RopeScaling; None if `value` is one of them.

    >>> misfit("layers", 10**6), misfit("layers", 28), misfit("norm_eps", float("inf"))
    ('an integer from 1 to 1,024', None, 'a number above 0 and below 1')
    """
    if name in POSITIVE:
        number = type(value) in (int, float) and 0 < value < POSITIVE[name]
        return None if number else f"a number above 0 and below {POSITIVE[name]:g}"
    fits = type(value) is int and 1 <= value <= LARGEST[name]
    return None if fits else f"an integer from 1 to {LARGEST[name]:,}"
