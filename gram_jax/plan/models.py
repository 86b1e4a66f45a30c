"""Shapes of published models from their config.json, so that a plan needs no download."""

from gram_jax.model.config import ModelConfig, RopeScaling


def published_config(name: str) -> ModelConfig | None:
    """The shape behind a name such as "qwen3-8b" or "Qwen/Qwen3-8B-Base"; None for any other.

    >>> published_config("meta-llama/Llama-3.2-3B-Instruct") == published_config("llama3.2-3b")
    True
    """
    short = name.rsplit("/", 1)[-1].lower().removesuffix("-instruct").removesuffix("-base")
    return PUBLISHED.get(short.replace("llama-", "llama"))


def _qwen3(
    embed_size: int, layers: int, query_heads: int, mlp_size: int, tied_head: bool
) -> ModelConfig:
    return ModelConfig(
        family="qwen3",
        vocab_size=151936,
        embed_size=embed_size,
        layers=layers,
        query_heads=query_heads,
        kv_heads=8,
        head_size=128,
        mlp_size=mlp_size,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling=None,
        qkv_bias=False,
        qk_norm=True,
        tied_head=tied_head,
        context_length=40960,
    )


def _llama3(
    embed_size: int,
    layers: int,
    query_heads: int,
    head_size: int,
    mlp_size: int,
    rope_factor: float,
    tied_head: bool,
) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=128256,
        embed_size=embed_size,
        layers=layers,
        query_heads=query_heads,
        kv_heads=8,
        head_size=head_size,
        mlp_size=mlp_size,
        norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling=RopeScaling(rope_factor, 1.0, 4.0, 8192),
        qkv_bias=False,
        qk_norm=False,
        tied_head=tied_head,
        context_length=131072,
    )


PUBLISHED: dict[str, ModelConfig] = {
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288, False),
    "qwen3-14b": _qwen3(5120, 40, 40, 17408, False),
    "qwen3-32b": _qwen3(5120, 64, 64, 25600, False),
    "llama3.2-1b": _llama3(2048, 16, 32, 64, 8192, 32.0, True),
    "llama3.2-3b": _llama3(3072, 28, 24, 128, 8192, 32.0, True),
    "llama3.1-8b": _llama3(4096, 32, 32, 128, 14336, 8.0, False),
    "llama3.3-70b": _llama3(8192, 80, 64, 128, 28672, 8.0, False),
}
