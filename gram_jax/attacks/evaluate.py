"""How easily a judge is fooled: the attacks of attacks/suite.py on labeled pairs, beside what it does without them.

FOLDER/attacks.scores.jsonl has a row for every scored comparison, and an interrupted run goes on in it;
FOLDER/attack.json has the figures.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gram_jax.attacks.augment import attacked_text
from gram_jax.attacks.suite import Attack
from gram_jax.console import Console
from gram_jax.data.comparison import Comparison, contents_of
from gram_jax.errors import DataError
from gram_jax.evals.folder import make_folder, settings_of, write_json
from gram_jax.evals.intervals import clustered_interval, number
from gram_jax.evals.pairwise import side
from gram_jax.evals.same_judge import refuse_other_judge
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import render_turns, turns_of
from gram_jax.progress import ProgressBar
from gram_jax.scoring.fingerprint import weights_fingerprint
from gram_jax.scoring.results import RowTask, write_rows
from gram_jax.scoring.rows import NumberedRecord, score_records
from gram_jax.scoring.scorer import Scorer
from gram_jax.version import installed_version

FORMAT = 1
CLEAN = "clean"
REPORT, SCORES = "attack.json", "attacks.scores.jsonl"


class Trial(NamedTuple):
    """One comparison: a pair as it is (attack "clean"), or with one of its responses changed.

    pair: number of the pair; changed: which response is another now.
    """

    pair: int
    attack: str
    changed: Literal["chosen", "rejected"]
    chosen: str
    rejected: str

    @property
    def text(self) -> str:
        """The response that was changed, as it is now."""
        return self.chosen if self.changed == "chosen" else self.rejected


def choose_pairs(
    records: Sequence[Comparison], pairs: int | None, *, seed: int
) -> list[Comparison]:
    """At most so many labeled pairs, drawn by a hash of (seed, id), so that more of them begin with the same ones.

    Raises DataError where no labeled pair is there.
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
    overwrite: bool,
    console: Console,
) -> dict[str, Any]:
    """Score every pair as it is and under every attack, and report; what is in `folder` already is gone on with.

    Returns what attack.json holds (docs/attacks.md says what each figure
    is). Raises DataError where the folder holds the results of something else, or cannot be written.
    """
    make_folder(folder)
    judge, out, settings = scorer.spec, folder / SCORES, settings_of(scorer)
    about = {
        "model": model,
        "judge": judge.hash,
        "fingerprint": weights_fingerprint(scorer.params),
    }
    refuse_other_judge(folder / "evaluation.json", about | {"settings": settings})
    note = {
        "format": FORMAT,
        "source": str(source),
        **about,
        **settings,
        "seed": seed,
        "attacks": [attack.name for attack in attacks],
    }

    def rows(window: list[NumberedRecord], bar: ProgressBar) -> list[dict[str, Any]]:
        scored = score_records(scorer, window, bar)
        return [
            row | {"pair": pairs[at].id, "attack": record.source}
            for row, (at, record) in zip(scored, window, strict=True)
        ]

    trials = list(_trials(pairs, attacks, judge, seed))
    write_rows(
        out,
        note,
        ((trial.pair, _as_record(trial, pairs[trial.pair])) for trial in trials),
        RowTask(rows, lambda record: 1, scorer.window),
        total=len(trials),
        label="attacked",
        unit="comparisons",
        overwrite=overwrite,
        progress=console.progress,
    )
    report = {
        "format": FORMAT,
        "gram_jax": installed_version(),
        **about,
        "settings": settings | {"seed": seed},
        "source": str(source),
        "contents": contents_of(pairs),
        "pairs": len(pairs),
        **report_attacks(pairs, attacks, trials, read_scores(out)),
    }
    write_json(folder / REPORT, report)
    return report


