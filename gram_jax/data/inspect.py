"""Examples as the model will see them, as text: what `gram-jax data inspect SOURCE` prints."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gram_jax.data.examples import (
    BradleyTerryExamples,
    Examples,
    Overlong,
    PositionAugmentation,
    Stage,
    VerdictExamples,
    make_examples,
)
from gram_jax.data.records import read_records
from gram_jax.data.report import histogram_lines, length_histogram
from gram_jax.data.sources import SourceSpec
from gram_jax.judge.spec import JudgeSpec, check_tokenizer

# Around what carries the loss (stage 1), the verdict to learn (stage 2), or where the score is read
# (baseline).
OPEN, CLOSE = "⟦", "⟧"


def inspect_source(
    source: str | Path | SourceSpec,
    *,
    tokenizer: Any,
    spec: JudgeSpec,
    stage: Stage,
    limit: int,
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    position_augmentation: PositionAugmentation = "hash",
    seed: int = 0,
    overlong: Overlong = "truncate",
) -> Iterator[str]:
    """A text for each of the first `limit` records, then one that says what became of their rows and how long they are.

    Tokens are decoded exactly as they are, control tokens included; ⟦ ⟧ mark what the loss counts.
    Raises DataError for a source that cannot be read, JudgeError if the tokenizer is not the one of
    the specification.
    """
    check_tokenizer(spec, tokenizer)
    kind = "pair" if stage == "pretrain" else "preference"
    records, report = read_records(source, kind, schema=schema, on_bad=on_bad, limit=limit)
    examples = make_examples(
        stage,
        records,
        tokenizer,
        spec,
        position_augmentation=position_augmentation,
        seed=seed,
        overlong=overlong,
        read=report,
    )
    for document in range(len(examples.documents)):
        title = _title(examples, document, spec)
        yield f"{title}\n{show_document(examples, document, tokenizer, spec)}\n"
    dropped = ", ".join(f"{count} {why}" for why, count in examples.read.dropped.items())
    summary = (
        f"{examples.read.rows} rows read, {len(examples.documents)} documents, {examples.shortened} shortened, "
        f"dropped: {dropped or 'none'}"
    )
    lengths = histogram_lines(length_histogram(examples.documents.lengths))
    yield "\n".join([summary, *(["tokens of a document:"] if lengths else []), *lengths])


def show_document(examples: Examples, document: int, tokenizer: Any, spec: JudgeSpec) -> str:
    """One document decoded, with marks around what the loss counts."""
    tokens = examples.documents[document]
    if isinstance(examples, VerdictExamples):
        answer = [spec.label_ids[examples.label[document]]]
        return marked(tokenizer, [*tokens, *answer], np.arange(len(tokens) + 1) == len(tokens))
    if isinstance(examples, BradleyTerryExamples):
        return marked(tokenizer, tokens, np.arange(len(tokens)) == len(tokens) - 1)
    start = examples.documents.offsets[document]
    return marked(tokenizer, tokens, examples.weights[start : start + len(tokens)] > 0)


def marked(tokenizer: Any, tokens: Any, counts: np.ndarray) -> str:
    """The decoded tokens, runs of those that count between ⟦ and ⟧. counts: bool, as long as tokens."""
    bounds = [0, *(np.flatnonzero(np.diff(counts)) + 1), len(counts)]
    shown = []
    for start, stop in itertools.pairwise(bounds):
        text = tokenizer.decode(
            [int(t) for t in tokens[start:stop]],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        shown.append(f"{OPEN}{text}{CLOSE}" if counts[start] else text)
    return "".join(shown)


def _title(examples: Examples, document: int, spec: JudgeSpec) -> str:
    tokens = len(examples.documents[document])
    parts = [f"record {examples.ids[document // examples.per_unit]}", f"{tokens} tokens"]
    if isinstance(examples, VerdictExamples):
        label = int(examples.label[document])
        which = ("first", "second")[label]
        parts.append(f"verdict {spec.labels[label]} (the {which} is better)")
    elif isinstance(examples, BradleyTerryExamples):
        parts.append("rejected" if document % 2 else "chosen")
    else:
        start = examples.documents.offsets[document]
        weights = examples.weights[start : start + tokens]
        parts.append(f"{np.count_nonzero(weights)} of them carry the loss")
    return "--- " + " | ".join(parts)
