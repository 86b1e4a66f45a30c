"""Success rates of the attacks of attacks/suite.py against a judge, on labeled pairs.

FOLDER/attacks.scores.jsonl has a row for every scored comparison; an interrupted run resumes from it.
FOLDER/attack.json has the metrics.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from gram_jax.data.records import Comparison, contents_of
from gram_jax.evals.evaluate import make_folder, open_folder
from gram_jax.evals.identity import judge_results, refuse_other_judge
from gram_jax.evals.intervals import clustered_interval, factorize
from gram_jax.evals.pairwise import labeled, side
from gram_jax.evals.results import EvaluationResults, Interval, JudgeResults, save_results
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import render_turns, turns_of
from gram_jax.judge.spec import JudgeSpec
from gram_jax.progress import ProgressBar, ProgressFactory, no_progress
from gram_jax.scoring.files import WINDOWS
from gram_jax.scoring.parts import write_results
from gram_jax.scoring.results import (
    OutputSink,
    RowTask,
    Shard,
    WriteSummary,
    list_source,
    read_rows,
)
from gram_jax.scoring.rows import NumberedRecord, computed_by, score_records
from gram_jax.scoring.text_scorer import TextScorer

FORMAT = 2
CLEAN = "clean"
SCORES = "attacks.scores.jsonl"


class Trial(NamedTuple):
    """One comparison: an unchanged pair, or one with a changed response.

    pair: index of the pair; record: its source is the attack's name, or "clean"; chosen: whether the chosen response is
    the changed one.
    """

    pair: int
    record: Comparison
    chosen: bool = False

    @property
    def text(self) -> str:
        """The changed response."""
        return self.record.chosen if self.chosen else self.record.rejected


def choose_pairs(
    records: Sequence[Comparison], pairs: int | None, *, seed: int
) -> list[Comparison]:
    """At most `pairs` labeled pairs, selected by a hash of (seed, id); a larger number includes the same pairs.

    Raises DataError if there is no labeled pair.
    """
    kept, _ = labeled(records)
    return sorted(kept, key=lambda record: stable_hash(seed, record.id, "pairs"))[:pairs]


def run_attacks(
    scorer: TextScorer,
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

    Raises DataError if the folder has results of another judge or run, is written by another process, or cannot be
    written.
    """
    with open_folder(folder):
        about = judge_results(scorer, model)
        trials = list(_trials(pairs, attacks, scorer.spec, seed))
        sink = OutputSink(folder / SCORES, overwrite, progress)
        _write_scores(scorer, about, source, pairs, attacks, trials, sink, seed=seed)
        results = AttackResults(
            **dict(about),
            source=str(source),
            contents=contents_of(pairs),
            seed=seed,
            pairs=len(pairs),
            **attack_figures(pairs, attacks, trials, read_scores(folder / SCORES)),
        )
        save_results(folder, results)
        return results


def write_attack_shard(
    scorer: TextScorer,
    model: str,
    source: str,
    pairs: Sequence[Comparison],
    folder: Path,
    attacks: Sequence[Attack],
    shard: Shard,
    *,
    seed: int,
    progress: ProgressFactory = no_progress,
) -> WriteSummary:
    """Write a shard of the scores; `gram-jax merge` joins the shards, and then `run_attacks` finds them."""
    make_folder(folder)
    trials = list(_trials(pairs, attacks, scorer.spec, seed))
    sink = OutputSink(folder / SCORES, False, progress, shard)
    about = judge_results(scorer, model)
    return _write_scores(scorer, about, source, pairs, attacks, trials, sink, seed=seed)


def _write_scores(
    scorer: TextScorer,
    about: JudgeResults,
    source: str,
    pairs: Sequence[Comparison],
    attacks: Sequence[Attack],
    trials: Sequence[Trial],
    sink: OutputSink,
    *,
    seed: int,
) -> WriteSummary:
    """A row for every trial, numbered by its pair."""
    refuse_other_judge(Path(str(sink.file)).parent / EvaluationResults.FILE, about)

    def rows(window: list[NumberedRecord], bar: ProgressBar) -> list[dict[str, Any]]:
        return [
            row | {"pair": pairs[number - 1].id, "attack": record.source}
            for row, (number, record) in zip(
                score_records(scorer, window, bar), window, strict=True
            )
        ]

    metadata = {"format": FORMAT, "source": str(source), "seed": seed}
    metadata |= about.model_dump(include={"model", "judge", "fingerprint", "settings"})
    return write_results(
        sink,
        metadata | {"attacks": [attack.name for attack in attacks]},
        list_source([(trial.pair + 1, trial.record) for trial in trials]),
        RowTask(rows, lambda record: 1, WINDOWS * scorer.window, "attacked", "comparisons"),
        partial(computed_by, scorer),
    )


def read_scores(path: Path) -> np.ndarray:
    """The scores in a file, f64 [n, 3]: P(chosen) over both orders, position bias, and whether texts were shortened."""
    columns = ("score_chosen", "position_bias", "shortened")
    return np.array([[row[name] for name in columns] for row in read_rows(path)], float)


