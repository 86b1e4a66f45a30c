"""From words to token ids: the door to `transformers`, and the one way a layout becomes tokens.

Training, scoring and export all come through here.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
from tokenizers import Tokenizer

from gram_jax.errors import CheckpointError, JudgeError
from gram_jax.judge.messages import PromptLike, render_turns, turns_of
from gram_jax.judge.segments import Fixed, PieceTable
from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.template import Layout, layout_guard
from gram_jax.judge.tokens import TextEncoder, text_encoder
from gram_jax.judge.truncate import shorten

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

Overlong = Literal["truncate", "drop", "error"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One encoded text.

    tokens:  i32 [n]. Of a comparison the last one is where the verdict is read; of a response,
      where the score is.
    weights: f32 [n], the loss weight of tokens[i] as a target (so weights[0] is 0); all 0 outside
      stage 1.
    removed: tokens that shortening took out of the fields (0: whole).
    neutralised: lines of the fields that looked like delimiters and were escaped.
    replaced: broken characters (lone surrogates) that became U+FFFD.
    identical: both responses came out the same, as given or after shortening.
    cuts: where the first response begins and where the second, in tokens; (0, 0) for one response.
    """

    tokens: np.ndarray
    weights: np.ndarray
    removed: int = 0
    neutralised: int = 0
    replaced: int = 0
    identical: bool = False
    cuts: tuple[int, int] = (0, 0)

    @property
    def shortened(self) -> bool:
        """Whether anything was cut out to fit the token budget."""
        return self.removed > 0


def _quiet_transformers() -> None:
    # Without PyTorch, importing transformers says so on every start; we need its tokenizers only. Named are the modules
    # they are in: a type checker that meets the package itself reads every model of it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def folder_tokenizer(name: str | Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a Hugging Face folder or hub name. Raises CheckpointError where there is none."""
    _quiet_transformers()
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    # OSError, ValueError, KeyError, errors of the hub's client: a failed load has many names
    except Exception as error:
        raise CheckpointError(
            f"no tokenizer can be loaded from {str(name)!r}: {error}\n"
            "Expected a folder with tokenizer.json and tokenizer_config.json, or a hub name and "
            "network access."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{str(name)!r} has only a slow tokenizer ({type(tokenizer).__name__}); gram_jax needs tokenizer.json."
        )
    return cast("PreTrainedTokenizerFast", tokenizer)


def wrap_tokenizer(
    backend: Tokenizer, *, chat_template: str | None = None, **settings: Any
) -> "PreTrainedTokenizerFast":
    """A transformers tokenizer around one of the `tokenizers` library; settings such as eos_token go through."""
    _quiet_transformers()
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def encode_comparison(
    tokenizer: Any,
    spec: JudgeSpec,
    prompt: PromptLike,
    first: str,
    second: str,
    *,
    overlong: Overlong = "truncate",
) -> Encoded | None:
    """The judge's prompt for one pair in the order shown; the verdict is the token after the last.

    overlong, for more than spec.max_length tokens: "truncate" cuts inside the responses, then the
    prompt, never the tail, and alike for both orders; "drop" returns None; "error" raises
    JudgeError.
    """
    return encode_comparisons(tokenizer, spec, [(prompt, first, second)], overlong=overlong)[0]


@overload
def encode_comparisons(
    tokenizer: Any,
    spec: JudgeSpec,
    items: Iterable[tuple[PromptLike, str, str]],
    *,
    overlong: Literal["truncate", "error"] = "truncate",
) -> list[Encoded]: ...


@overload
def encode_comparisons(
    tokenizer: Any,
    spec: JudgeSpec,
    items: Iterable[tuple[PromptLike, str, str]],
    *,
    overlong: Overlong,
) -> list[Encoded | None]: ...


def encode_comparisons(
    tokenizer: Any,
    spec: JudgeSpec,
    items: Iterable[tuple[PromptLike, str, str]],
    *,
    overlong: Overlong = "truncate",
) -> list[Any]:
    """`encode_comparison` of many (prompt, first, second); a text that occurs several times is tokenized once."""
    rows = [{"prompt": p, "first": f, "second": s} for p, f, s in items]
    return _encode(tokenizer, spec.comparison, spec.max_length, rows, overlong)


def encode_writing(
    tokenizer: Any,
    spec: JudgeSpec,
    prompt: PromptLike,
    first: str,
    second: str,
    *,
    overlong: Overlong = "drop",
) -> Encoded | None:
    """Stage 1: question and both responses; the responses, their delimiters and the end of the turn carry the loss."""
    return encode_writings(tokenizer, spec, [(prompt, first, second)], overlong=overlong)[0]