def read_scores(path: Path) -> np.ndarray:
    """f64 [n, 3] of a file of scores: P(chosen) over both orders, position bias, and whether texts were shortened."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return np.array([[r["score_chosen"], r["position_bias"], r["shortened"]] for r in rows], float)


def report_attacks(
    pairs: Sequence[Comparison],
    attacks: Sequence[Attack],
    trials: Sequence[Trial],
    scores: np.ndarray,
) -> dict[str, Any]:
    """The entries "clean", "any_hostile" and "attacks" of attack.json. scores: [trials, 3] as of read_scores.

    without_pairs: the attacks that change nothing in any pair, as a bullet where there are no lines.
    """
    cluster = number([record.prompt for record in pairs])
    of_attack = {name: [] for name in (CLEAN, *(attack.name for attack in attacks))}
    for at, trial in enumerate(trials):
        of_attack[trial.attack].append(at)
    clean = scores[of_attack[CLEAN]]  # one for every pair, in their order
    lost, ways = _winner(clean) < 0, _ways(clean)
    inconsistent = ways[0] != ways[1]
    fooled = np.zeros(len(pairs), bool)
    entries, idle = [], []
    for attack in attacks:
        rows = of_attack[attack.name]
        if not rows:
            idle.append(attack.name)
            continue
        mine = np.array([trials[at].pair for at in rows], int)
        entry, success = _entry(attack, scores[rows], clean[mine], cluster[mine])
        if attack.kind == "hostile":
            fooled[mine] |= success
        surest = _surest(attack, scores[rows], clean[mine], success)
        entry["example"] = None
        if surest is not None:
            trial = trials[rows[surest]]
            shown = scores[rows[surest], 0], clean[trial.pair, 0]
            entry["example"] = _example(attack, trial, pairs[trial.pair], *map(float, shown))
        entries.append(entry)
    right = _winner(clean) > 0
    hostile = any(attack.kind == "hostile" for attack in attacks)
    return {
        "clean": {
            "accuracy": float(right.mean()),
            "interval": clustered_interval(right, cluster),
            "flip_rate": float(lost.mean()),
            "flip_interval": clustered_interval(lost, cluster),
            "order_flip_rate": float(inconsistent.mean()),
            "order_flip_interval": clustered_interval(inconsistent, cluster),
        },
        "any_hostile": _share(fooled[right], cluster[right]) if hostile else None,
        "attacks": entries,
        "without_pairs": idle,
    }


def attack_tables(
    report: dict[str, Any],
) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, columns, rows) of what a person reads of a report."""
    clean, fooled = report["clean"], report["any_hostile"]
    shares = [
        ("accuracy", clean["accuracy"], clean["interval"]),
        ("flip rate: the rejected response wins", clean["flip_rate"], clean["flip_interval"]),
        (
            "order flips: the two orders disagree",
            clean["order_flip_rate"],
            clean["order_flip_interval"],
        ),
    ]
    if fooled is not None:
        what = "right pairs that some hostile attack turns"
        shares.append((what, fooled["share"], fooled["interval"]))
    yield (
        f"{report['model']} on {report['pairs']:,} pairs of {report['source']}",
        ("without attacks", "share", "95 %"),
        [(what, _figure(share), _interval(bounds)) for what, share, bounds in shares],
    )
    hostile = [
        (
            entry["name"],
            _figure(entry["success"]),
            _interval(entry["interval"]),
            *map(_figure, (entry["baseline"], entry["turned"])),
            *(_figure(entry[order]["success"]) for order in ("shown_first", "shown_second")),
        )
        for entry in report["attacks"]
        if entry["kind"] == "hostile"
    ]
    if hostile:
        columns = ("attack", "success", "95 %", "flips", "turned", "first", "second")
        yield "hostile: the attacked response wins", columns, hostile
    harmless = [
        (
            entry["name"],
            f"{entry['n']:,}",
            _figure(entry["success"]),
            _interval(entry["interval"]),
            _figure(entry["baseline"]),
        )
        for entry in report["attacks"]
        if entry["kind"] == "harmless"
    ]
    if harmless:
        columns = ("change", "n", "changed", "95 %", "order flips")
        yield "harmless: the verdict changes", columns, harmless


def _trials(
    pairs: Sequence[Comparison], attacks: Sequence[Attack], judge: Any, seed: int
) -> Iterator[Trial]:
    """Every pair as it is, then under each attack that changes something in it and leaves two different responses."""
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
    """[n]: 1 where the chosen response wins over both orders, -1 where the rejected one does, 0 for neither."""
    return side(scores[:, 0])


def _ways(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_winner` where the rejected response was shown first, and where it was shown second."""
    return side(scores[:, 0] - scores[:, 1] / 2), side(scores[:, 0] + scores[:, 1] / 2)


def _entry(
    attack: Attack, scores: np.ndarray, clean: np.ndarray, cluster: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of an attack on n pairs, scored with it and without, and where it succeeded: bool [n]."""
    entry = {"name": attack.name, "kind": attack.kind, "description": attack.description}
    before, now = _winner(clean), _winner(scores)
    if attack.kind == "hostile":
        success, baseline = now < 0, before < 0
        orders = {
            name: {"success": _mean(attacked < 0), "baseline": _mean(plain < 0)}
            for name, attacked, plain in zip(
                ("shown_first", "shown_second"), _ways(scores), _ways(clean), strict=True
            )
        }
        more = {"turned": _mean(success[before > 0]), **orders}
    else:
        first, second = _ways(clean)
        success, baseline, more = now != before, first != second, {}
    share = _share(success, cluster)
    entry |= {"n": share["n"], "success": share["share"], "interval": share["interval"]}
    entry |= {"baseline": _mean(baseline), "shortened": _mean(scores[:, 2]), **more}
    return entry, success


def _surest(
    attack: Attack, scores: np.ndarray, clean: np.ndarray, success: np.ndarray
) -> int | None:
    """Which success is the surest: the clearest win of a hostile attack, the largest move of a harmless one."""
    if not success.any():
        return None
    strength = 1 - scores[:, 0] if attack.kind == "hostile" else np.abs(scores - clean)[:, 0]
    return int(np.argmax(np.where(success, strength, -1.0)))


def _example(
    attack: Attack, trial: Trial, record: Comparison, p: float, p_clean: float
) -> dict[str, Any]:
    """A trial to read. p, p_clean: P(chosen) in the trial and of the pair as it is."""
    flipped = trial.changed == "rejected"
    original = record.rejected if flipped else record.chosen
    return {
        "prompt": render_turns(turns_of(record.prompt)),
        "honest": record.chosen if attack.kind == "hostile" else original,
        "attack": trial.text,
        "probability": 1 - p if flipped else p,
        "before": 1 - p_clean if flipped else p_clean,
    }


def _share(hits: np.ndarray, cluster: np.ndarray) -> dict[str, Any]:
    """How many there are, the share of hits, and its 95 % interval; None where there are none."""
    if not len(hits):
        return {"n": 0, "share": None, "interval": None}
    interval = clustered_interval(hits, np.unique(cluster, return_inverse=True)[1])
    return {"n": len(hits), "share": float(hits.mean()), "interval": interval}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else f"{bounds[0]:.2f}-{bounds[1]:.2f}"
