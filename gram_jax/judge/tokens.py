"""Text to token ids, with control tokens recognised (chat frame) or not (texts)."""

import hashlib
import json
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gram_jax.errors import DataError, JudgeError

# Case, digits, blanks, line breaks, accents in two normal forms, an emoji and CJK: tokenizers with the same
# vocabulary and the same tokens for this text are treated as equal.
PROBE = "The 1st  Answer, 2024:\n\n\té e\u0301 don't ½ ['x']\r\n🙂 漢字 \u212a"


class TextEncoder:
    """The two encoders of a tokenizer: `frame` recognises control tokens, `text` does not.

    `text` is the same tokenizer without its added tokens, special or not (Qwen3's `<think>` is not marked special),
    except those of blanks, which only merge blanks. Raises JudgeError for a slow tokenizer, or one whose control tokens
    cannot be switched off.
    """

    def __init__(self, tokenizer: Any):
        self.name = tokenizer_name(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise JudgeError(
                f"tokenizer {self.name}: expected a fast tokenizer (one with a tokenizer.json), found "
                f"{type(tokenizer).__name__}. Save the tokenizer with its tokenizer.json and load that folder."
            )
        state = json.loads(backend.to_str())
        # The chat frame already contains what a post-processor adds, such as the beginning-of-text token.
        state.update(truncation=None, padding=None, post_processor=None)
        self._frame = Tokenizer.from_str(json.dumps(state))
        control = [t for t in state["added_tokens"] if not t["content"].isspace()]
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"].isspace()]
        self._text = Tokenizer.from_str(json.dumps(state))
        self.control_ids = frozenset(t["id"] for t in control)
        self._refuse_leaks(control)
        self._single: dict[str, int | None] = {}
        self._normalizes = _is_plain_normalizer(self._text)

    def _refuse_leaks(self, control: list[dict[str, Any]]) -> None:
        strings = [text for t in control for text in (t["content"], f"a{t['content']}b")]
        found = self.text_batch([(string, "") for string in strings])
        for string, ids in zip(strings, found, strict=True):
            if leaked := self.control_ids.intersection(ids.tolist()):
                raise JudgeError(
                    f"tokenizer {self.name}: with control tokens switched off, {string!r} still becomes the control "
                    f"token(s) {sorted(leaked)}. A text could forge a turn; expected byte-level BPE."
                )

    def frame(self, text: str) -> np.ndarray:
        """i32 [n]: control tokens in `text` become control tokens."""
        return np.array(self._frame.encode(text, add_special_tokens=False).ids, np.int32)

    def text(self, text: str, following: str = "") -> np.ndarray:
        """i32 [n]: control tokens in `text` stay text.

        following: the character after the text, on which its last token may depend; it has no token in the result.
        """
        return self.text_batch([(text, following)])[0]

    def text_batch(self, texts: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """`text` of many (text, following) in one call, on all cores."""
        whole = [text + following for text, following in texts]
        found = self._text.encode_batch_fast(whole, add_special_tokens=False)
        return [
            np.array(e.ids, np.int32) if not b else self._without(e.ids, a, b)
            for e, (a, b) in zip(found, texts, strict=True)
        ]

    def _without(self, ids: list[int], text: str, following: str) -> np.ndarray:
        """The ids without the token of `following`; if it shares a token with `text`, those of `text` alone."""
        if following not in self._single:
            alone = self._text.encode(following, add_special_tokens=False).ids
            self._single[following] = alone[0] if len(alone) == 1 else None
        if ids[-1] != self._single[following]:
            return np.array(self._text.encode(text, add_special_tokens=False).ids, np.int32)
        return np.array(ids[:-1], np.int32)

    def text_ends(self, text: str) -> np.ndarray:
        """i64 [n]: for each token of `text`, the index of the character after its last one."""
        offsets = self._text.encode(text, add_special_tokens=False).offsets
        return np.array([end for _, end in offsets], np.int64)

    def clean(self, text: str) -> tuple[str, int]:
        """(`text` as the tokenizer reads it, number of lone surrogates replaced by U+FFFD).

        Surrogate pairs are joined. A tokenizer's Unicode normalisation is applied here, before the search
        for delimiters, because characters may become those of a delimiter (U+037E, the Greek question mark, becomes a
        semicolon).
        """
        if not isinstance(text, str):
            raise DataError(
                f"expected text, found {type(text).__name__} ({text!r:.60}). Every prompt and response is a string."
            )
        if text.isascii():
            return text, 0
        text, replaced = replace_surrogates(text)
        if self._normalizes:
            text = self._text.normalizer.normalize_str(text)
        return text, replaced


def replace_surrogates(text: str) -> tuple[str, int]:
    """(`text` with pairs of surrogates joined and lone ones as U+FFFD, number of lone ones)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        replaced = sum("\ud800" <= c <= "\udfff" for c in joined)
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in joined), replaced
    return text, 0


def _is_plain_normalizer(tokenizer: Tokenizer) -> bool:
    """Whether the normaliser may be applied twice: Unicode normal forms may, normalisers that add blanks may not."""
    if tokenizer.normalizer is None:
        return False
    once = tokenizer.normalizer.normalize_str(PROBE)
    plain = tokenizer.normalizer.normalize_str("plain text")
    return tokenizer.normalizer.normalize_str(once) == once and plain == "plain text"


_encoders: "weakref.WeakKeyDictionary[Any, TextEncoder]" = weakref.WeakKeyDictionary()


def text_encoder(tokenizer: Any) -> TextEncoder:
    """The `TextEncoder` of a tokenizer, built once for each tokenizer object (1 s for 150k tokens)."""
    if tokenizer not in _encoders:
        _encoders[tokenizer] = TextEncoder(tokenizer)
    return _encoders[tokenizer]


def tokenizer_name(tokenizer: Any) -> str:
    """The name of a tokenizer for messages."""
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def fingerprint(tokenizer: Any) -> str:
    """A hash, 16 hex digits, of a tokenizer's vocabulary and its tokens of a probe text.

    Unlike a hash of tokenizer.json it does not depend on the version of the library, or on saving and loading.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    digest = hashlib.sha256(json.dumps(vocabulary).encode())
    digest.update(text_encoder(tokenizer).text(PROBE).tobytes())
    return digest.hexdigest()[:16]
