"""Text to token ids, with control tokens recognised (chat frame) or not (texts)."""

import hashlib
import itertools
import json
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from gram_jax.errors import DataError, JudgeError
from gram_jax.judge.tokenizer import explain_tokenizer

# Case, digits, blanks, line breaks, accents in two normal forms, an emoji and CJK: tokenizers with the same
# vocabulary and the same tokens for this text are treated as equal.
PROBE = "The 1st  Answer, 2024:\n\n\té e\u0301 don't ½ ['x']\r\n🙂 漢字 \u212a"

# Characters of a text. `encode` holds the GIL, 0.1 s for 100,000 characters; `encode_batch` does not.
LONG = 10_000

Place = Literal["first", "section", "inside"]


class Piece(NamedTuple):
    """A text to tokenize on its own, though it is part of a longer one.

    following: the character after it, on which its last token may depend; it has no token in the result. place: "first"
    at the very beginning, "section" directly after a control token, else "inside". SentencePiece tokenizers put a blank
    before the first two, or before the first alone.
    """

    text: str
    following: str = ""
    place: Place = "inside"


class TextEnds(NamedTuple):
    """size: number of tokens of a text. first, last: the index of the character after each of its first and last."""

    size: int
    first: list[int]
    last: list[int]


class TextEncoder:
    """The two encoders of a tokenizer: `frame` recognises control tokens, `text` does not. Picklable.

    `text` is the same tokenizer without its added tokens, special or not (Qwen3's `<think>` is not marked special),
    except those of blanks, which only merge blanks. Raises JudgeError for a slow tokenizer, one whose control tokens
    cannot be switched off, and one whose tokens continue after a line break. digest: SHA-256 of its state.
    """

    def __init__(self, tokenizer: Any):
        self.name = tokenizer_name(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise JudgeError(
                f"tokenizer {self.name}: expected a fast tokenizer (one with a tokenizer.json), found "
                f"{type(tokenizer).__name__}. Save the tokenizer with its tokenizer.json and load that folder."
            )
        text = backend.to_str()
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        state = json.loads(text)
        # The chat frame already contains what a post-processor adds, such as the beginning-of-text token.
        state.update(truncation=None, padding=None, post_processor=None)
        with explain_tokenizer(self.name):
            self._frame = Tokenizer.from_str(json.dumps(state))
        control = [t for t in state["added_tokens"] if not _is_blank(t["content"])]
        state["added_tokens"] = [t for t in state["added_tokens"] if _is_blank(t["content"])]
        if state["model"]["type"] == "Unigram":
            # Its control tokens are pieces of the best score, found in any text that spells them.
            for token in control:
                if token["id"] < len(state["model"]["vocab"]):
                    state["model"]["vocab"][token["id"]][0] = f"\0control {token['id']}\0"
        places: tuple[Place, ...] = ("first", "section", "inside")
        states = {place: json.dumps(_without_blank(state, place)) for place in places}
        with explain_tokenizer(self.name):
            made = {text: Tokenizer.from_str(text) for text in dict.fromkeys(states.values())}
        self._text: dict[Place, Tokenizer] = {place: made[states[place]] for place in places}
        self.control_ids = frozenset(t["id"] for t in control)
        self._control_ids_of_text(control)
        self._refuse_long_lines(state["model"]["vocab"])
        self._single: dict[str, int | None] = {}
        self._normalizes = _is_plain_normalizer(self._normalized)

    def _control_ids_of_text(self, control: list[dict[str, Any]]) -> None:
        """Takes out of control_ids what the model itself spells. Raises JudgeError if that is special."""
        strings = [text for t in control for text in (t["content"], f"a{t['content']}b")]
        for place in self._text:
            found = self.text_batch([Piece(string, "", place) for string in strings])
            for string, ids in zip(strings, found, strict=True):
                leaked = self.control_ids.intersection(ids.tolist())
                if special := sorted(
                    t["id"] for t in control if t["special"] and t["id"] in leaked
                ):
                    raise JudgeError(
                        f"tokenizer {self.name}: with control tokens switched off, {string!r} still becomes the "
                        f"control token(s) {special}. A text could forge a turn: expected a tokenizer that does not "
                        "spell them."
                    )
                self.control_ids -= leaked

    def _refuse_long_lines(self, vocabulary: Any) -> None:
        """Raises JudgeError if a token holds text on both sides of a line break: texts are cut there."""
        tokens = (entry if isinstance(entry, str) else entry[0] for entry in vocabulary)
        if found := next((t for t in tokens if re.search(r"[^\n]\n+[^\s▁]", t)), None):
            raise JudgeError(
                f"tokenizer {self.name}: its token {found!r} continues after a line break, so the texts of a template "
                "have no tokens of their own. Expected a tokenizer whose tokens end at line breaks."
            )

    def frame(self, text: str) -> np.ndarray:
        """i32 [n]: control tokens in `text` become control tokens."""
        return np.array(self._encode(self._frame, text).ids, np.int32)

    def sections(self, frame: str) -> list[str | int]:
        """The control tokens of a chat format, and the texts between them."""
        found = self._encode(self._frame, frame)
        parts: list[str | int] = []
        at = 0
        for token, (start, end) in zip(found.ids, found.offsets, strict=True):
            if token in self.control_ids:
                parts += [frame[at:start], token]
                at = end
        return [part for part in (*parts, frame[at:]) if part != ""]

    def dialogue(self, frames: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """i32 [n]: texts between the strings of a chat format, one more than texts; only these have control tokens."""
        parts = self.sections(frames[0])
        for text, frame in zip(texts, frames[1:], strict=True):
            parts += [text, *self.sections(frame)]
        found: list[np.ndarray] = []
        place: Place = "first"
        for is_text, run in itertools.groupby(parts, lambda part: isinstance(part, str)):
            if is_text:
                found.append(self.text("".join(map(str, run)), place=place))
            else:
                found.append(np.array(list(run), np.int32))
            place = "section"
        return np.concatenate(found)

    def text(self, text: str, following: str = "", place: Place = "inside") -> np.ndarray:
        """i32 [n]: control tokens in `text` stay text; `Piece` describes the parameters."""
        return self.text_batch([Piece(text, following, place)])[0]

    def text_batch(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """`text` of many pieces, those of a place in one call, on all cores."""
        found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(pieces)
        for place in self._text:
            if not (here := [at for at, piece in enumerate(pieces) if piece.place == place]):
                continue
            whole = [pieces[at].text + pieces[at].following for at in here]
            with explain_tokenizer(self.name):
                encodings = self._text[place].encode_batch_fast(whole, add_special_tokens=False)
            for at, encoding in zip(here, encodings, strict=True):
                found[at] = self._without(encoding.ids, pieces[at])
        return found

    def _without(self, ids: list[int], piece: Piece) -> np.ndarray:
        """The ids without the token of `following`; if it shares a token with the text, those of the text alone."""
        if not piece.following:
            return np.array(ids, np.int32)
        if piece.following not in self._single:
            alone = self._encode(self._text["inside"], piece.following).ids
            self._single[piece.following] = alone[0] if len(alone) == 1 else None
        if not ids or ids[-1] != self._single[piece.following]:
            alone = self._encode(self._text[piece.place], piece.text)
            return np.array(alone.ids, np.int32)
        return np.array(ids[:-1], np.int32)

    def text_ends(self, text: str, most: int) -> "TextEnds":
        """Where the first and last `most` tokens of `text` end."""
        found = self._encode(self._text["inside"], text)
        size = len(found)
        ends = [  # all offsets take 0.1 s for 60,000 tokens
            [chars[1] for at in part if (chars := found.token_to_chars(at))]
            for part in (range(min(most, size)), range(max(0, size - most), size))
        ]
        return TextEnds(size, *ends)

    def _encode(self, tokenizer: Tokenizer, text: str) -> Encoding:
        with explain_tokenizer(self.name):
            if len(text) < LONG:
                return tokenizer.encode(text, add_special_tokens=False)
            return tokenizer.encode_batch([text], add_special_tokens=False)[0]

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
        return (self._normalized(text) if self._normalizes else text), replaced

    def _normalized(self, text: str) -> str:
        normalizer = self._text["inside"].normalizer
        with explain_tokenizer(self.name):
            return text if normalizer is None else normalizer.normalize_str(text).replace("▁", " ")


def replace_surrogates(text: str) -> tuple[str, int]:
    """(`text` with pairs of surrogates joined and lone ones as U+FFFD, number of lone ones)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        replaced = sum("\ud800" <= c <= "\udfff" for c in joined)
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in joined), replaced
    return text, 0


def _is_plain_normalizer(normalized: Callable[[str], str]) -> bool:
    """Whether the normaliser may be applied twice: Unicode normal forms may."""
    once = normalized(PROBE)
    return normalized(once) == once and normalized("plain text") == "plain text"


def _is_blank(token: str) -> bool:
    return token.replace("▁", " ").isspace()


def _without_blank(state: Any, place: Place) -> Any:
    """A part of a tokenizer's JSON without the blank that it puts before a text, unless it is at this place.

    SentencePiece's is a normaliser or a "Metaspace", GPT-2's an option of "ByteLevel".
    """
    if isinstance(state, list):
        kept = [part for part in state if place != "inside" or _kind(part) != "Prepend"]
        return [_without_blank(part, place) for part in kept]
    if not isinstance(state, dict):
        return state
    if place == "inside" and _kind(state.get("normalizer")) == "Prepend":
        state = {**state, "normalizer": None}
    if _kind(state) == "Metaspace" and (
        place == "inside" or (place == "section" and state["prepend_scheme"] == "first")
    ):
        state = {**state, "prepend_scheme": "never"}
    if _kind(state) == "ByteLevel" and place == "inside" and "add_prefix_space" in state:
        state = {**state, "add_prefix_space": False}
    return {
        name: _without_blank(part, place)
        if name in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers")
        else part
        for name, part in state.items()
    }


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


_encoders: "weakref.WeakKeyDictionary[Any, TextEncoder]" = weakref.WeakKeyDictionary()


def text_encoder(tokenizer: Any) -> TextEncoder:
    """The `TextEncoder` of a tokenizer (or of a TextEncoder), built once for each object (1 s for 150k tokens)."""
    if isinstance(tokenizer, TextEncoder):
        return tokenizer
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