def encode_writings(
    tokenizer: Any,
    spec: JudgeSpec,
    items: Iterable[tuple[PromptLike, str, str]],
    *,
    overlong: Overlong = "drop",
) -> list[Encoded | None]:
    """`encode_writing` of many (prompt, first, second)."""
    rows = [{"prompt": p, "first": f, "second": s} for p, f, s in items]
    return _encode(tokenizer, spec.writing, spec.max_length, rows, overlong)


def encode_response(
    tokenizer: Any,
    spec: JudgeSpec,
    prompt: PromptLike,
    response: str,
    *,
    overlong: Overlong = "truncate",
) -> Encoded | None:
    """The discriminative baseline: a chat with one response; its score is read at the last token, the turn's end."""
    return encode_responses(tokenizer, spec, [(prompt, response)], overlong=overlong)[0]


@overload
def encode_responses(
    tokenizer: Any,
    spec: JudgeSpec,
    items: Iterable[tuple[PromptLike, str]],
    *,
    overlong: Literal["truncate", "error"] = "truncate",
) -> list[Encoded]: ...


@overload
def encode_responses(
    tokenizer: Any,
    spec: JudgeSpec,
    items: Iterable[tuple[PromptLike, str]],
    *,
    overlong: Overlong,
) -> list[Encoded | None]: ...


def encode_responses(
    tokenizer: Any,
    spec: JudgeSpec,
    items: Iterable[tuple[PromptLike, str]],
    *,
    overlong: Overlong = "truncate",
) -> list[Any]:
    """`encode_response` of many (prompt, response)."""
    rows = [{"prompt": p, "response": r} for p, r in items]
    return _encode(tokenizer, spec.response, spec.max_length, rows, overlong)


def _encode(
    tokenizer: Any,
    layout: Layout,
    budget: int,
    rows: Sequence[Mapping[str, Any]],
    overlong: Overlong,
) -> list[Encoded | None]:
    if overlong not in ("truncate", "drop", "error"):
        raise JudgeError(f'overlong is "truncate", "drop" or "error"; found {overlong!r}.')
    encoder = text_encoder(tokenizer)
    table = PieceTable(encoder, layout)
    table.check_room(budget)
    clean = _Cleaner(encoder, layout)
    shown = [{name: clean(value) for name, value in row.items()} for row in rows]
    table.add((name, field.text) for row in shown for name, field in row.items())
    return [_encode_row(table, budget, row, overlong) for row in shown]


@dataclass(frozen=True)
class _Clean:
    """A field's text as it will be shown."""

    text: str
    neutralised: int
    replaced: int


class _Cleaner:
    """Field values to the text shown, each distinct string once."""

    def __init__(self, encoder: TextEncoder, layout: Layout):
        self._encoder, self._guard = encoder, layout_guard(layout)
        self._seen: dict[str, _Clean] = {}

    def __call__(self, value: Any) -> _Clean:
        if isinstance(value, Sequence) and not isinstance(value, str):
            said = turns_of(value)
            parts = [self._string(content) for _, content in said]
            text = render_turns([(role, c.text) for (role, _), c in zip(said, parts, strict=True)])
            return _Clean(text, sum(c.neutralised for c in parts), sum(c.replaced for c in parts))
        return self._string(value)

    def _string(self, text: str) -> _Clean:
        if not isinstance(text, str) or text not in self._seen:
            repaired, replaced = self._encoder.clean(text)
            self._seen[text] = _Clean(*self._guard.neutralise(repaired), replaced)
        return self._seen[text]


def _encode_row(
    table: PieceTable, budget: int, row: Mapping[str, _Clean], overlong: Overlong
) -> Encoded | None:
    texts = {name: shown.text for name, shown in row.items()}
    total = kept = table.total(texts)
    if total > budget:
        if overlong == "drop":
            return None
        if overlong == "error":
            raise JudgeError(
                f"an example of {total} tokens does not fit the budget of {budget} (max_length). "
                'Raise max_length, or choose overlong = "truncate" or "drop".'
            )
        texts = shorten(table, texts, budget - table.plan.fixed)
        kept = table.total(texts)
    parts = [
        part.tokens if isinstance(part, Fixed) else table.tokens(part.field, texts[part.field])
        for part in table.plan.parts
    ]
    sizes = [len(tokens) for tokens in parts]
    begins = {
        part.field: sum(sizes[:at])
        for at, part in enumerate(table.plan.parts)
        if not isinstance(part, Fixed)
    }
    return Encoded(
        tokens=np.concatenate(parts),
        weights=np.repeat(table.plan.weights, sizes),
        removed=total - kept,
        neutralised=sum(shown.neutralised for shown in row.values()),
        replaced=sum(shown.replaced for shown in row.values()),
        identical="first" in texts and texts["first"] == texts["second"],
        cuts=(begins.get("first", 0), begins.get("second", 0)),
    )
