"""The sizes and traits of a decoder. No field has a default: every importer states all of them."""

from dataclasses import dataclass
from typing import Literal


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

    truncate: round the bounds of the interpolated dimensions.
    """

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None
    truncate: bool


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder with rotary positions, grouped-query attention and a SwiGLU MLP.

    >>> from dataclasses import replace
    >>> from gram_jax.plan.models import published_config
    >>> qwen: ModelConfig = published_config("qwen3-1.7b")
    >>> qwen.layers, qwen.embed_size, qwen.query_heads // qwen.kv_heads
    (28, 2048, 2)
    >>> replace(qwen, layers=2).layers
    2
    """

    family: Literal["llama", "qwen2", "qwen3"]  # determines the Hugging Face class of an export
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
