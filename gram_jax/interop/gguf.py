"""GGUF files: weights dequantised with numpy, and the tokenizer rebuilt from the vocabulary that
they carry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from gram_jax.judge.tokenizer import wrap_tokenizer
from gram_jax.model.config import ModelConfig, RopeScaling
from gram_jax.model.rope import base_frequencies, llama3_factors
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

with needs_extra("gguf"):
    from gguf import GGMLQuantizationType as Quant
    from gguf import GGUFReader, ReaderTensor
    from gguf.quants import dequantize

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

FAMILIES = ("llama", "qwen2", "qwen3")
QUANTS = (
    Quant.F32,
    Quant.F16,
    Quant.BF16,
    Quant.Q8_0,
    Quant.Q4_0,
    Quant.Q4_1,
    Quant.Q4_K,
    Quant.Q6_K,
)
# Rotary frequencies divided per pair of dimensions: how llama.cpp stores Llama 3's long-context
# stretch.
ROPE_FACTORS = "rope_freqs.weight"
CONTROL, USER_DEFINED = 3, 4  # token types of the format that mark whole, unsplittable strings


def load_gguf(
    path: str | Path, placement: Placement, dtype: str | None
) -> tuple[ModelConfig, Tree]:
    """Config and parameters of a GGUF file. dtype None means float32, which is what dequantisation
    gives.

    Raises CheckpointError for a damaged file, LayoutError for a model or quantisation that is not
    known here.
    """
    file = open_gguf(path)
    cfg = _config(file)
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
    if unknown := sorted(
        {t.tensor_type.name for t in tensors.values() if t.tensor_type not in QUANTS}
    ):
        raise LayoutError(
            f"{path} holds tensors in {', '.join(unknown)}; known are "
            f"{', '.join(q.name for q in QUANTS)}"
        )
    stored = {name: _stored(cfg, tensor, Path(path).name) for name, tensor in tensors.items()}
    try:
        return cfg, assemble(cfg, stored, "gguf", placement, dtype)
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error


def gguf_config(path: str | Path) -> ModelConfig:
    """ModelConfig from a GGUF file's metadata."""
    return _config(open_gguf(path))


class _Reader(GGUFReader):
    """The package's reader, quicker and stricter.

    It makes 250,000 slices of a vocabulary, which are slow ones of a np.memmap; and past the end of
    a file it would read empty arrays for as long as a damaged length says.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        plain = isinstance(value, np.memmap)
        super().__setattr__(name, np.asarray(value) if plain else value)

    def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> Any:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > self.data.size:
            raise ValueError(f"it ends at byte {self.data.size}, expected at least {end}")
        return super()._get(offset, dtype, count, *rest, **named)


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says: scalars, texts and lists by key, and the tensors by name, still
    quantised.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]


def open_gguf(path: str | Path) -> GgufFile:
    """Parse a file; the last one stays parsed, because weights, config and tokenizer are read one
    after another.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if (magic := file.read(4)) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF file: it starts with {magic!r}")
        status = path.stat()
        return _parse(path.absolute(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error}): compare its size with the source, download "
            "it again"
        ) from error


