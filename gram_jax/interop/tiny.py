"""The model `tiny-random`, for tests and the fast demo: random weights and a small ChatML tokenizer."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gram_jax import tree
from gram_jax.judge.tokenizer import wrap_tokenizer
from gram_jax.model.config import ModelConfig
from gram_jax.model.specs import ParamSpec, param_specs
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Frequent English pairs ("Ġ" is byte-level BPE's space); 29 of them make 288 tokens with bytes and controls.
MERGES = (
    ("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("i", "n"), ("r", "e"), ("o", "n"), ("Ġt", "he"), ("e",
    "r"), ("Ġ", "s"), ("a", "t"), ("o", "r"), ("e", "n"), ("Ġ", "w"), ("i", "s"), ("e", "s"), ("n",
    "d"), ("Ġ", "o"), ("in", "g"), ("o", "u"), ("l", "l"), ("Ġa", "nd"), ("s", "t"), ("s", "e"),
    ("Ġ", "r"), ("s", "p"), ("on", "se"), ("re", "sp"), ("Ġ", "b"), ("e", "d"),
)  # fmt: skip
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


def tiny_tokenizer(
    chat_template: str = CHAT_TEMPLATE, context: int = 1024
) -> "PreTrainedTokenizerFast":
    """Byte-level BPE of 288 tokens: three control tokens, 256 bytes, 29 merges; no BOS. "A" and "B" are tokens."""
    letters = [*CONTROL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate([*letters, *(a + b for a, b in MERGES)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    )
    return wrap_tokenizer(
        backend,
        chat_template=chat_template,
        name_or_path="tiny",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=context,
    )


def tiny_config() -> ModelConfig:
    """Two layers of embed size 64."""
    return ModelConfig(
        family="llama",
        vocab_size=-(-len(tiny_tokenizer()) // 64) * 64,  # whole shards on any small mesh
        embed_size=64,
        layers=2,
        query_heads=4,
        kv_heads=2,
        head_size=16,
        mlp_size=128,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        qkv_bias=False,
        qk_norm=False,
        tied_head=True,
        context_length=1024,
    )


def tiny_params(cfg: ModelConfig, placement: Placement, dtype: str) -> Tree:
    """Random weights from numpy, equal on every mesh and JAX version, without compilation."""
    rng = np.random.default_rng(0)

    def draw(_: str, spec: ParamSpec) -> jax.Array:
        if spec.init == "normal":
            value = 0.02 * rng.standard_normal(spec.shape, np.float32)
        else:
            value = np.full(spec.shape, float(spec.init == "ones"), np.float32)
        value = value.astype(jnp.dtype(dtype))
        sharding = placement.sharding(*spec.axes)
        return jax.make_array_from_callback(spec.shape, sharding, lambda at: value[at])

    return tree.map_with_path(draw, param_specs(cfg))
