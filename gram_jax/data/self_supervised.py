"""Labeled pairs without annotators, from plain text or from responses: a first stage for a judge."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gram_jax.data.records import Comparison, content_id
from gram_jax.data.sources import parse_source, read_rows
from gram_jax.errors import DataError
from gram_jax.files import write_atomic
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import Prompt, as_prompt
from gram_jax.judge.template import CONTINUE

Corruption = Literal["cut", "shuffled", "swapped"]
CORRUPTIONS: tuple[Corruption, ...] = ("cut", "shuffled", "swapped")
LEAST_WORDS = 8  # of each half of a text, and of a response that is cut or shuffled


def continuation_pairs(texts: Sequence[str], *, seed: int, words: int) -> list[Comparison]:
    """The true continuation of the beginning of a text against that of another text.

    words: number of words of the beginning, and maximum number of words of a continuation. Texts are paired by the
    seed; each continuation is the better response once and the worse one once. Texts of fewer than `words` + 8 words
    are left out. Raises DataError if fewer than two are left.

    >>> texts = [f"{name} " * 12 for name in ("one", "two")]
    >>> pairs = continuation_pairs(texts, seed=0, words=4)
    >>> sorted((pair.chosen[:3], pair.rejected[:3]) for pair in pairs)
    [('one', 'two'), ('two', 'one')]
    """
    halves = [_halves(text, words) for text in dict.fromkeys(texts)]
    usable = [half for half in halves if half is not None]
    if len(usable) < 2:
        raise DataError(
            f"{len(usable)} of {len(texts)} texts have {words + LEAST_WORDS} words: expected at least 2"
        )
    order = sorted(usable, key=lambda half: stable_hash(seed, half[0]))
    even = len(order) // 2 * 2
    partners = zip(order[:even:2], order[1:even:2], strict=True)
    return [pair for one, other in partners for pair in _both_ways(one, other)]


def corrupted_pairs(records: Sequence[Comparison], *, seed: int) -> list[Comparison]:
    """A response against a corruption: its beginning, its words in a random order, or the response of another prompt.

    The response and the corruption of a record are drawn by a hash of (seed, id). A response of fewer than 8 words is
    exchanged for that of another prompt. Raises DataError if all records have the same prompt.
    """
    if len({record.prompt for record in records}) < 2:
        raise DataError(
            "expected pairs of at least two prompts, since responses are swapped between prompts"
        )
    pairs = (_corrupted(records, record, seed) for record in records)
    return [pair for pair in pairs if pair is not None]


def read_texts(source: str) -> Iterator[str]:
    """The texts of a source: the column `text` of its rows. Raises DataError if a row has none."""
    for row in read_rows(parse_source(source)):
        text = row.fields.get("text") if row.fault is None else None
        if not isinstance(text, str):
            raise DataError(f"{row.where}: expected a column text with plain text")
        yield text


def write_preferences(path: Path, pairs: Iterable[Comparison]) -> int:
    """Write pairs as rows with prompt, chosen and rejected; returns their number."""
    rows = [_row(pair) for pair in pairs]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, lines, error=DataError)
    return len(rows)


def _row(pair: Comparison) -> dict[str, object]:
    prompt = [{"role": message.role, "content": message.content} for message in pair.prompt]
    row: dict[str, object] = {
        "id": pair.id,
        "prompt": prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    if pair.margin is not None:
        row["margin"] = pair.margin
    return row | {"source": pair.source} | ({} if pair.weight == 1 else {"weight": pair.weight})


def _halves(text: str, words: int) -> tuple[str, str] | None:
    """(the first words, the words after them), None if the text is too short."""
    found = text.split()
    if len(found) < words + LEAST_WORDS:
        return None
    return " ".join(found[:words]), " ".join(found[words : 2 * words])


def _both_ways(one: tuple[str, str], other: tuple[str, str]) -> Iterator[Comparison]:
    for (beginning, right), (_, wrong) in ((one, other), (other, one)):
        prompt = as_prompt(CONTINUE.format(beginning=beginning))
        name = content_id(prompt, right, wrong)
        yield Comparison(prompt, right, wrong, 0, id=name, source="continuations")


def _corrupted(records: Sequence[Comparison], record: Comparison, seed: int) -> Comparison | None:
    rng = random.Random(stable_hash(seed, record.id))
    right = rng.choice((record.first, record.second))
    words = right.split()
    kind = rng.choice(CORRUPTIONS) if len(words) >= LEAST_WORDS else "swapped"
    if kind == "cut":
        wrong = " ".join(words[: rng.randrange(len(words) // 4, 3 * len(words) // 4)])
    elif kind == "shuffled":
        wrong = " ".join(rng.sample(words, len(words)))
    else:
        wrong = _of_another_prompt(records, record.prompt, rng)
    if wrong == right:
        return None
    return Comparison(record.prompt, right, wrong, 0, id=f"{record.id}-{kind}", source=kind)


def _of_another_prompt(records: Sequence[Comparison], prompt: Prompt, rng: random.Random) -> str:
    while (other := rng.choice(records)).prompt == prompt:
        pass
    return rng.choice((other.first, other.second))
