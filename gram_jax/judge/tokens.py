"""Text to token ids, with control tokens switched on (frame) or off (text from people).

Nothing here imports a tokenizer library by name except `tokenizers`, whose Rust tokenizer every
fast tokenizer carries.
"""

import hashlib
import json
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from gram_jax.errors import DataError, JudgeError

# Covers case, digits, blanks, line breaks, accents in two normal forms, an emoji and CJK:
# tokenizers that agree on their vocabulary and on this text may be taken for the same one.
PROBE = "The 1st  Answer, 2024:\n\n\té e\u0301 don't ½ ['x']\r\n🙂 漢字 \u212a"


class TextEncoder:
    """The two encoders of a tokenizer: `frame` obeys control tokens, `text` knows only characters.

    `text` is the same tokenizer with all its added tokens removed, special or not (Qwen3's
    `<think>` is not marked special), except those that consist of blanks and only shorten text.
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
        # The chat frame already has what a post-processor would add, such as the beginning-of-text token.
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
            if not self.control_ids.isdisjoint(ids.tolist()):
                raise JudgeError(
                    f"tokenizer {self.name}: with control tokens switched off, {string!r} still becomes the control "
                    f"token(s) {sorted(self.control_ids.intersection(ids.tolist()))}. Text from people could then "
                    "forge a turn, so this tokenizer cannot be used; gram_jax expects byte-level BPE."
                )

    def frame(self, text: str) -> np.ndarray:
        """i32 [n]: control tokens in `text` become control tokens."""
        return np.array(self._frame.encode(text, add_special_tokens=False).ids, np.int32)

    def text(self, text: str, following: str = "") -> np.ndarray:
        """i32 [n]: control tokens in `text` stay text.

        following: the character that comes after, where tokenizers care ("\n\n" before a word and
          at the end of a text are different tokens in GPT-2's way of cutting). Its own token is not
          part of the result.
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
        """Takes the token of `following` off again; where it melted into `text`, `text` is tokenized alone."""
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
        """`text` as the tokenizer will read it, and how many broken characters were replaced.

        Lone surrogates (half an emoji, cut by somebody's slice) become U+FFFD; halves that belong
        together are joined. A tokenizer that normalises Unicode does it here already, so that a
        sign which normalises to a delimiter's cannot slip past the search for delimiters (U+037E,
        the Greek question mark, becomes a semicolon).
        """
        if not isinstance(text, str):
            raise DataError(
                f"expected text, found {type(text).__name__} ({text!r:.60}). Every prompt and response is a string."
            )
        if text.isascii():
            return text, 0
        replaced = 0
        try:
            text.encode()
        except UnicodeEncodeError:
            joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
            replaced = sum("\ud800" <= c <= "\udfff" for c in joined)
            text = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in joined)
        if self._normalizes:
            text = self._text.normalizer.normalize_str(text)
        return text, replaced


def _is_plain_normalizer(tokenizer: Tokenizer) -> bool:
    """Whether the normaliser may be applied twice: true of Unicode normal forms, not of those that add blanks."""
    if tokenizer.normalizer is None:
        return False
    once = tokenizer.normalizer.normalize_str(PROBE)
    plain = tokenizer.normalizer.normalize_str("plain text")
    return tokenizer.normalizer.normalize_str(once) == once and plain == "plain text"


_encoders: "weakref.WeakKeyDictionary[Any, TextEncoder]" = weakref.WeakKeyDictionary()


def text_encoder(tokenizer: Any) -> TextEncoder:
    """The `TextEncoder` of a tokenizer, built once for each tokenizer object (a second for 150k tokens)."""
    if tokenizer not in _encoders:
        _encoders[tokenizer] = TextEncoder(tokenizer)
    return _encoders[tokenizer]


def tokenizer_name(tokenizer: Any) -> str:
    """What to call a tokenizer in a message."""
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def fingerprint(tokenizer: Any) -> str:
    """16 hex digits that name a tokenizer by its vocabulary and by how it cuts a probe text.

    Unlike a hash of tokenizer.json it does not change with the library's version or with saving and
    loading.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    digest = hashlib.sha256(json.dumps(vocabulary).encode())
    digest.update(text_encoder(tokenizer).text(PROBE).tobytes())
    return digest.hexdigest()[:16]
