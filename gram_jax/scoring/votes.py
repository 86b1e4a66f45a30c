"""Files of votes: a row for each pair, with its one-token score and the rationales of both orders.

The rows are those of results.py, so an interrupted run resumes. Training rows (rationales.py) and the curve of the gate
(evals/thinking.py) are made of them without the model.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gram_jax.data.records import Comparison
from gram_jax.progress import ProgressBar
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.parts import write_results
from gram_jax.scoring.results import OutputSink, RowTask, WriteSummary, list_source, read_rows
from gram_jax.scoring.rows import NumberedRecord, computed_by, judge_identity, row_start
from gram_jax.scoring.think import Rationale, Thought
from gram_jax.scoring.thinking import ThinkingScorer

FORMAT = 1
WINDOW = 1024  # maximum number of pairs between two writes


def votes_on(
    scorer: ThinkingScorer, model: str, source: str, records: Sequence[Comparison], sink: OutputSink
) -> list[Thought]:
    """The thought of every record, `best_first`, from the file of the sink, which is completed first, or in memory."""
    if sink.file is not None:
        write_votes(scorer, model, source, records, sink)
        return read_votes(Path(sink.file))
    with sink.progress(len(records), label=Path(source).name, unit="pairs") as bar:
        return list(_thoughts(scorer, "", list(enumerate(records, 1)), bar))


def write_votes(
    scorer: ThinkingScorer,
    model: str,
    source: str,
    records: Sequence[Comparison],
    sink: OutputSink,
    *,
    prove: str = "",
) -> WriteSummary:
    """Write the votes on every record that has none in the file. prove: as of `ThinkingScorer.thoughts`."""
    metadata = {"format": FORMAT, "source": source, "kind": "votes"}
    metadata |= judge_identity(scorer, model) | ({"prove": prove} if prove else {})
    return write_results(
        sink,
        metadata,
        list_source(list(enumerate(records, 1))),
        RowTask(
            partial(_rows, scorer, prove), lambda record: 1, WINDOW, Path(source).name, "pairs"
        ),
        partial(computed_by, scorer),
    )


def read_votes(path: Path) -> list[Thought]:
    """The thoughts of a finished file. Raises DataError if a line is damaged."""
    return [
        Thought(
            PairScore(**row["score"]),
            PairScore(**row["direct"]),
            (_order(row["votes"][0]), _order(row["votes"][1])),
        )
        for row in read_rows(path)
    ]


def _order(votes: list[dict[str, Any]]) -> tuple[Rationale, ...]:
    return tuple(Rationale(**vote) for vote in votes)


def _thoughts(
    scorer: ThinkingScorer, prove: str, window: Sequence[NumberedRecord], bar: ProgressBar
) -> Iterator[Thought]:
    pairs = [(record.prompt, *record.best_first) for _, record in window]
    plain = scorer.base.stream(pairs)
    for direct, thought in zip(plain, scorer.thoughts(pairs, prove=prove), strict=True):
        bar.update(1, units=1)
        yield thought._replace(direct=direct)


def _rows(
    scorer: ThinkingScorer, prove: str, window: list[NumberedRecord], bar: ProgressBar
) -> list[dict[str, Any]]:
    return [
        row_start(number, record)
        | {
            "score": thought.score._asdict(),
            "direct": thought.direct._asdict() if thought.direct else None,
            "votes": [[vote._asdict() for vote in order] for order in thought.rationales],
            "shortened": thought.score.shortened,
        }
        for (number, record), thought in zip(
            window, _thoughts(scorer, prove, window, bar), strict=True
        )
    ]
