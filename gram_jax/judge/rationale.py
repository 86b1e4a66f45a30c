"""The rationale of a judge: the text that it writes between its prompt and its verdict."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict

from gram_jax.errors import JudgeError
from gram_jax.judge.labels import find_label_ids
from gram_jax.judge.segments import TokenTable, compile_layout
from gram_jax.judge.template import LayoutPart
from gram_jax.judge.tokens import text_encoder, tokenizer_name

FIELD = "{rationale}"
# GRAM-R^2 (arXiv 2509.02492): its card asks for these tags, each on a line of its own.
THINK = "<think>\n{rationale}\n</think>\n<answer>\n"
DEFAULT_NEW_TOKENS = 1024
CLOSING_ROOM = 64  # tokens around a rationale, for the default length of a comparison
_TAGS = re.compile(r"<think>(\s*)\S.*?\S(\s*)</think>(\s*)<answer>(\s*)", re.DOTALL)


@dataclass(frozen=True)
class RationaleFormat:
    """What a judge writes before its verdict.

    template: literal text with {rationale}, which continues the generation prompt. The verdict is the token after it.
    stop: texts, or a control token, that end a rationale. label_ids: token ids of the labels after the template.
    max_new_tokens: maximum number of tokens of a rationale; a longer one has no verdict.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    template: str
    stop: tuple[str, ...]
    label_ids: tuple[int, int]
    max_new_tokens: int

    @property
    def opening(self) -> str:
        """The text before the rationale."""
        return self.template.partition(FIELD)[0]

    @property
    def closing(self) -> str:
        """The text between the rationale and the verdict."""
        return self.template.partition(FIELD)[2]

    def body(self, text: str) -> str:
        """A rationale as it is shown: up to the first stop text, without blanks around it.

        No text can therefore end a rationale and state a verdict of its own.

        >>> RationaleFormat(THINK, ("</think>",), (35, 36), 64).body(" Both.\\n</think>\\n<answer>\\nB\\n</answer>")
        'Both.'
        """
        ends = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()

    def closing_span(self, text: str) -> tuple[int, int] | None:
        """Start and end of the closing to which the first stop text belongs; None if the rationale has not ended."""
        ends = [(at, stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        if not ends:
            return None
        (at, stop), closing = min(ends), self.closing.lstrip()
        start = at - max(0, closing.find(stop))
        return start, start + len(closing)

    def verdict_start(self, text: str) -> int | None:
        """Where the verdict begins in a text that a judge wrote after the opening; None if it is malformed.

        The text is a rationale that is not empty, and from the first stop text on exactly the closing.

        >>> made = RationaleFormat(THINK, ("</think>",), (35, 36), 64)
        >>> text = "Both.\\n</think>\\n<answer>\\nB"
        >>> text[made.verdict_start(text) :]
        'B'
        >>> made.verdict_start("Both. <answer>\\nB")
        """
        span = self.closing_span(text)
        if span is None or span[0] < 0 or not self.body(text):
            return None
        return span[1] if text[slice(*span)] == self.closing.lstrip() else None


def make_rationale_format(
    tokenizer: Any,
    generation_prompt: str,
    labels: tuple[str, str],
    *,
    template: str = THINK,
    stop: Sequence[str] = (),
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
) -> RationaleFormat:
    """The format of rationales on this tokenizer.

    stop: default the first line with text of the template after {rationale}. Raises JudgeError if the tokens of
    prompt, rationale and verdict are not separable.
    """
    if template.count(FIELD) != 1:
        raise JudgeError(
            f"a rationale template has the field {FIELD} exactly once; found it {template.count(FIELD)} times in "
            f"{template!r}"
        )
    opening, _, closing = template.partition(FIELD)
    lines = [line for line in closing.split("\n") if line.strip()]
    stops = tuple(stop) or tuple(first_stop(tokenizer, line) for line in lines[:1])
    if not stops or not all(x.strip() and x == x.strip() for x in stops):
        raise JudgeError(
            f"a rationale template has text after {FIELD} that ends the rationale, as in {THINK!r}; found {template!r} "
            f"and the stop texts {stops!r}"
        )
    if not any(x in closing for x in stops):
        raise JudgeError(
            f"none of the stop texts {stops!r} is in the text after the rationale, {closing!r}: a rationale would "
            "never end"
        )
    before = generation_prompt + opening
    sections = text_encoder(tokenizer).sections(before)
    ends = sections[-1]
    if isinstance(sections[0], str) or (isinstance(ends, str) and not ends.endswith("\n")):
        raise JudgeError(
            f"the rationale follows {before[-40:]!r} (tokenizer {tokenizer_name(tokenizer)}): expected a chat format "
            "that begins with a control token, and a line break or a control token directly before the rationale"
        )
    ids = find_label_ids(tokenizer, before + "." + closing, labels)
    return RationaleFormat(template, stops, ids, max_new_tokens)


def first_stop(tokenizer: Any, line: str) -> str:
    """The control token that a line begins with, else the whole line."""
    encoder = text_encoder(tokenizer)
    first = encoder.sections(line.strip())[0]
    return line.strip() if isinstance(first, str) else tokenizer.convert_ids_to_tokens(first)


def tagged_template(template: str) -> str | None:
    """The rationale template that a judge template asks for by the tags of GRAM-R^2; None if it does not.

    The blanks around the tags are those of the template.

    >>> tagged_template("Reply so: <think>your thoughts</think> <answer>A or B</answer>")
    '<think>{rationale}</think> <answer>'
    """
    found = _TAGS.search(template)
    if found is None:
        return None
    opened, closed, between, inside = found.groups()
    return f"<think>{opened}{FIELD}{closed}</think>{between}<answer>{inside}"


class RationaleEncoder:
    """Encodes what follows an encoded comparison: the opening, a rationale, and the text up to the verdict.

    It replaces the generation prompt at the end of a comparison, because the tokens of blank lines may depend on the
    text after them. closing_tokens: the most tokens that the texts around a rationale add to it. Raises JudgeError for
    a judge that writes no rationale.
    """

    def __init__(self, tokenizer: Any, generation_prompt: str, format: RationaleFormat | None):
        if format is None:
            raise JudgeError(
                "this judge writes no rationale: its specification has no rationale format. `gram-jax spec "
                "--rationale` writes one that does, and a judge has to be trained with it"
            )
        self.format, self._encoder = format, text_encoder(tokenizer)
        field, closing = LayoutPart("field", "rationale"), LayoutPart("frame", format.closing)
        self._generation_prompt = generation_prompt
        opened = LayoutPart("frame", generation_prompt + format.opening)
        self._table = TokenTable(self._encoder, (opened, field, closing))
        self._opened = self._tokens("")
        replaced = compile_layout(self._encoder, (LayoutPart("frame", generation_prompt),))
        self._replaced = sum(len(part.tokens) for part in replaced)
        self.closing_tokens = self._table.const_tokens + self._table.length("rationale", ".")

    def _tokens(self, hint: str) -> np.ndarray:
        """The generation prompt, a hint and the opening."""
        text = self._generation_prompt + hint + self.format.opening
        parts = compile_layout(self._encoder, (LayoutPart("frame", text),))
        return np.concatenate([part.tokens for part in parts])

    def prompt(self, comparison: np.ndarray, hint: str = "") -> np.ndarray:
        """i32 [n]: an encoded comparison, a hint if there is one, and the opening; a rationale follows."""
        kept = comparison[: len(comparison) - self._replaced]
        opened = self._tokens(hint) if hint else self._opened
        return np.concatenate([kept, opened]).astype(np.int32)

    def whole(self, comparison: np.ndarray, text: str) -> np.ndarray:
        """i32 [n]: an encoded comparison, a rationale and the closing; the verdict is the next token.

        text: cut by `RationaleFormat.body`; control tokens in it stay text.
        """
        shown = self.format.body(self._encoder.clean(text)[0])
        parts = [comparison[: len(comparison) - self._replaced]]
        for segment in self._table.segments:
            if segment.field:
                parts += self._table.tokens(segment.field, shown)
            else:
                parts.append(segment.tokens)
        return np.concatenate(parts).astype(np.int32)
