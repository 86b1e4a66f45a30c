"""The sizes and traits of a decoder. No field has a default: every importer states all of them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's long-context scaling of the rotary frequencies."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


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
