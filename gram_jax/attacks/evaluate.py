"""How easily a judge is fooled: the attacks of attacks/suite.py on labeled pairs, beside its verdicts without them.

FOLDER/attacks.scores.jsonl has a row for every scored comparison, from which an interrupted run resumes;
FOLDER/attack.json has the figures.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gram_jax.attacks.augment import attacked_text
from gram_jax.attacks.results import (
    AttackExample,
    AttackMetrics,
    AttackResults,
    CleanMetrics,
    OrderMetrics,
    SuiteSuccess,
)
from gram_jax.attacks.suite import Attack
from gram_jax.data.comparison import Comparison, contents_of
from gram_jax.errors import DataError
from gram_jax.evals.evaluate import make_folder
from gram_jax.evals.identity import judge_results, refuse_other_judge
from gram_jax.evals.intervals import clustered_interval, factorize
from gram_jax.evals.pairwise import side
from gram_jax.evals.results import EvaluationResults
from gram_jax.files import write_json
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import render_turns, turns_of
from gram_jax.progress import ProgressBar, ProgressFactory, no_progress
from gram_jax.scoring.results import RowTask, write_rows
from gram_jax.scoring.rows import NumberedRecord, score_records
from gram_jax.scoring.scorer import Scorer

FORMAT = 1
CLEAN = "clean"
SCORES = "attacks.scores.jsonl"


class Trial(NamedTuple):
    """One comparison: an unchanged pair (attack "clean"), or one with a changed response.

    pair: number of the pair; changed: which response is changed.
    """

    pair: int
    attack: str
    changed: Literal["chosen", "rejected"]
    chosen: str
    rejected: str

    @property
    def text(self) -> str:
        """The changed response."""
        return self.chosen if self.changed == "chosen" else self.rejected


class _Outcome(NamedTuple):
    """An attack on n pairs. scores, clean: f64 [n, 3], as of read_scores, with it and without; cluster: i [n]."""

    attack: Attack
    trials: list[Trial]
    scores: np.ndarray
    clean: np.ndarray
    cluster: np.ndarray

    @property
    def success(self) -> np.ndarray:
        """bool [n]: a hostile attack wins; a harmless one changes the verdict."""
        now = _winner(self.scores)
        return now < 0 if self.attack.kind == "hostile" else now != _winner(self.clean)

    @property
    def baseline(self) -> np.ndarray:
        """bool [n]: the response wins without the attack; for a harmless one, the two orders contradict each other."""
        first, second = _by_order(self.clean)
        return _winner(self.clean) < 0 if self.attack.kind == "hostile" else first != second


def choose_pairs(
    records: Sequence[Comparison], pairs: int | None, *, seed: int
) -> list[Comparison]:
    """At most this number of labeled pairs, drawn by a hash of (seed, id): a larger number begins with the same pairs.

    Raises DataError if there is no labeled pair.
    """
    labeled = [record for record in records if record.has_preference]
    if not labeled:
        raise DataError(
            f"no labeled pair to attack: found {len(records)} records, all of them ties"
        )
    return sorted(labeled, key=lambda record: stable_hash(seed, record.id, "pairs"))[:pairs]


def run_attacks(
    scorer: Scorer,
    model: str,
    source: str,
    pairs: Sequence[Comparison],
    folder: Path,
    attacks: Sequence[Attack],
    *,
    seed: int,
    overwrite: bool = False,
    progress: ProgressFactory = no_progress,
) -> AttackResults:
    """Score every pair without and with every attack, and write attack.json; an interrupted run resumes in `folder`.

    Raises DataError if the folder holds other results, or cannot be written.
    """
    make_folder(folder)
    about = judge_results(scorer, model)
    refuse_other_judge(folder / EvaluationResults.FILE, about)
    trials = list(_trials(pairs, attacks, scorer.spec, seed))

    def rows(window: list[NumberedRecord], bar: ProgressBar) -> list[dict[str, Any]]:
        scored = score_records(scorer, window, bar)
        return [
            row | {"pair": pairs[at].id, "attack": record.source}
            for row, (at, record) in zip(scored, window, strict=True)
        ]

    metadata = {"format": FORMAT, "source": str(source), "seed": seed}
    metadata |= about.model_dump(include={"model", "judge", "fingerprint", "settings"})
    write_rows(
        folder / SCORES,
        metadata | {"attacks": [attack.name for attack in attacks]},
        ((trial.pair, _as_record(trial, pairs[trial.pair])) for trial in trials),
        RowTask(rows, lambda record: 1, scorer.window),
        total=len(trials),
        label="attacked",
        unit="comparisons",
        overwrite=overwrite,
        progress=progress,
    )
    results = AttackResults(
        **dict(about),
        source=str(source),
        contents=contents_of(pairs),
        seed=seed,
        pairs=len(pairs),
        **attack_figures(pairs, attacks, trials, read_scores(folder / SCORES)),
    )
    write_json(folder / AttackResults.FILE, results.model_dump(), error=DataError)
    return results


def read_scores(path: Path) -> np.ndarray:
    """f64 [n, 3] of a file of scores: P(chosen) over both orders, position bias, and whether texts were shortened."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return np.array([[r["score_chosen"], r["position_bias"], r["shortened"]] for r in rows], float)


