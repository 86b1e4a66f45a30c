"""Records that two sources share, by their contents."""

from collections import Counter
from collections.abc import Iterable, Sequence

from gram_jax.data.records import Record, content_id, texts_of


def count_overlap(records: Iterable[Record], held_out: Sequence[Record]) -> int:
    """Number of held-out records whose prompt and responses, in any order, one of the records has as well.

    >>> from gram_jax.data.records import Comparison
    >>> from gram_jax.judge.messages import as_prompt
    >>> one, other = (Comparison(as_prompt(x), "yes", "no", label=0, id=x) for x in "ab")
    >>> count_overlap([one, other], [other.swapped()])
    1
    """
    wanted = Counter(map(_contents, held_out))
    found = {key for record in records if (key := _contents(record)) in wanted}
    return sum(wanted[key] for key in found)


def _contents(record: Record) -> str:
    return content_id(record.prompt, *sorted(texts_of(record)))
