"""GGUF files: weights dequantised with numpy, and the tokenizer rebuilt from the stored vocabulary."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.extras import needs_extra
from gram_jax.interop.assemble import StoredTensor, assemble
from gram_jax.interop.hf_config import FAMILIES
from gram_jax.judge.tokenizer import wrap_tokenizer
from gram_jax.model.config import ModelConfig, RopeScaling
from gram_jax.model.rope import base_frequencies, llama3_factors
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

with needs_extra("gguf"):
    from gguf import GGUFReader, ReaderTensor
    from gguf.quants import dequantize

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

QUANTS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
# Divisors of the rotary frequencies, as which llama.cpp stores Llama 3's long-context scaling.
ROPE_FACTORS = "rope_freqs.weight"
# Elements of all metadata of a file; a vocabulary of 256,000 tokens and its merges have 1.5 million.
MAX_ELEMENTS = 8_000_000
CONTROL, USER_DEFINED = 3, 4  # token types that are never split


def load_gguf(
    path: str | Path, placement: Placement, dtype: str | None
) -> tuple[ModelConfig, Tree]:
    """Config and parameters of a GGUF file. dtype None means float32, the type of dequantised weights.

    Raises CheckpointError for a damaged file, LayoutError for an unsupported model or quantisation.
    """
    file = open_gguf(path)
    cfg = gguf_config(path)
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
    kinds = {tensor.tensor_type.name for tensor in tensors.values()}
    if unknown := sorted(kinds - set(QUANTS)):
        raise LayoutError(
            f"{path} holds tensors in {', '.join(unknown)}; supported: {', '.join(QUANTS)}"
        )
    stored = {name: _stored(cfg, tensor, Path(path).name) for name, tensor in tensors.items()}
    try:
        return cfg, assemble(cfg, stored, "gguf", placement, dtype)
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error


def gguf_config(path: str | Path) -> ModelConfig:
    """ModelConfig from a GGUF file's metadata."""
    try:
        return _config(open_gguf(path))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LayoutError(f"{path} holds a value of the wrong type: {error}") from error


class _Reader(GGUFReader):
    """GGUFReader, faster and with a check of lengths.

    The base class slices a vocabulary 250,000 times, which is slow with a np.memmap. Beyond the end of a file it
    reads empty arrays, as many as a damaged length states. It keeps an array of 100 bytes for each element of
    the metadata, so their number is limited, too.
    """

    elements = 0

    def __setattr__(self, name: str, value: Any) -> None:
        plain = isinstance(value, np.memmap)
        super().__setattr__(name, np.asarray(value) if plain else value)

    def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> Any:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > self.data.size:
            raise ValueError(f"it ends at byte {self.data.size}, expected at least {end}")
        self.elements += 1
        if self.elements > MAX_ELEMENTS:
            raise ValueError(f"its metadata have more than {MAX_ELEMENTS:,} elements")
        return super()._get(offset, dtype, count, *rest, **named)


class GgufFile(NamedTuple):
    """The values of a file by key, and its tensors by name, still quantised."""

    metadata: dict[str, Any]
    tensors: dict[str, ReaderTensor]