@lru_cache(maxsize=1)
def _parse(path: Path, size: int, changed: int) -> GgufFile:
    reader = _Reader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def _config(file: GgufFile) -> ModelConfig:
    found = file.metadata
    family = found.get("general.architecture")
    if family not in FAMILIES:
        raise LayoutError(
            f"the GGUF file's architecture is {family!r}; gram_jax runs {', '.join(FAMILIES)}"
        )
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in file.tensors.values()}
    names = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length")
    names += ("context_length", "attention.layer_norm_rms_epsilon")
    if missing := [f"{family}.{n}" for n in names if not found.get(f"{family}.{n}")]:
        raise LayoutError(f"the GGUF file's metadata lacks {', '.join(missing)}")
    embed, layers, heads, mlp, context, eps = (found[f"{family}.{n}"] for n in names)
    kv_heads = found.get(f"{family}.attention.head_count_kv", heads)
    if isinstance(heads, list) or isinstance(kv_heads, list) or isinstance(mlp, list):
        raise LayoutError("the GGUF file's layers differ in size; gram_jax runs equal layers only")
    if "token_embd.weight" not in shapes:
        raise LayoutError("the GGUF file has no token_embd.weight: it holds no complete model")
    if found.get(f"{family}.expert_count"):
        raise LayoutError("the GGUF file holds a mixture of experts; gram_jax runs dense models")
    head_size = found.get(f"{family}.attention.key_length", embed // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if found.get(f"{family}.{name}", head_size) != head_size:
            raise LayoutError(
                f"{family}.{name} is {found[f'{family}.{name}']}, expected the head size "
                f"{head_size}"
            )
    theta = float(found.get(f"{family}.rope.freq_base", 10000.0))
    return ModelConfig(
        family=family,
        vocab_size=shapes["token_embd.weight"][0],
        embed_size=embed,
        layers=layers,
        query_heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_size=mlp,
        norm_eps=_short(eps),
        rope_theta=theta,
        rope_scaling=_rope_scaling(file, theta, head_size, context),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head="output.weight" not in shapes,
        context_length=context,
    )


def _short(value: float) -> float:
    """The shortest decimal with this float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, theta: float, head_size: int, context: int) -> RopeScaling | None:
    kind = file.metadata.get(f"{file.metadata['general.architecture']}.rope.scaling.type", "none")
    if kind != "none":
        raise LayoutError(
            f"the GGUF file stretches its rotary frequencies by {kind!r}; known are none and Llama "
            "3's"
        )
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is None:
        return None
    return recover_rope_scaling(
        np.asarray(factors.data, np.float32).ravel(), theta, head_size, context
    )


def recover_rope_scaling(
    factors: np.ndarray, theta: float, head_size: int, context: int
) -> RopeScaling:
    """Llama 3's four numbers from the divisor of each rotary frequency, f32 [H / 2].

    llama.cpp stores only the divisors: 1 for short wavelengths, `factor` for long ones, a blend
    between. Every published model uses low 1, high 4 and a power of two as original context, so
    those are tried; the divisors have to come out the same. Raises LayoutError otherwise.
    """
    factor = float(factors.max())
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        for low, high in ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0)):
            scaling = RopeScaling(factor, low, high, original)
            expected = 1 / llama3_factors(base_frequencies(theta, head_size), scaling)
            if expected.shape == factors.shape and np.allclose(expected, factors, rtol=1e-4):
                return scaling
    raise LayoutError(
        f"{ROPE_FACTORS} is not Llama 3's stretch for any usual setting (context {context}, "
        f"largest divisor {factor:g}): use the model's Hugging Face folder, whose config.json "
        "states it"
    )


def _stored(cfg: ModelConfig, tensor: ReaderTensor, file: str) -> StoredTensor:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    # llama.cpp's converter turns llama's rotary halves into neighbours and leaves qwen's alone
    paired = cfg.family == "llama" and tensor.name.endswith(
        ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")
    )

    def read(part: tuple[slice, ...]) -> np.ndarray:
        rows = dequantize(tensor.data[part[0]], tensor.tensor_type)
        if paired:
            rows = _halves_from_pairs(rows, cfg.head_size)
        return rows[(slice(None), *part[1:])]

    return StoredTensor(shape, "float32", file, read)


def _halves_from_pairs(rows: np.ndarray, head_size: int) -> np.ndarray:
    """[heads * H, ...] whose rotary partners are neighbours -> partners H / 2 apart, as ours."""
    pairs = rows.reshape(-1, head_size // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


# How each `tokenizer.ggml.pre` cuts text before byte-level BPE; the expressions are those of the
# published tokenizers. smollm cuts every digit off first and then as GPT-2.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer inside a GGUF file, with its special tokens and chat template.

    Known are byte-level BPE vocabularies ("gpt2") cut as smollm, llama-bpe or qwen2. Raises
    LayoutError for others, CheckpointError for a damaged file.
    """
    found = open_gguf(path).metadata
    kind = found.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise LayoutError(
            f"{path}: tokenizer model {kind!r} cannot be rebuilt, only byte-level BPE ('gpt2'). "
            "Load the tokenizer of the model's Hugging Face folder instead"
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
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(f"{path}: the tokenizer's merges are damaged: {error}") from error
    _set_splits(backend, pre, str(path))
    backend.decoder = decoders.ByteLevel()
    marked = list(zip(tokens, types, strict=True))
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in marked if kind == CONTROL]
    )
    backend.add_tokens(
        [AddedToken(t, normalized=False) for t, kind in marked if kind == USER_DEFINED]
    )
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
            f"{path}: the tokenizer cuts text as {pre!r}; known are smollm, llama-bpe and qwen2. "
            "Load the tokenizer of the model's Hugging Face folder instead"
        )
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
