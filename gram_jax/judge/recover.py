"""Recovering a judge template from rendered rows, as in published GRAM data.

A row is {"instruction", "input", "output"}: a whole judge prompt and its verdict. The template is the text that
all rows share; the prompt and the two responses differ.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.judge.guard import layout_guard
from gram_jax.judge.template import FIELDS, split_template, text_parts

_ADVICE = (
    "Pass more rows with different prompts and responses, or write the template, with {prompt}, {first} and {second}, "
    "to a text file, and give that file as --template of gram-jax spec, or as judge.template of a recipe."
)


def row_prompt(row: Mapping[str, Any]) -> str:
    """The user's message of a row: instruction and input, joined by a line break if both have text."""
    return "\n".join(part for part in (row.get("instruction"), row.get("input")) if part)


def recover_template(rows: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[str, str]]:
    """The template and the labels of at least two rendered rows.

    Delimiters are whole lines: those before the first line that differs, those after the last, and between them the
    lines that occur exactly once, and in the same order, in every row. They form two blocks. Raises JudgeError if the
    rows do not determine the template, or if it does not reproduce every row.
    """
    if len(rows) < 2:
        raise JudgeError(
            f"recovering a template takes at least two rows; found {len(rows)}. {_ADVICE}"
        )
    labels = _labels(rows)
    texts = [row_prompt(row) for row in rows]
    head, tail = _shared_ends(texts)
    middles = [text[len(head) : len(text) - len(tail)] for text in texts]
    blocks = _separators(middles)
    if len(blocks) != 2:
        listed = "; ".join(repr(block) for block in blocks) or "none"
        raise JudgeError(
            f"two delimiters separate prompt, first and second response; the {len(rows)} rows share {len(blocks)}: "
            f"{listed}. {_ADVICE}"
        )
    template = f"{head}{{prompt}}{blocks[0]}{{first}}{blocks[1]}{{second}}{tail}"
    split_template(template)
    fields = [take_apart(template, text) for text in texts]
    for at, (text, found) in enumerate(zip(texts, fields, strict=True)):
        if found is None or render(template, *found) != text:
            raise JudgeError(
                f"row {at} does not fit the template that all rows share ({template!r:.300}): one of its fields has "
                f"a delimiter line. Leave the row out. {_ADVICE}"
            )
    for name, values in zip(FIELDS, zip(*fields, strict=True), strict=True):
        if len(set(values)) == 1:
            raise JudgeError(
                f"all {len(rows)} rows have the same {name} ({values[0]!r:.80}), which may be part of the template. "
                f"{_ADVICE}"
            )
    return template, labels


def take_apart(template: str, text: str) -> tuple[str, str, str] | None:
    """(prompt, first, second) of a rendered text, split at the first occurrence of each delimiter, or None."""
    head, between, middle, tail = map(re.escape, split_template(template))
    found = re.fullmatch(f"{head}(.*?){between}(.*?){middle}(.*){tail}", text, re.DOTALL)
    return (found[1], found[2], found[3]) if found else None


def render(template: str, prompt: str, first: str, second: str) -> str:
    """The user's message with the fields filled in, suspicious lines escaped."""
    guard = layout_guard(text_parts(template))
    head, between, middle, tail = split_template(template)
    prompt, first, second = (guard.escape(field)[0] for field in (prompt, first, second))
    return f"{head}{prompt}{between}{first}{middle}{second}{tail}"


def _labels(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    for at, row in enumerate(rows):
        for name in ("instruction", "output"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise JudgeError(
                    f"row {at}: expected text in {name!r}; found {row.get(name)!r:.80}. Rendered rows have the fields "
                    f"instruction, input and output. {_ADVICE}"
                )
    outputs = sorted({row["output"] for row in rows})
    if len(outputs) != 2:
        shown = ", ".join(repr(o[:20]) for o in outputs[:4])
        raise JudgeError(
            f"the outputs of the rows are the judge's two labels; found {len(outputs)}: {shown}. {_ADVICE}"
        )
    return outputs[0], outputs[1]


def _shared_ends(texts: Sequence[str]) -> tuple[str, str]:
    """The common beginning up to a line break, and the common end from a line break on."""
    head = _shared_start(texts)
    head = head[: head.rfind("\n") + 1]
    rest = [text[len(head) :] for text in texts]
    tail = _shared_start([text[::-1] for text in rest])[::-1]
    cut = tail.find("\n")
    if not head or cut < 0:
        where = "begin" if not head else "end"
        raise JudgeError(f"the rows do not {where} with a common line. {_ADVICE}")
    return head, tail[cut:]


def _shared_start(texts: Sequence[str]) -> str:
    low, high = min(texts), max(texts)  # their common start is that of all texts
    same = (at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(same, min(len(low), len(high)))]


def _shared_lines(lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines with words that occur exactly once in every row, in the order of the first row."""
    counts = [Counter(found) for found in lines]
    shared = []
    for line in dict.fromkeys(lines[0]):
        times = [count[line] for count in counts]
        if not line.strip() or not all(times):
            continue
        if max(times) == 1:
            shared.append(line)
        elif times.count(1) * 2 > len(times):
            # A text repeats this delimiter. If it were ignored, a wrong template could fit.
            at = next(at for at, n in enumerate(times) if n > 1)
            raise JudgeError(
                f"row {at} does not fit: the line {line!r} is in every row, here {times[at]} times. Leave the row "
                f"out. {_ADVICE}"
            )
    return shared


def _separators(middles: Sequence[str]) -> list[str]:
    """The delimiter blocks inside texts: runs of shared lines, with the line breaks around them."""
    lines = [middle.split("\n") for middle in middles]
    shared = _shared_lines(lines)
    where = [[found.index(line) for line in shared] for found in lines]  # [row][shared line]
    if any(row != sorted(row) for row in where):
        raise JudgeError(f"the lines {shared} are in different orders in the rows. {_ADVICE}")

    def is_blank(offsets: np.ndarray) -> bool:
        """Whether every row has the same blank line at its offset."""
        places = list(zip(offsets, lines, strict=True))
        inside = all(0 < at < len(found) - 1 for at, found in places)
        values = {found[at] for at, found in places} if inside else {"outside"}
        return len(values) == 1 and not values.pop().strip()

    blocks: list[tuple[np.ndarray, np.ndarray]] = []  # first and last line in each row
    for line in np.array(where, int).reshape(len(lines), -1).T:
        start, stop = line, line
        while is_blank(start - 1):
            start = start - 1
        while is_blank(stop + 1):
            stop = stop + 1
        if blocks and (blocks[-1][1] + 1 >= start).all():
            start = blocks.pop()[0]
        blocks.append((start, stop))
    return ["\n" + "\n".join(lines[0][a[0] : b[0] + 1]) + "\n" for a, b in blocks]
