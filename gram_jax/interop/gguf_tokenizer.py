"""The tokenizer of a GGUF file, rebuilt from the stored vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from gram_jax.interop.gguf import open_gguf
from gram_jax.judge.tokenizer import wrap_tokenizer

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # token types; the last two are never split

# Splits before byte-level BPE by `tokenizer.ggml.pre`, as in the published tokenizers. smollm splits off every digit,
# then splits as GPT-2 does.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {"smollm": None, "llama-bpe": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}

_INSTEAD = "Load the tokenizer of the model's Hugging Face folder instead"


def gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a GGUF file, with its special tokens and chat template.

    Supports byte-level BPE ("gpt2") with the splits of `_SPLITS`, and SentencePiece's BPE ("llama"). Raises LayoutError
    for other tokenizers and values of the wrong type, CheckpointError for a damaged file.
    """
    try:
        return _rebuilt(path)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LayoutError(
            f"{path} holds a value of the wrong type for its tokenizer: {error}. {_INSTEAD}"
        ) from error


def _rebuilt(path: str | Path) -> "PreTrainedTokenizerFast":
    found = open_gguf(path).metadata
    kind, pre = found.get("tokenizer.ggml.model"), found.get("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama"):
        raise LayoutError(
            f"{path}: tokenizer model {kind!r} cannot be rebuilt, only byte-level BPE ('gpt2') and SentencePiece's BPE "
            f"('llama'). {_INSTEAD}"
        )
    tokens, merges, types, scores = (
        found.get(f"tokenizer.ggml.{name}", [])
        for name in ("tokens", "merges", "token_type", "scores")
    )
    if not tokens or len(types) != len(tokens) or (kind == "llama" and len(scores) != len(tokens)):
        raise LayoutError(
            f"{path}: {len(tokens)} tokens, {len(types)} token types and {len(scores)} scores do not fit"
        )
    try:
        if kind == "llama":
            backend = _sentencepiece(
                tokens, types, scores, blank=found.get("tokenizer.ggml.add_space_prefix", True)
            )
        else:
            backend = _byte_level(tokens, merges, pre, str(path))
    except LayoutError:
        raise
    except Exception as error:  # the library raises no specific class
        raise CheckpointError(f"{path}: the tokenizer's merges are damaged: {error}") from error

    def added(wanted: int, **options: Any) -> list[AddedToken]:
        found = (token for token, kind in zip(tokens, types, strict=True) if kind == wanted)
        return [AddedToken(token, normalized=False, **options) for token in found]

    backend.add_special_tokens(added(CONTROL, special=True))
    backend.add_tokens(added(USER_DEFINED))
    special = {
        f"{role}_token": tokens[found[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if 0 <= found.get(f"tokenizer.ggml.{key}_token_id", -1) < len(tokens)
    }
    if "bos_token" in special and found.get(
        "tokenizer.ggml.add_bos_token", kind == "llama" or pre == "llama-bpe"
    ):
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


def _byte_level(
    tokens: Sequence[str], merges: Sequence[str], pre: str | None, path: str
) -> Tokenizer:
    if pre not in _SPLITS:
        raise LayoutError(
            f"{path}: the tokenizer splits text as {pre!r}; supported: {', '.join(_SPLITS)}. {_INSTEAD}"
        )
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[(left, right) for left, right in (merge.split(" ", 1) for merge in merges)],
            ignore_merges=pre == "llama-bpe",
        )
    )
    if (expression := _SPLITS[pre]) is None:
        first = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(expression), "isolated")
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], *, blank: bool
) -> Tokenizer:
    """SentencePiece merges the neighbours that make the piece of the highest score. blank: put one before a text."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [
        (-scores[i], (token[:cut], token[cut:]))
        for i, token in enumerate(tokens)
        if types[i] == NORMAL
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    unknown = next(
        (token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None
    )
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[pair for _, pair in sorted(merges, key=lambda merge: merge[0])],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if blank else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if blank else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend
