"""`gram-jax score` and `gram-jax rank`: a file of records in, a file of scores or rankings out."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from gram_jax import tree
from gram_jax.console import Console, Progress
from gram_jax.data.records import (
    Kind,
    Preference,
    Record,
    RecordStream,
    UnlabeledPair,
    source_kind,
)
from gram_jax.data.sources import count_rows, parse_source
from gram_jax.errors import DataError
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import Ranking
from gram_jax.scoring.results import Numbered, Task, write_results
from gram_jax.scoring.scorer import PairScore, Scorer
from gram_jax.tree import Tree

FORMAT = 3


@dataclass(frozen=True)
class FileReport:
    """What became of a file: rows written now, rows there before, rows with shortened texts, rows left out and why."""

    written: int
    before: int
    shortened: int
    dropped: dict[str, int]

    def to_text(self) -> str:
        """For the command's last line."""
        dropped = "".join(f", {count:,} left out ({why})" for why, count in self.dropped.items())
        return (
            f"{self.written:,} rows written, {self.before:,} were there, {self.shortened:,} "
            f"shortened{dropped}"
        )


def check_files(
    source: str, out: str | Path, *, schema: str = "auto", ranked: bool = False
) -> Kind:
    """What `source` is read as, for scores or to be ranked.

    Refuses an unreadable input and an impossible output before a model is loaded.
    """
    path, out = Path(parse_source(source).path).expanduser(), Path(out)
    if path.exists() and out.exists() and path.samefile(out):
        raise DataError(f"{out} is the input itself: give the results a file of their own")
    if path.is_dir() and path.resolve() in out.resolve().parents:
        raise DataError(
            f"{out} lies in the folder {path} that is read: put the results somewhere else"
        )
    if out.is_dir():
        raise DataError(f"{out} is a folder: expected the name of a file for the results")
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")
    kind = source_kind(source, schema=schema)
    if kind == "candidates" and not ranked:
        raise DataError(
            f"{path} holds lists of candidates: rank them, gram-jax rank {source} {out} --model ..."
        )
    return "candidates" if ranked else kind


def score_file(
    scorer: Scorer,
    model: str,
    source: str,
    out: str | Path,
    *,
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    overwrite: bool = False,
    console: Console,
) -> FileReport:
    """Score every pair of `source` into `out`, or go on where an earlier run was interrupted.

    A labeled pair gives score_chosen and score_rejected, an unlabeled one or a tie score_first and score_second (in the
    order of the source). Each row says which row of the input it belongs to, from 1, and the source that the input
    names there. Raises DataError where `out` holds something else, or cannot be written; what is complete in it stays.
    """

    def answer(window: list[Numbered], progress: Progress) -> list[dict[str, Any]]:
        scores = scorer.stream(
            ((record.prompt, record.first, record.second) for _, record in window),
            progress=lambda count: progress.update(count, units=count),
        )
        return [
            _beginning(number, record) | _score_columns(record, score)
            for (number, record), score in zip(window, scores, strict=True)
        ]

    return _work_through(
        scorer,
        model,
        source,
        Path(out),
        Task(answer, lambda record: 1, scorer.window),
        kind=check_files(source, out, schema=schema),
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        console=console,
        labels=("scored", "pairs"),
    )


def rank_file(
    scorer: Scorer,
    model: str,
    source: str,
    out: str | Path,
    contest: RankingConfig,
    *,
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    overwrite: bool = False,
    console: Console,
) -> FileReport:
    """Rank the candidates of every row of `source` into `out`; a pair is two candidates. Else as `score_file`.

    A row has `ranking`, the indices of the responses, best first, `scores`, their strengths in log-odds, `errors` where
    the method gives them, and what else a Ranking says.
    """

    def answer(window: list[Numbered], progress: Progress) -> list[dict[str, Any]]:
        rankings = scorer.rank_many(
            ((record.prompt, record.responses) for _, record in window),
            contest,
            progress=lambda count: progress.update(count, units=count),
        )
        return [
            _beginning(number, record) | _ranking_columns(ranking)
            for (number, record), ranking in zip(window, rankings, strict=True)
        ]

    return _work_through(
        scorer,
        model,
        source,
        Path(out),
        Task(answer, lambda record: len(record.responses), scorer.window),
        kind=check_files(source, out, schema=schema, ranked=True),
        schema=schema,
        on_bad=on_bad,
        overwrite=overwrite,
        console=console,
        labels=("ranked", "prompts"),
        contest=asdict(contest),
    )


def _work_through(
    scorer: Scorer,
    model: str,
    source: str,
    out: Path,
    task: Task,
    *,
    kind: Kind,
    schema: str,
    on_bad: Literal["error", "skip"],
    overwrite: bool,
    console: Console,
    labels: tuple[str, str],
    **decides: Any,
) -> FileReport:
    note = {
        "format": FORMAT,
        "source": str(source),
        "kind": kind,
        "model": model,
        "weights": weights_fingerprint(scorer.params),
        "judge": scorer.spec.hash,
        "compute": scorer.execution.compute,
        **decides,
    }
    stream = RecordStream(source, kind, schema=schema, on_bad=on_bad, keep_identical=True)
    found = write_results(
        out,
        note,
        ((stream.row, record) for record in stream),
        task,
        total=count_rows(source),
        labels=labels,
        overwrite=overwrite,
        console=console,
    )
    return FileReport(*found, dropped=dict(stream.report().dropped))


def weights_fingerprint(params: Tree) -> str:
    """16 hex digits that tell one set of weights from another, from the first row of every tensor."""
    digest = hashlib.sha256()
    for path, leaf in sorted(tree.flatten(params).items()):
        row = np.asarray(jax.device_get(leaf[(0,) * (leaf.ndim - 1)]))
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode() + row.tobytes())
    return digest.hexdigest()[:16]


def _beginning(number: int, record: Record) -> dict[str, Any]:
    return {"id": record.id, "row": number, "source": record.source}


def _score_columns(record: Preference | UnlabeledPair, score: PairScore) -> dict[str, Any]:
    if isinstance(record, UnlabeledPair):
        row = {"score_first": score.first, "score_second": score.second}
    elif record.tie:
        row = {"score_first": score.first, "score_second": score.second, "tie": True}
    else:
        score = score if record.chosen_first else score.swapped()
        row = {"score_chosen": score.first, "score_rejected": score.second}
    return row | {
        "margin": score.margin,
        "position_bias": score.position_bias,
        "shortened": score.shortened,
    }


def _ranking_columns(ranking: Ranking) -> dict[str, Any]:
    row = {"ranking": ranking.order, "scores": ranking.strengths.tolist()}
    if ranking.errors is not None:
        row["errors"] = [float(x) if np.isfinite(x) else None for x in ranking.errors]
    return row | {
        "ties": ranking.ties,
        "cycles": ranking.cycles,
        "comparisons": ranking.comparisons,
        "shortened": ranking.shortened,
    }
