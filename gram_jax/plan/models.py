"""Shapes of published models from their config.json, so that a plan needs no download."""

from typing import Any

from gram_jax.model.config import Llama3Scaling, ModelConfig

_QWEN3: dict[str, Any] = {
    "family": "qwen3",
    "vocab_size": 151936,
    "kv_heads": 8,
    "norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "qkv_bias": False,
    "qk_norm": True,
    "context_length": 40960,
}
_LLAMA31 = _QWEN3 | {
    "family": "llama",
    "vocab_size": 128256,
    "norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 8192),
    "qk_norm": False,
    "context_length": 131072,
}
_LLAMA32 = _LLAMA31 | {"rope_scaling": Llama3Scaling(32.0, 1.0, 4.0, 8192)}
_SIZES = ("embed_size", "layers", "query_heads", "head_size", "mlp_size", "tied_head")
PUBLISHED = {
    name: ModelConfig(**family, **dict[str, Any](zip(_SIZES, sizes, strict=True)))
    for name, family, *sizes in (
        ("qwen3-0.6b", _QWEN3, 1024, 28, 16, 128, 3072, True),
        ("qwen3-1.7b", _QWEN3, 2048, 28, 16, 128, 6144, True),
        ("qwen3-4b", _QWEN3, 2560, 36, 32, 128, 9728, True),
        ("qwen3-8b", _QWEN3, 4096, 36, 32, 128, 12288, False),
        ("qwen3-14b", _QWEN3, 5120, 40, 40, 128, 17408, False),
        ("qwen3-32b", _QWEN3, 5120, 64, 64, 128, 25600, False),
        ("llama3.2-1b", _LLAMA32, 2048, 16, 32, 64, 8192, True),
        ("llama3.2-3b", _LLAMA32, 3072, 28, 24, 128, 8192, True),
        ("llama3.1-8b", _LLAMA31, 4096, 32, 32, 128, 14336, False),
        ("llama3.3-70b", _LLAMA31, 8192, 80, 64, 128, 28672, False),
    )
}


def published_config(name: str) -> ModelConfig | None:
    """The shape behind a name such as "qwen3-8b" or "Qwen/Qwen3-8B-Base"; None for any other.

    >>> published_config("meta-llama/Llama-3.2-3B-Instruct") == published_config("llama3.2-3b")
    True
    """
    short = name.rsplit("/", 1)[-1].lower().removesuffix("-instruct").removesuffix("-base")
    return PUBLISHED.get(short.replace("llama-", "llama"))
