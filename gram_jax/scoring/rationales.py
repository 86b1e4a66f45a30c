"""Rejection sampling: rationales whose verdict agrees with the label become rows for stage "rationale"."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.records import Comparison
from gram_jax.errors import DataError
from gram_jax.files import write_atomic
from gram_jax.scoring.think import Thought
from gram_jax.scoring.thinking import ThinkingScorer


class Acceptance(NamedTuple):
    """Numbers of rationales: sampled, with a verdict, with the right verdict, and written."""

    sampled: int = 0
    with_verdict: int = 0
    right: int = 0
    written: int = 0

    def to_text(self) -> str:
        """For the command's last line."""
        return (
            f"{self.written:,} rationales written; of {self.sampled:,} sampled, {self.with_verdict:,} have a verdict, "
            f"and {self.right:,} the right one"
        )


def write_accepted(
    scorer: ThinkingScorer,
    records: Sequence[Comparison],
    out: Path,
    *,
    keep: int,
    progress: Callable[[int], None] = lambda count: None,
) -> Acceptance:
    """Sample rationales for labeled pairs in both orders, and write those with the right verdict as labeled pairs.

    keep: most rationales of a pair in one order, the first that were sampled. Raises DataError if `out` cannot be
    written.
    """
    kept = [record for record in records if record.has_preference]
    pairs = [(record.prompt, record.first, record.second) for record in kept]
    lines, done = [], Acceptance()
    for record, thought in zip(kept, scorer.thoughts(pairs), strict=True):
        rows = list(accepted_rows(record, thought))
        votes = [vote for order in thought.rationales for vote in order]
        written = [
            row for order in (0, 1) for row in [x for x in rows if x["order"] == order][:keep]
        ]
        lines += [json.dumps(row, ensure_ascii=False) for row in written]
        done = Acceptance(
            done.sampled + len(votes),
            done.with_verdict + sum(vote.logit_diff is not None for vote in votes),
            done.right + len(rows),
            done.written + len(written),
        )
        progress(1)
    write_atomic(out, "".join(f"{line}\n" for line in lines), error=DataError)
    return done


def accepted_rows(record: Comparison, thought: Thought) -> Iterator[dict[str, Any]]:
    """A row of the schema labeled-pairs for each rationale whose verdict is the record's label.

    order: 0 as given, 1 swapped.
    """
    for order, votes in enumerate(thought.rationales):
        shown = record.swapped() if order else record
        for vote in votes:
            if vote.logit_diff is None or (vote.logit_diff > 0) != (shown.label == 0):
                continue
            yield {
                "id": f"{record.id}/{order}",
                "prompt": [asdict(message) for message in record.prompt],
                "response_a": shown.first,
                "response_b": shown.second,
                "label": shown.label,
                "rationale": vote.text,
                "order": order,
            }
