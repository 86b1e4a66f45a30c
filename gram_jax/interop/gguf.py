"""GGUF files: config, and weights dequantised with numpy (gguf_tokenizer.py rebuilds the tokenizer)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.errors import CheckpointError, LayoutError
from gram_jax.extras import needs_extra
from gram_jax.interop.assemble import StoredTensor, assemble, split_fused
from gram_jax.interop.hf_config import config_from_hf
from gram_jax.model.config import Llama3Scaling, ModelConfig
from gram_jax.model.rope import base_frequencies, llama3_factors
from gram_jax.sharding import Placement
from gram_jax.tree import Tree

with needs_extra("gguf"):
    from gguf import (
        GGML_QUANT_SIZES,
        GGMLQuantizationType,
        GGUFReader,
        GGUFValueType,
        ReaderTensor,
    )
    from gguf.quants import dequantize

# The model_type of each architecture; most files of Mistral's models are of the first. `_model_type` has two more.
FAMILIES: Mapping[str, str] = {
    "llama": "llama",
    "mistral3": "ministral3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
}
_WINDOW, _QUERY_BETA = "attention.sliding_window", "attention.temperature_scale"
# Of the largest models of a family, whose queries are scaled by the mean width of a head, not by its size.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
SPLIT = "split.count"  # number of the files of a model
# Divisors of the rotary frequencies, as which llama.cpp stores Llama 3's long-context scaling.
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")  # of LongRoPE
# Elements of all metadata of a file; a vocabulary of 256,000 tokens and its merges have 1.5 million.
MAX_ELEMENTS = 8_000_000
_INTEGERS = ("I8", "I16", "I32", "I64", "F64")  # of other tensors than weights


def load_gguf(
    path: str | Path, placement: Placement, dtype: str | None
) -> tuple[ModelConfig, Tree]:
    """Config and parameters of a GGUF file. dtype None means float32, the type of dequantised weights.

    Raises CheckpointError for a damaged file, LayoutError for an unsupported model or quantisation.
    """
    file = open_gguf(path)
    cfg = gguf_config(path)
    tensors = {
        name: tensor
        for name, tensor in file.tensors.items()
        if name not in (ROPE_FACTORS, *LONG_FACTORS)
    }
    kinds = {tensor.tensor_type for tensor in tensors.values()}
    if unknown := sorted(kind.name for kind in kinds if not _is_readable(kind)):
        raise LayoutError(
            f"{path} holds tensors in {', '.join(unknown)}, which the package gguf does not dequantise; supported: "
            f"{', '.join(kind.name for kind in GGMLQuantizationType if _is_readable(kind))}"
        )
    stored = {name: _stored(cfg, tensor, Path(path).name) for name, tensor in tensors.items()}
    try:
        split_fused(cfg, stored, "gguf")
        return cfg, assemble(cfg, stored, "gguf", placement, dtype)
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error


@cache
def _is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether the package gguf dequantises this type: it has no list of them."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return kind.name not in _INTEGERS


def gguf_config(path: str | Path) -> ModelConfig:
    """ModelConfig from a GGUF file's metadata."""
    try:
        return _config(open_gguf(path))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LayoutError(f"{path} holds a value of the wrong type: {error}") from error


class _Reader(GGUFReader):
    """GGUFReader, faster and with a check of lengths.

    The base class slices a vocabulary 250,000 times, which is slow with a np.memmap. Beyond the end of a file it
    reads empty arrays, as many as a damaged length states. It keeps an array of 100 bytes for each text of the
    metadata, so the number of elements is limited, too. Arrays of arrays, which no model has, are rejected.
    """

    elements = 0

    def __setattr__(self, name: str, value: Any) -> None:
        plain = isinstance(value, np.memmap)
        super().__setattr__(name, np.asarray(value) if plain else value)

    def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> Any:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > self.data.size:
            raise ValueError(f"it ends at byte {self.data.size}, expected at least {end}")
        self._count(1)
        return super()._get(offset, dtype, count, *rest, **named)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        if kind[0] == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays in its metadata")
        self._count(int(length[0]))
        types = [GGUFValueType.ARRAY, GGUFValueType(kind[0])]
        if (dtype := self.gguf_scalar_to_np.get(types[1])) is None:
            return super()._get_field_parts(orig_offs, raw_type)
        values = self._get(orig_offs + 12, dtype, int(length[0]))
        return 12 + values.nbytes, [kind, length, values], [2] if values.size else [], types

    def _count(self, elements: int) -> None:
        self.elements += elements
        if self.elements > MAX_ELEMENTS:
            raise ValueError(f"its metadata have more than {MAX_ELEMENTS:,} elements")


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
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for other in _other_parts(path, metadata):
        tensors |= {tensor.name: tensor for tensor in _Reader(other).tensors}
    if metadata.get(SPLIT, 1) > 1 and len(tensors) != metadata["split.tensors.count"]:
        raise ValueError(
            f"its parts hold {len(tensors)} tensors of {metadata['split.tensors.count']}"
        )
    return GgufFile(metadata, tensors)