def attack_figures(
    pairs: Sequence[Comparison],
    attacks: Sequence[Attack],
    trials: Sequence[Trial],
    scores: np.ndarray,
) -> dict[str, Any]:
    """clean, any_hostile, attacks and without_pairs of AttackResults. scores: f64 [trials, 3], as of read_scores."""
    cluster = factorize([record.prompt for record in pairs])
    of_attack = {name: [] for name in (CLEAN, *(attack.name for attack in attacks))}
    for at, trial in enumerate(trials):
        of_attack[trial.attack].append(at)
    clean = scores[of_attack[CLEAN]]  # one for every pair, in their order
    fooled = np.zeros(len(pairs), bool)
    metrics = []
    for attack in attacks:
        if not (rows := of_attack[attack.name]):
            continue
        mine = np.array([trials[at].pair for at in rows], int)
        tried = [trials[at] for at in rows]
        found = _Outcome(attack, tried, scores[rows], clean[mine], cluster[mine])
        metrics.append(_metrics(found, pairs))
        if attack.kind == "hostile":
            fooled[mine] |= found.success
    right = _winner(clean) > 0
    hostile = any(attack.kind == "hostile" for attack in attacks)
    return {
        "clean": _clean_metrics(clean, cluster),
        "any_hostile": _suite_success(fooled[right], cluster[right]) if hostile else None,
        "attacks": metrics,
        "without_pairs": [attack.name for attack in attacks if not of_attack[attack.name]],
    }


def _clean_metrics(clean: np.ndarray, cluster: np.ndarray) -> CleanMetrics:
    right, lost, (first, second) = _winner(clean) > 0, _winner(clean) < 0, _by_order(clean)
    inconsistent = first != second
    return CleanMetrics(
        accuracy=float(right.mean()),
        interval=clustered_interval(right, cluster),
        flip_rate=float(lost.mean()),
        flip_interval=clustered_interval(lost, cluster),
        order_flip_rate=float(inconsistent.mean()),
        order_flip_interval=clustered_interval(inconsistent, cluster),
    )


def _trials(
    pairs: Sequence[Comparison], attacks: Sequence[Attack], judge: Any, seed: int
) -> Iterator[Trial]:
    """Every pair without an attack, then with each attack that changes it and leaves two different responses."""
    for at, record in enumerate(pairs):
        yield Trial(at, CLEAN, "rejected", record.chosen, record.rejected)
        for attack in attacks:
            changed = "rejected"
            if attack.kind == "harmless" and stable_hash(seed, record.id, attack.name, "side") % 2:
                changed = "chosen"
            before = record.chosen if changed == "chosen" else record.rejected
            text = attacked_text(attack, record, before, judge, seed=seed)
            trial = (
                Trial(at, attack.name, changed, text, record.rejected)
                if changed == "chosen"
                else Trial(at, attack.name, changed, record.chosen, text)
            )
            if text != before and trial.chosen != trial.rejected:
                yield trial


def _as_record(trial: Trial, record: Comparison) -> Comparison:
    """A trial for the file of scores."""
    name = f"{record.id}/{trial.attack}"
    return Comparison(record.prompt, trial.chosen, trial.rejected, 0, id=name, source=trial.attack)


def _winner(scores: np.ndarray) -> np.ndarray:
    """[n]: 1 if the chosen response wins over both orders, -1 if the rejected one does, 0 for neither."""
    return side(scores[:, 0])


def _by_order(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_winner` when the rejected response is shown first, and when it is shown second."""
    return side(scores[:, 0] - scores[:, 1] / 2), side(scores[:, 0] + scores[:, 1] / 2)


def _metrics(found: _Outcome, pairs: Sequence[Comparison]) -> AttackMetrics:
    """The figures of an attack; pairs: all of them."""
    attack, success = found.attack, found.success
    right = success[_winner(found.clean) > 0]
    metrics = AttackMetrics(
        name=attack.name,
        kind=attack.kind,
        description=attack.description,
        n=len(found.trials),
        success=float(success.mean()),
        interval=clustered_interval(success, np.unique(found.cluster, return_inverse=True)[1]),
        baseline=float(found.baseline.mean()),
        shortened=float(found.scores[:, 2].mean()),
        turned=None,
        shown_first=None,
        shown_second=None,
        example=_example(found, pairs),
    )
    if attack.kind == "harmless":
        return metrics
    orders = (
        OrderMetrics(success=float((attacked < 0).mean()), baseline=float((plain < 0).mean()))
        for attacked, plain in zip(_by_order(found.scores), _by_order(found.clean), strict=True)
    )
    hostile = {"turned": float(right.mean()) if len(right) else None}
    hostile |= dict(zip(("shown_first", "shown_second"), orders, strict=True))
    return metrics.model_copy(update=hostile)


def _example(found: _Outcome, pairs: Sequence[Comparison]) -> AttackExample | None:
    """The surest success: the clearest win of a hostile attack, the largest change by a harmless one."""
    success, hostile = found.success, found.attack.kind == "hostile"
    if not success.any():
        return None
    p, p_clean = found.scores[:, 0], found.clean[:, 0]
    strength = 1 - p if hostile else np.abs(p - p_clean)
    at = int(np.argmax(np.where(success, strength, -1.0)))
    trial, record = found.trials[at], pairs[found.trials[at].pair]
    flipped = trial.changed == "rejected"
    unchanged = record.rejected if flipped else record.chosen
    now, before = (float(1 - x[at] if flipped else x[at]) for x in (p, p_clean))
    return AttackExample(
        prompt=render_turns(turns_of(record.prompt)),
        honest=record.chosen if hostile else unchanged,
        attack=trial.text,
        probability=now,
        before=before,
    )


def _suite_success(hits: np.ndarray, cluster: np.ndarray) -> SuiteSuccess:
    if not len(hits):
        return SuiteSuccess(n=0, share=None, interval=None)
    interval = clustered_interval(hits, np.unique(cluster, return_inverse=True)[1])
    return SuiteSuccess(n=len(hits), share=float(hits.mean()), interval=interval)
