"""The judge's answers that an evaluation is computed from: in memory, or in a file in which the next run goes on."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.console import Console, Progress
from gram_jax.data.records import Candidates, Preference
from gram_jax.evals.graded import Graded
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.scoring.files import weights_fingerprint
from gram_jax.scoring.results import Numbered, Task, write_results
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import PairScore, Scorer

FORMAT = 1
WINDOW = 4096  # pairs or rankings at a time at most


class Target(NamedTuple):
    """Where answers go: a file of JSON lines, or None for memory; overwrite: begin it anew."""

    file: Path | None
    overwrite: bool
    console: Console


def score_pairs(
    scorer: Scorer | ScalarRewardModel,
    model: str,
    source: str,
    records: Sequence[Preference],
    to: Target,
) -> list[PairScore]:
    """The score of every labeled pair, seen from the chosen response."""

    def answer(window: list[Numbered], progress: Progress) -> list[dict[str, Any]]:
        scores = scorer.stream(
            ((record.prompt, record.first, record.second) for _, record in window),
            progress=lambda count: progress.update(count, units=count),
        )
        return [
            _beginning(number, record)
            | (score if record.chosen_first else score.swapped())._asdict()
            for (number, record), score in zip(window, scores, strict=True)
        ]

    task = Task(answer, lambda record: 1, WINDOW)
    rows = _answers(scorer, model, source, records, to, task, "pairs")
    return [PairScore(*(row[name] for name in PairScore._fields)) for row in rows]


def rank_graded(
    scorer: Scorer | ScalarRewardModel,
    model: str,
    source: str,
    records: Sequence[Candidates],
    to: Target,
) -> list[Graded]:
    """Compare all responses of every row in both orders; a ScalarRewardModel rates each of them once."""

    def rate(
        rater: ScalarRewardModel, window: list[Numbered], progress: Progress
    ) -> list[dict[str, Any]]:
        rewards, shortened = rater.rate_and_mark(
            (r.prompt, text) for _, r in window for text in r.responses
        )
        ends = np.cumsum([len(record.responses) for _, record in window])[:-1]
        progress.update(len(window), units=len(window))
        return [
            _beginning(number, record)
            | {
                "strengths": (own - own.mean()).tolist(),
                "logit_diffs": (own[:, None] - own[None, :]).tolist(),
                "shortened": bool(cut.any()),
            }
            for (number, record), own, cut in zip(
                window, np.split(rewards, ends), np.split(shortened, ends), strict=True
            )
        ]

    def answer(judge: Scorer, window: list[Numbered], progress: Progress) -> list[dict[str, Any]]:
        rankings = judge.rank_many(
            ((record.prompt, record.responses) for _, record in window),
            RankingConfig("round_robin"),
            progress=lambda count: progress.update(count, units=count),
        )
        return [
            _beginning(number, record)
            | {
                "strengths": ranking.strengths.tolist(),
                "logit_diffs": [
                    [None if np.isnan(x) else x for x in row]
                    for row in ranking.logit_diffs.tolist()
                ],
                "shortened": ranking.shortened,
            }
            for (number, record), ranking in zip(window, rankings, strict=True)
        ]

    how = (
        partial(rate, scorer) if isinstance(scorer, ScalarRewardModel) else partial(answer, scorer)
    )
    task = Task(how, lambda record: len(record.responses) ** 2, WINDOW)
    rows = _answers(scorer, model, source, records, to, task, "prompts")
    return [
        Graded(
            record,
            np.array(row["strengths"], np.float32),
            np.array(row["logit_diffs"], np.float32),
            row["shortened"],
        )
        for record, row in zip(records, rows, strict=True)
    ]


def _answers(
    scorer: Scorer | ScalarRewardModel,
    model: str,
    source: str,
    records: Sequence[Any],
    to: Target,
    task: Task,
    unit: str,
) -> list[dict[str, Any]]:
    """The row of every record; a file holds the very floats, so that it makes no difference."""
    label = Path(source).name
    if to.file is None:
        with to.console.progress(len(records), label=label, unit=unit) as progress:
            return task.answer(list(enumerate(records, 1)), progress)
    note = {
        "format": FORMAT,
        "source": source,
        "kind": f"evaluation of {unit}",
        "model": model,
        "weights": weights_fingerprint(scorer.params),
        "judge": scorer.spec.hash,
        "compute": scorer.execution.compute,
    }
    done = write_results(
        to.file,
        note,
        iter(list(enumerate(records, 1))),
        task,
        total=len(records),
        labels=(label, unit),
        overwrite=to.overwrite,
        console=to.console,
    )
    if done.before:
        to.console.say(
            f"{label}: {done.before:,} of {len(records):,} were there, {done.written:,} scored now"
        )
    with to.file.open(encoding="utf-8") as lines:  # str.splitlines would also split at U+2028
        return [json.loads(line) for line in lines]


def _beginning(number: int, record: Preference | Candidates) -> dict[str, Any]:
    return {"id": record.id, "row": number, "source": record.source}
