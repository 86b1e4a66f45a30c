"""The two labels of a judge: texts of one token each, directly after the chat frame."""

from collections.abc import Sequence
from typing import Any

from gram_jax.errors import JudgeError
from gram_jax.judge.tokens import text_encoder, tokenizer_name


def check_labels(labels: Sequence[str]) -> tuple[str, str]:
    """The labels if they are two texts. Raises JudgeError otherwise."""
    labels = tuple(labels)
    if len(labels) != 2 or not all(isinstance(label, str) and label for label in labels):
        raise JudgeError(f"a judge has two labels, each a text of one token; found {labels!r}.")
    return labels


def find_label_ids(tokenizer: Any, tail: str, labels: tuple[str, str]) -> tuple[int, int]:
    """The token ids of two labels directly after the tail, the text before the verdict.

    Raises JudgeError unless each label is one token and they differ.
    """
    ids = []
    for label in labels:
        found, problem = _label_tokens(tokenizer, tail, label), ""
        if found is None:
            problem = f"changes the tokens of the tail {tail[-40:]!r}"
        elif len(found) != 1:
            problem = f"is not one token after the tail {tail[-40:]!r}: {_spell(tokenizer, found)}"
        elif found[0] in text_encoder(tokenizer).control_ids:
            problem = "is a control token"
        elif found[0] in ids:
            problem = f"is the same token as {labels[0]!r}: {_spell(tokenizer, found)}"
        if found is None or problem:
            raise JudgeError(
                f"label {label!r} {problem} (tokenizer {tokenizer_name(tokenizer)}). {_suggest(tokenizer, tail)}"
            )
        ids += found
    return ids[0], ids[1]


def _label_tokens(tokenizer: Any, tail: str, label: str) -> list[int] | None:
    """The tokens that `label` adds to the tail; None if it changes the tail's own tokens."""
    encoder = text_encoder(tokenizer)
    before, whole = encoder.frame(tail).tolist(), encoder.frame(tail + label).tolist()
    return whole[len(before) :] if whole[: len(before)] == before else None


def _spell(tokenizer: Any, ids: list[int]) -> str:
    tokens = zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)
    return f"{len(ids)} token(s): " + ", ".join(f"{token!r} ({i})" for token, i in tokens)


def _suggest(tokenizer: Any, tail: str) -> str:
    for labels in (("A", "B"), (" A", " B"), ("1", "2"), ("first", "second")):
        ids = [_label_tokens(tokenizer, tail, label) for label in labels]
        if all(i is not None and len(i) == 1 for i in ids) and ids[0] != ids[1]:
            return f"Labels that work here: {labels[0]!r} and {labels[1]!r}."
    return "Choose two words that are one token each."
