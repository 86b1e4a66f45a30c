"""Truncation of overlong examples: inside the responses, then inside the prompt, never at the tail, and equal for both
orders.
"""

from collections.abc import Mapping, Sequence

from gram_jax.judge.segments import TokenTable
from gram_jax.judge.template import CUT


def truncate_fields(table: TokenTable, texts: Mapping[str, str], space: int) -> dict[str, str]:
    """The fields cut to `space` tokens: the responses to a common length, then the prompt.

    The responses together keep at least half of the space, for any length of the prompt. The result depends on the
    texts only, not on the order of the responses.
    """
    lengths = {name: table.length(name, text) for name, text in texts.items()}
    responses = [name for name in texts if name != "prompt"]
    floor = space // (2 * len(responses))
    total = max(space - lengths["prompt"], sum(min(lengths[name], floor) for name in responses))
    limit = common_limit([lengths[name] for name in responses], total)
    short = {name: _cut_middle(table, name, texts[name], limit, space) for name in responses}
    left = space - sum(table.length(name, text) for name, text in short.items())
    return {"prompt": _cut_middle(table, "prompt", texts["prompt"], left, space), **short}


def common_limit(lengths: Sequence[int], total: int) -> int:
    """The largest limit for which the lengths, each cut to the limit, sum to at most `total`."""
    left = total
    for at, length in enumerate(sorted(lengths)):
        limit = left // (len(lengths) - at)
        if length > limit:
            return limit
        left -= length
    return max(lengths)


def _cut_middle(table: TokenTable, field: str, text: str, limit: int, space: int) -> str:
    """The beginning and the end of a text (answers often come last), with a mark between them, in `limit` tokens.

    The text is cut at the ends of its tokens, and tokenized again. space: of all fields, at least `limit`.
    """
    if table.length(field, text) <= limit:
        return text
    size, first, last = table.ends(text, space)
    keep = min(limit, size - 1)
    while keep > 0:
        back = keep // 2
        left, right = text[: first[keep - back - 1]], text[last[-back - 1] :]
        short = left + (CUT + right if right else CUT.rstrip())
        excess = table.length(field, short) - limit
        if excess <= 0:
            return short
        keep -= excess
    return CUT.strip()