def _other_parts(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The other files of a model that is split into several. Raises CheckpointError unless `path` is the first."""
    if (count := metadata.get(SPLIT, 1)) == 1:
        return []
    name = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", path.stem)
    if name is None:
        raise CheckpointError(
            f"{path} is one of the {count} files of a model: expected the name NAME-00001-of-{count:05}.gguf"
        )
    parts = [path.with_name(f"{name[1]}-{at:05}-of-{count:05}.gguf") for at in range(1, count + 1)]
    if path != parts[0]:
        raise CheckpointError(
            f"{path} is a later file of a model: give the first one, {parts[0].name}"
        )
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(
            f"{path} is the first of {count} files; {', '.join(missing)} are not next to it"
        )
    return parts[1:]


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _config(file: GgufFile) -> ModelConfig:
    family = file.metadata.get("general.architecture")
    if not isinstance(family, str) or family not in FAMILIES:
        raise LayoutError(
            f"the GGUF file's architecture is {family!r}; gram_jax supports {', '.join(FAMILIES)}. Use the model's "
            "Hugging Face folder, which can be of more families"
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
    head_size = found.get("attention.key_length", embed // heads)
    rotated = found.get("rope.dimension_count", head_size)
    for name in ("attention.value_length", "rope.dimension_count"):
        if found.get(name, head_size) != head_size and (name[0] == "a" or family != "phi3"):
            raise LayoutError(
                f"{prefix}{name} is {found[name]}, expected the head size {head_size}"
            )
    cfg = config_from_hf(
        {
            "model_type": _model_type(family, found),
            "vocab_size": _shape(file.tensors["token_embd.weight"])[0],
            "hidden_size": embed,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_size,
            "intermediate_size": mlp,
            "rms_norm_eps": _decimal(eps),
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "max_position_embeddings": context,
            "rope_theta": float(found.get("rope.freq_base", 10000.0)),
            **_traits(family, found, rotated / head_size),
            **_long_rope(file, found),
            **_rope_scaling(found),
        }
    )
    if (factors := file.tensors.get(ROPE_FACTORS)) is not None:
        divisors = np.asarray(factors.data, np.float32).ravel()
        scaling = recover_rope_scaling(divisors, cfg.rope_theta, head_size, context)
        return replace(cfg, rope_scaling=scaling)
    return cfg


def _model_type(family: str, found: Mapping[str, Any]) -> str:
    """The model_type of a file; two architectures are those of two families."""
    if family == "olmo2" and _WINDOW in found:
        return "olmo3"
    if family == "mistral3" and _QUERY_BETA not in found:
        return "llama"
    return FAMILIES[family]


def _traits(family: str, found: Mapping[str, Any], rotated: float) -> dict[str, Any]:
    """Entries of a config.json beyond sizes, from a file's metadata. rotated: part of a head that rotates."""
    embed, heads = found["embedding_length"], found["attention.head_count"]
    entries: dict[str, Any] = {}
    if family == "qwen3moe":
        entries |= {
            "moe_intermediate_size": found.get("expert_feed_forward_length"),
            "num_experts": found.get("expert_count"),
            "num_experts_per_tok": found.get("expert_used_count"),
            "norm_topk_prob": True,  # not stored; llama.cpp computes it for this architecture
        }
    elif found.get("expert_count"):
        raise LayoutError(
            f"the GGUF file is a mixture of experts of the architecture {family!r}; supported: 'qwen3moe'"
        )
    if family == "phi3":
        entries["partial_rotary_factor"] = rotated
    if family in ("phi3", "gemma2", "gemma3", "olmo2"):
        entries["sliding_window"] = found.get(_WINDOW) or None
    if family == "olmo2" and (slides := found.get(f"{_WINDOW}_pattern")):
        entries["layer_types"] = [f"{'sliding' if x else 'full'}_attention" for x in slides]
    if family in _SCALED_BY_WIDTH:
        wide = found["block_count"] == _SCALED_BY_WIDTH[family]
        entries["query_pre_attn_scalar"] = embed // heads if wide else found["attention.key_length"]
    if family == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if name in found:
                entries[name] = float(found[name])
    return entries


def _long_rope(file: GgufFile, found: Mapping[str, Any]) -> dict[str, Any]:
    """LongRoPE's entries of a config.json, whose divisors are tensors of the file."""
    if not all(name in file.tensors for name in LONG_FACTORS):
        return {}
    short, long = (
        np.asarray(file.tensors[name].data, np.float32).ravel().tolist() for name in LONG_FACTORS
    )
    scaling = {"type": "longrope", "short_factor": short, "long_factor": long}
    original = found.get("rope.scaling.original_context_length")
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def _rope_scaling(found: Mapping[str, Any]) -> dict[str, Any]:
    """The block of a config.json for linear scaling and YaRN."""
    kind, factor = found.get("rope.scaling.type", "none"), found.get("rope.scaling.factor")
    original = found.get("rope.scaling.original_context_length")
    if kind == "none":
        return {}
    if kind == "linear" and factor:
        return {"rope_scaling": {"rope_type": "linear", "factor": float(factor)}}
    if kind == "yarn" and factor and original:
        # mscale is not stored; in files with the multiplier it is the same, so that the attention factor is 1.
        multiplier = found.get("rope.scaling.yarn_log_multiplier")
        values = {
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": found.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": found.get("rope.scaling.yarn_beta_slow"),
            "attention_factor": found.get("rope.scaling.attn_factor"),
            "mscale": multiplier,
            "mscale_all_dim": multiplier,
            "llama_4_scaling_beta": found.get(_QUERY_BETA),
        }
        stated = {name: _decimal(value) for name, value in values.items() if value}
        return {"rope_scaling": {"rope_type": "yarn"} | stated}
    raise LayoutError(
        f"rope scaling of type {kind!r}, factor {factor}, original context {original} in a GGUF file (supported: none, "
        "linear and yarn with these numbers, Llama 3's)"
    )


def _decimal(value: float) -> float:
    """The shortest decimal of a number that is stored as float32: 1e-05, not 9.99999974e-06."""
    return value if isinstance(value, int) else float(str(np.float32(value)))


def recover_rope_scaling(
    factors: np.ndarray, theta: float, head_size: int, context: int
) -> Llama3Scaling:
    """Llama 3's scaling from the divisor of each rotary frequency, f32 [H / 2], which is all that llama.cpp stores.

    Tries the usual values: published models have low 1, high 4 and a power of two as original context. Raises
    LayoutError if none of them gives these divisors.
    """
    factor = float(factors.max())
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        for low, high in ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0)):
            scaling = Llama3Scaling(factor, low, high, original)
            expected = 1 / llama3_factors(base_frequencies(theta, head_size), scaling)
            if expected.shape == factors.shape and np.allclose(expected, factors, rtol=1e-4):
                return scaling
    raise LayoutError(
        f"{ROPE_FACTORS} is not Llama 3's rope scaling with usual values (context {context}, largest divisor "
        f"{factor:g}): use the model's Hugging Face folder, whose config.json states it"
    )


def _stored(cfg: ModelConfig, tensor: ReaderTensor, file: str) -> StoredTensor:
    # llama.cpp's converter interleaves the rotary halves of these, but not those of other families, and adds the
    # offset to the weights of norms.
    paired = cfg.family in ("llama", "ministral3", "smollm3") and tensor.name.endswith(
        ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")
    )

    def read(part: tuple[slice, ...]) -> np.ndarray:
        rows = dequantize(tensor.data[part[0]], tensor.tensor_type)
        if paired:
            pairs = rows.reshape(-1, cfg.head_size // 2, 2, *rows.shape[1:])
            rows = pairs.swapaxes(1, 2).reshape(rows.shape)
        if cfg.traits.norm_offset and tensor.name.endswith("norm.weight"):
            rows = rows - np.float32(cfg.traits.norm_offset)
        return rows[(slice(None), *part[1:])]

    return StoredTensor(_shape(tensor), "float32", file, read)
