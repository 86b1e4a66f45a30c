"""Examples as text, as the model reads them: the output of `gram-jax data inspect SOURCE`."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from gram_jax.data.examples import (
    VERDICT_STAGES,
    Examples,
    Overlong,
    PositionAugmentation,
    Stage,
    make_examples,
)
from gram_jax.data.mapping import ColumnMap
from gram_jax.data.reading import OnBad, read_records
from gram_jax.data.report import histogram_lines, length_histogram
from gram_jax.data.sources import Source
from gram_jax.judge.spec import JudgeSpec, check_tokenizer
from gram_jax.judge.tokenizer import explain_tokenizer
from gram_jax.judge.tokens import tokenizer_name

# Around the tokens with a loss (stage 1), the verdict (stage 2), or the token whose score is read (baseline).
OPEN, CLOSE = "⟦", "⟧"


def inspect_source(
    source: Source,
    *,
    tokenizer: Any,
    spec: JudgeSpec,
    stage: Stage,
    limit: int,
    schema: str = "auto",
    on_bad: OnBad = "error",
    map: ColumnMap | None = None,
    position_augmentation: PositionAugmentation = "hash",
    seed: int = 0,
    overlong: Overlong = "truncate",
) -> Iterator[str]:
    """A text for each document of the first `limit` records, then a summary of rows and lengths.

    Tokens are decoded exactly, control tokens included; ⟦ ⟧ enclose the tokens with a loss. Raises DataError if the
    source cannot be read, JudgeError if the tokenizer is not the one of the specification.
    """
    check_tokenizer(spec, tokenizer)
    kind = "pair" if stage == "pretrain" else "preference"
    records, report = read_records(source, kind, schema=schema, on_bad=on_bad, limit=limit, map=map)
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
        yield _show_document(examples, document, tokenizer, spec)
    summary = (
        f"{examples.read.rows} rows read, {len(examples.documents)} documents, {examples.shortened} shortened, "
        f"dropped: {examples.read.dropped_text or 'none'}"
    )
    if examples.read.notes_text:
        summary += f"\n{examples.read.notes_text}"
    lengths = histogram_lines(length_histogram(examples.documents.lengths))
    yield "\n".join([summary, *(["tokens of a document:"] if lengths else []), *lengths])


def _show_document(examples: Examples, document: int, tokenizer: Any, spec: JudgeSpec) -> str:
    """A title and the decoded document, with marks around the tokens with a loss."""
    tokens = examples.documents[document].tolist()
    size = len(tokens)
    counts = np.zeros(size, bool)
    if examples.stage in VERDICT_STAGES:
        label = examples.label[document]
        tokens, counts = [*tokens, spec.label_ids[label]], np.arange(size + 1) == size
        if examples.stage == "rationale":
            start = examples.documents.starts[document]
            counts[1:size] = examples.weights[start + 1 : start + size] > 0
        about = f"verdict {spec.labels[label]} (the {('first', 'second')[label]} is better)"
    elif examples.stage == "bradley_terry":
        counts[-1] = True
        about = "rejected" if document % 2 else "chosen"
    else:
        start = examples.documents.starts[document]
        counts = examples.weights[start : start + size] > 0
        about = f"{np.count_nonzero(counts)} of them carry the loss"
    name = examples.ids[document // examples.per_unit]
    return f"--- record {name} | {size} tokens | {about}\n{_marked(tokenizer, tokens, counts)}\n"


def _marked(tokenizer: Any, tokens: list[int], counts: np.ndarray) -> str:
    """The decoded tokens, with ⟦ and ⟧ around each run of tokens with a loss. counts: bool, one for each token."""
    bounds = [0, *(np.flatnonzero(np.diff(counts)) + 1), len(counts)]
    shown = []
    for start, stop in itertools.pairwise(bounds):
        with explain_tokenizer(tokenizer_name(tokenizer)):
            text = tokenizer.decode(
                tokens[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        shown.append(f"{OPEN}{text}{CLOSE}" if counts[start] else text)
    return "".join(shown)