def attack_figures(
    pairs: Sequence[Comparison],
    attacks: Sequence[Attack],
    trials: Sequence[Trial],
    scores: np.ndarray,
) -> dict[str, Any]:
    """clean, any_hostile, attacks and without_pairs of AttackResults. scores: f64 [trials, 3], from read_scores."""
    cluster = factorize([record.prompt for record in pairs])
    of_attack = {name: [] for name in (CLEAN, *(attack.name for attack in attacks))}
    for at, trial in enumerate(trials):
        of_attack[trial.record.source].append(at)
    clean = scores[of_attack[CLEAN]]  # one for every pair, in their order
    fooled = np.zeros(len(pairs), bool)
    metrics = []
    for attack in attacks:
        if not (rows := of_attack[attack.name]):
            continue
        tried = [trials[at] for at in rows]
        mine = np.array([trial.pair for trial in tried], int)
        one, success = _metrics(attack, tried, scores[rows], clean[mine], cluster[mine], pairs)
        metrics.append(one)
        if attack.kind == "hostile":
            fooled[mine] |= success
    suite = None
    if any(attack.kind == "hostile" for attack in attacks):
        right = _winner(clean) > 0
        share, interval = _share(fooled[right], cluster[right]) if right.any() else (None, None)
        suite = SuiteSuccess(n=int(right.sum()), share=share, interval=interval)
    return {
        "clean": _clean_metrics(clean, cluster),
        "any_hostile": suite,
        "attacks": metrics,
        "without_pairs": [attack.name for attack in attacks if not of_attack[attack.name]],
    }


def _share(hits: np.ndarray, cluster: np.ndarray) -> tuple[float, Interval]:
    return float(hits.mean()), clustered_interval(hits, cluster)


def _clean_metrics(clean: np.ndarray, cluster: np.ndarray) -> CleanMetrics:
    first, second = _by_order(clean)
    accuracy, interval = _share(_winner(clean) > 0, cluster)
    flip_rate, flip_interval = _share(_winner(clean) < 0, cluster)
    order_flip_rate, order_flip_interval = _share(first != second, cluster)
    return CleanMetrics(
        accuracy=accuracy,
        interval=interval,
        flip_rate=flip_rate,
        flip_interval=flip_interval,
        order_flip_rate=order_flip_rate,
        order_flip_interval=order_flip_interval,
    )


def _trials(
    pairs: Sequence[Comparison], attacks: Sequence[Attack], judge: JudgeSpec, seed: int
) -> Iterator[Trial]:
    """Every pair unchanged, then with each attack that changes it and leaves two different responses."""
    for at, pair in enumerate(pairs):
        yield Trial(at, _changed(pair, CLEAN, pair.chosen, pair.rejected))
        for attack in attacks:
            better = attack.kind == "harmless" and bool(
                stable_hash(seed, pair.id, attack.name, "side") % 2
            )
            before, other = (pair.chosen, pair.rejected) if better else (pair.rejected, pair.chosen)
            text = attacked_text(attack, pair, before, judge, seed=seed)
            if text not in (before, other):
                texts = (text, other) if better else (other, text)
                yield Trial(at, _changed(pair, attack.name, *texts), better)


def _changed(pair: Comparison, attack: str, chosen: str, rejected: str) -> Comparison:
    return Comparison(pair.prompt, chosen, rejected, 0, id=f"{pair.id}/{attack}", source=attack)


def _winner(scores: np.ndarray) -> np.ndarray:
    """[n]: 1 if the chosen response wins over both orders, -1 if the rejected one wins, 0 for a tie."""
    return side(scores[:, 0])


def _by_order(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_winner` if the rejected response is shown first, and if it is shown second."""
    return side(scores[:, 0] - scores[:, 1] / 2), side(scores[:, 0] + scores[:, 1] / 2)


def _metrics(
    attack: Attack,
    tried: Sequence[Trial],
    scores: np.ndarray,
    clean: np.ndarray,
    cluster: np.ndarray,
    pairs: Sequence[Comparison],
) -> tuple[AttackMetrics, np.ndarray]:
    """The metrics of an attack on n pairs, and on which of them it succeeds, bool [n].

    scores, clean: f64 [n, 3], from read_scores, with the attack and without it. cluster: i [n]. pairs: all of them.
    """
    turned = shown_first = shown_second = None
    if attack.kind == "hostile":
        success, baseline = _winner(scores) < 0, _winner(clean) < 0
        right = success[_winner(clean) > 0]
        turned = float(right.mean()) if len(right) else None
        shown_first, shown_second = (
            OrderMetrics(success=float((attacked < 0).mean()), baseline=float((plain < 0).mean()))
            for attacked, plain in zip(_by_order(scores), _by_order(clean), strict=True)
        )
    else:
        first, second = _by_order(clean)
        success, baseline = _winner(scores) != _winner(clean), first != second
    share, interval = _share(success, cluster)
    metrics = AttackMetrics(
        name=attack.name,
        kind=attack.kind,
        description=attack.description,
        n=len(tried),
        success=share,
        interval=interval,
        baseline=float(baseline.mean()),
        shortened=float(scores[:, 2].mean()),
        turned=turned,
        shown_first=shown_first,
        shown_second=shown_second,
        example=_example(attack, tried, success, scores[:, 0], clean[:, 0], pairs),
    )
    return metrics, success


def _example(
    attack: Attack,
    tried: Sequence[Trial],
    success: np.ndarray,
    p: np.ndarray,
    p_clean: np.ndarray,
    pairs: Sequence[Comparison],
) -> AttackExample | None:
    """The most confident success of a hostile attack, or the largest change by a harmless one; p, p_clean: [n]."""
    if not success.any():
        return None
    hostile = attack.kind == "hostile"
    strength = 1 - p if hostile else np.abs(p - p_clean)
    at = int(np.argmax(np.where(success, strength, -1.0)))
    trial, pair = tried[at], pairs[tried[at].pair]
    now, before = (float(x[at] if trial.chosen else 1 - x[at]) for x in (p, p_clean))
    return AttackExample(
        prompt=render_turns(turns_of(pair.prompt)),
        honest=pair.chosen if hostile or trial.chosen else pair.rejected,
        attack=trial.text,
        probability=now,
        before=before,
    )
