"""Shapes of published models from their config.json, so that a plan needs no download."""

import re
from typing import Any

from gram_jax.interop.hf_config import config_from_hf
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
_ENTRIES = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_ENTRIES += ("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings")
_ENTRIES += ("rms_norm_eps", "tie_word_embeddings", "rope_theta")
# Values of _ENTRIES, and what a config.json states beyond them.
_OTHERS = (
    (
        "qwen3-30b-a3b",
        ("qwen3_moe", 151936, 2048, 48, 32, 4, 128, 6144, 40960, 1e-6, False, 1e6),
        {
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
        },
    ),
    (
        "mistral-7b",
        ("mistral", 32768, 4096, 32, 32, 8, 128, 14336, 32768, 1e-5, False, 1e6),
        {"sliding_window": None},
    ),
    (
        "ministral-3-8b",
        ("ministral3", 131072, 4096, 34, 32, 8, 128, 14336, 262144, 1e-5, False, 1e6),
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    (
        "smollm3-3b",
        ("smollm3", 128256, 2048, 36, 16, 4, 128, 11008, 65536, 1e-6, True, 5e6),
        {},
    ),
    ("phi-4", ("phi3", 100352, 5120, 40, 40, 10, 128, 17920, 16384, 1e-5, False, 2.5e5), {}),
    (
        "gemma-2-9b",
        ("gemma2", 256000, 3584, 42, 16, 8, 256, 14336, 8192, 1e-6, True, 1e4),
        {"sliding_window": 4096, "query_pre_attn_scalar": 256},
    ),
    (
        "gemma-3-12b",
        ("gemma3_text", 262208, 3840, 48, 16, 8, 256, 15360, 131072, 1e-6, True, 1e6),
        {
            "sliding_window": 1024,
            "query_pre_attn_scalar": 256,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    (
        "olmo-2-7b",
        ("olmo2", 100352, 4096, 32, 32, 32, 128, 11008, 4096, 1e-6, False, 5e5),
        {},
    ),
)
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
} | {
    name: config_from_hf(dict(zip(_ENTRIES, values, strict=True)) | more)
    for name, values, more in _OTHERS
}


def published_config(name: str) -> ModelConfig | None:
    """The shape behind a name such as "qwen3-8b" or "Qwen/Qwen3-8B-Base"; None for any other.

    >>> published_config("meta-llama/Llama-3.2-3B-Instruct") == published_config("llama3.2-3b")
    True
    """
    short = name.rsplit("/", 1)[-1].lower().replace("olmo-2-1124", "olmo-2")
    short = re.sub(r"-(instruct|base|it|pt|reasoning)(?=-|$)", "", short)
    short = re.sub(r"^(mistral-7b)-v0\.3$|^(ministral-3-8b)-2512$", r"\1\2", short)
    return PUBLISHED.get(short.replace("llama-", "llama"))