def open_gguf(path: str | Path) -> GgufFile:
    """Parse a file. The last one is cached, because weights, config and tokenizer are read one after another."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            if (magic := file.read(4)) != b"GGUF":
                raise CheckpointError(f"{path} is not a GGUF file: it starts with {magic!r}")
        status = path.stat()
        return _parse(path.absolute(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error}") from error
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path} is damaged or truncated ({error}): compare its size with the source, download it again"
        ) from error


@lru_cache(maxsize=1)
def _parse(path: Path, size: int, changed: int) -> GgufFile:
    reader = _Reader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return GgufFile(metadata, {tensor.name: tensor for tensor in reader.tensors})


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _config(file: GgufFile) -> ModelConfig:
    family = file.metadata.get("general.architecture")
    if family not in FAMILIES:
        raise LayoutError(
            f"the GGUF file's architecture is {family!r}; gram_jax supports {', '.join(FAMILIES)}"
        )
    prefix = f"{family}."
    found = {n[len(prefix) :]: x for n, x in file.metadata.items() if n.startswith(prefix)}
    names = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length")
    names += ("context_length", "attention.layer_norm_rms_epsilon")
    if missing := [prefix + name for name in names if not found.get(name)]:
        raise LayoutError(f"the GGUF file's metadata lacks {', '.join(missing)}")
    embed, layers, heads, mlp, context, eps = (found[name] for name in names)
    kv_heads = found.get("attention.head_count_kv", heads)
    if isinstance(heads, list) or isinstance(kv_heads, list) or isinstance(mlp, list):
        raise LayoutError("the GGUF file's layers differ in size; gram_jax supports equal layers")
    if "token_embd.weight" not in file.tensors:
        raise LayoutError("the GGUF file has no token_embd.weight: it holds no complete model")
    if found.get("expert_count"):
        raise LayoutError("the GGUF file is a mixture of experts; gram_jax supports dense models")
    head_size = found.get("attention.key_length", embed // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if found.get(name, head_size) != head_size:
            raise LayoutError(
                f"{prefix}{name} is {found[name]}, expected the head size {head_size}"
            )
    if (kind := found.get("rope.scaling.type", "none")) != "none":
        raise LayoutError(
            f"rope scaling of type {kind!r} in a GGUF file (supported: none, Llama 3's)"
        )
    theta, scaling = float(found.get("rope.freq_base", 10000.0)), None
    if (factors := file.tensors.get(ROPE_FACTORS)) is not None:
        divisors = np.asarray(factors.data, np.float32).ravel()
        scaling = recover_rope_scaling(divisors, theta, head_size, context)
    return ModelConfig(
        family=family,
        vocab_size=_shape(file.tensors["token_embd.weight"])[0],
        embed_size=embed,
        layers=layers,
        query_heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_size=mlp,
        norm_eps=float(str(np.float32(eps))),  # the shortest decimal: 1e-05, not 9.99999974e-06
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head="output.weight" not in file.tensors,
        context_length=context,
    )


def recover_rope_scaling(
    factors: np.ndarray, theta: float, head_size: int, context: int
) -> RopeScaling:
    """Llama 3's scaling from the divisor of each rotary frequency, f32 [H / 2], which is all that llama.cpp stores.

    Tries the usual values: published models have low 1, high 4 and a power of two as original context. Raises
    LayoutError if none of them gives these divisors.
    """
    factor = float(factors.max())
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        for low, high in ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0)):
            scaling = RopeScaling(factor, low, high, original)
            expected = 1 / llama3_factors(base_frequencies(theta, head_size), scaling)
            if expected.shape == factors.shape and np.allclose(expected, factors, rtol=1e-4):
                return scaling
    raise LayoutError(
        f"{ROPE_FACTORS} is not Llama 3's rope scaling with usual values (context {context}, largest divisor "
        f"{factor:g}): use the model's Hugging Face folder, whose config.json states it"
    )


def _stored(cfg: ModelConfig, tensor: ReaderTensor, file: str) -> StoredTensor:
    # llama.cpp's converter interleaves the rotary halves of llama, but not those of qwen.
    paired = cfg.family == "llama" and tensor.name.endswith(
        ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")
    )

    def read(part: tuple[slice, ...]) -> np.ndarray:
        rows = dequantize(tensor.data[part[0]], tensor.tensor_type)
        if paired:
            pairs = rows.reshape(-1, cfg.head_size // 2, 2, *rows.shape[1:])
            rows = pairs.swapaxes(1, 2).reshape(rows.shape)
        return rows[(slice(None), *part[1:])]

    return StoredTensor(_shape(tensor), "float32", file, read)


# Splits before byte-level BPE by `tokenizer.ggml.pre`, as in the published tokenizers. smollm splits off every digit,
# then splits as GPT-2 does.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


_INSTEAD = "Load the tokenizer of the model's Hugging Face folder instead"


def gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a GGUF file, with its special tokens and chat template.

    Supports byte-level BPE ("gpt2") with the splits of smollm, llama-bpe or qwen2. Raises LayoutError for other
    tokenizers, CheckpointError for a damaged file.
    """
    found = open_gguf(path).metadata
    kind = found.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise LayoutError(
            f"{path}: tokenizer model {kind!r} cannot be rebuilt, only byte-level BPE ('gpt2'). {_INSTEAD}"
        )
    tokens, merges, types = (
        found.get(f"tokenizer.ggml.{name}", []) for name in ("tokens", "merges", "token_type")
    )
    if not tokens or len(types) != len(tokens):
        raise LayoutError(f"{path}: {len(tokens)} tokens and {len(types)} token types do not fit")
    pre = found.get("tokenizer.ggml.pre")
    try:
        backend = Tokenizer(
            models.BPE(
                vocab={token: i for i, token in enumerate(tokens)},
                merges=[tuple(merge.split(" ", 1)) for merge in merges],
                ignore_merges=pre == "llama-bpe",
            )
        )
    except Exception as error:  # the library raises no specific class
        raise CheckpointError(f"{path}: the tokenizer's merges are damaged: {error}") from error
    _set_splits(backend, pre, str(path))
    backend.decoder = decoders.ByteLevel()

    def added(wanted: int, **options: Any) -> list[AddedToken]:
        found = (token for token, kind in zip(tokens, types, strict=True) if kind == wanted)
        return [AddedToken(token, normalized=False, **options) for token in found]

    backend.add_special_tokens(added(CONTROL, special=True))
    backend.add_tokens(added(USER_DEFINED))
    special = {
        f"{role}_token": tokens[found[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if found.get(f"tokenizer.ggml.{key}_token_id", len(tokens)) < len(tokens)
    }
    if "bos_token" in special and found.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    family = found.get("general.architecture")
    return wrap_tokenizer(
        backend,
        chat_template=found.get("tokenizer.chat_template"),
        name_or_path=str(path),
        model_max_length=found.get(f"{family}.context_length", 2048),
        **special,
    )


def _set_splits(backend: Tokenizer, pre: str | None, path: str) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre == "smollm")
    if pre == "smollm":
        first = pre_tokenizers.Digits(individual_digits=True)
    elif pre in ("llama-bpe", "qwen2"):
        expression = _QWEN2 if pre == "qwen2" else _LLAMA3
        first = pre_tokenizers.Split(Regex(expression), "isolated")
    else:
        raise LayoutError(
            f"{path}: the tokenizer splits text as {pre!r}; supported: smollm, llama-bpe, qwen2. {_INSTEAD}"
        )
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
