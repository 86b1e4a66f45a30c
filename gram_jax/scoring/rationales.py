"""Rows of stage "rationale" from votes: by the label (rejection sampling), or by their agreement (self-training)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gram_jax.data.records import Comparison
from gram_jax.errors import DataError
from gram_jax.files import write_atomic
from gram_jax.scoring.think import Rationale, Thought

Accept = Literal["label", "agreement", "all"]


@dataclass(frozen=True)
class Selection:
    """Which rationales become rows. Raises DataError for values out of range.

    accept: "label", those whose verdict is the label; "all", those with a verdict, whatever it is; "agreement", those
    whose verdict is the response that at least the share `agreement` of the votes of each order prefers, whatever the
    label. keep: most rationales of a pair in one order, the first that were sampled.
    """

    accept: Accept = "label"
    agreement: float = 1.0
    keep: int = 1

    def __post_init__(self) -> None:
        if not 0.5 < self.agreement <= 1 or self.keep < 1:
            raise DataError(
                f"agreement = {self.agreement}, keep = {self.keep}: expected a share above 0.5 and up to 1, and at "
                "least one rationale"
            )

    def label(self, record: Comparison, thought: Thought) -> Literal[0, 1] | None:
        """The label of a pair, of the order `best_first`; None if it gives no rows."""
        if self.accept == "agreement":
            return agreed_label(thought, self.agreement)
        return 0 if record.has_preference else None


class Acceptance(NamedTuple):
    """Numbers of rationales: sampled, with a verdict, accepted, and written; and of pairs, all and with rows."""

    sampled: int = 0
    with_verdict: int = 0
    accepted: int = 0
    written: int = 0
    pairs: int = 0
    pairs_written: int = 0

    def to_text(self) -> str:
        """For the command's last line."""
        return (
            f"{self.written:,} rationales of {self.pairs_written:,} of {self.pairs:,} pairs written; of "
            f"{self.sampled:,} sampled, {self.with_verdict:,} have a verdict, and {self.accepted:,} are accepted"
        )


def write_accepted(
    records: Sequence[Comparison], thoughts: Sequence[Thought], out: Path, selection: Selection
) -> Acceptance:
    """Write the accepted rationales as labeled pairs. thoughts: of the records, `best_first`.

    Raises DataError if `out` cannot be written.
    """
    lines, done = [], Acceptance()
    for record, thought in zip(records, thoughts, strict=True):
        rows = list(accepted_rows(record, thought, selection))
        orders = ([row for row in rows if row["order"] == order] for order in (0, 1))
        written = [row for of_order in orders for row in of_order[: selection.keep]]
        lines += [json.dumps(row, ensure_ascii=False) for row in written]
        votes = [vote for order in thought.rationales for vote in order]
        with_verdict = sum(vote.logit_diff is not None for vote in votes)
        counts = (len(votes), with_verdict, len(rows), len(written), 1, bool(written))
        done = Acceptance(*map(sum, zip(done, counts, strict=True)))
    write_atomic(out, "".join(f"{line}\n" for line in lines), error=DataError)
    return done


def accepted_rows(
    record: Comparison, thought: Thought, selection: Selection
) -> Iterator[dict[str, Any]]:
    """A row of the schema labeled-pairs for each accepted rationale.

    order: 0 `best_first`, 1 swapped.
    """
    if (label := selection.label(record, thought)) is None:
        return
    first, second = record.best_first
    for order, votes in enumerate(thought.rationales):
        shown = (second, first) if order else (first, second)
        for vote in votes:
            preferred = preference(vote, order)
            if preferred is None or (selection.accept != "all" and preferred != label):
                continue
            yield {
                "id": f"{record.id}/{order}",
                "prompt": [asdict(message) for message in record.prompt],
                "response_a": shown[0],
                "response_b": shown[1],
                "label": 1 - label if order else label,
                "rationale": vote.text,
                "order": order,
            }


def agreed_label(thought: Thought, share: float) -> Literal[0, 1] | None:
    """The response that at least `share` (above 0.5) of the votes of each order prefer; None if there is none.

    Votes without a verdict count as votes against.

    >>> from gram_jax.scoring.pair import PairScore
    >>> one, other = (Rationale("", 1, "verdict", x) for x in (1.0, -1.0))
    >>> even = PairScore(0.5, 0.5, 0.0, 0.0, False)
    >>> agreed_label(Thought(even, None, ((one, one), (other, other))), 1.0)
    0
    >>> agreed_label(Thought(even, None, ((one, one), (one, one))), 1.0)      # always the first: position bias
    """
    for label in (0, 1):
        shares = [
            sum(preference(vote, order) == label for vote in votes) / max(1, len(votes))
            for order, votes in enumerate(thought.rationales)
        ]
        if min(shares) >= share:
            return label
    return None


def preference(vote: Rationale, order: int) -> Literal[0, 1] | None:
    """The response that a vote prefers, counted in order 0; None without a verdict, or for equal logits."""
    if not vote.logit_diff:
        return None
    return 0 if (vote.logit_diff > 0) != bool(order) else 1
