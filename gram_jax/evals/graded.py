"""Metrics of a judge that selects from several graded responses: best-of-n sets and RewardBench 2."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.special import comb
from scipy.stats import kendalltau

from gram_jax.data.records import Candidates, Comparison
from gram_jax.errors import DataError
from gram_jax.evals.benchmarks import OWN, figure
from gram_jax.evals.intervals import BootstrapTable, Metric, factorize, mean_of, subsets_of
from gram_jax.evals.results import BenchmarkFigure, BenchmarkTable, GradeAgreement
from gram_jax.scoring.pair import PairScore, combine_orders

TIES = "Ties"  # subset of RewardBench 2 with several right responses and its own score


@dataclass(frozen=True)
class RankedCandidates:
    """Graded responses to a prompt and the judge's ranking of them.

    strengths: f32 [n], log-odds relative to the average; logit_diffs: f32 [n, n], i shown first and j second.
    """

    record: Candidates
    strengths: np.ndarray
    logit_diffs: np.ndarray
    shortened: bool

    @property
    def grades(self) -> np.ndarray:
        """f64 [n]."""
        return np.array(self.record.grades)

    @property
    def picked(self) -> np.ndarray:
        """bool [n]: the strongest response; several if strengths are equal, as those of equal texts."""
        return self.strengths == self.strengths.max()


class RankedFigures(NamedTuple):
    """The metrics of a ranking benchmark; table: the scores of its subsets."""

    official: list[BenchmarkFigure]
    table: BootstrapTable
    tables: list[BenchmarkTable]


def check_graded(records: Sequence[Candidates]) -> None:
    """Raises DataError if the grades of no prompt differ."""
    if not any(len(set(record.grades or ())) > 1 for record in records):
        raise DataError(
            f"all responses of a prompt have the same grade in each of {len(records)} rows: "
            "the choice cannot be measured"
        )


def check_ties(records: Sequence[Candidates]) -> None:
    """Raises DataError if ids of Ties are malformed or repeated, or if all rows are Ties without a counterpart."""
    names = [_half_of(record) for record in records if record.source == TIES]
    seen = Counter(names)
    if twice := [":".join(name) for name, n in seen.items() if n > 1]:
        raise DataError(
            f"RewardBench 2, Ties: {len(twice)} ids are in more than one row, first {twice[0]}"
        )
    whole = {name for kind, name in names if kind == "ref" and ("tied", name) in seen}
    if len(names) == len(records) and not whole:
        raise DataError("RewardBench 2: no prompt of Ties has both its ref: and its tied: row")


def _half_of(record: Candidates) -> tuple[str, str]:
    """The kind of a row of Ties (ref or tied), and its prompt."""
    found = re.fullmatch(r"(ref|tied):(\w+)(#\w+)?", record.id)  # "#...": a repeated id
    if found is None:
        raise DataError(
            f"RewardBench 2, Ties: id {record.id!r}: expected ref:NUMBER or tied:NUMBER"
        )
    return found.group(1), found.group(2)


def graded_pairs(rankings: Sequence[RankedCandidates]) -> tuple[list[Comparison], list[PairScore]]:
    """All pairs of different responses to one prompt whose first response has the higher grade, and their scores."""
    pairs, scores = [], []
    for ranking in rankings:
        record, grades, diffs = ranking.record, ranking.grades, ranking.logit_diffs
        for (i, one), (j, other) in permutations(enumerate(record.responses), 2):
            if grades[i] > grades[j] and one != other:
                pair = Comparison(record.prompt, one, other, 0, id=record.id, source=record.source)
                pairs.append(pair)
                scores.append(combine_orders(diffs[i, j], diffs[j, i], ranking.shortened))
    return pairs, scores


def pick_scores(rankings: Sequence[RankedCandidates]) -> BootstrapTable:
    """Share of prompts whose pick has the highest grade, over the prompts whose grades differ; tied picks share the
    score.
    """
    decided = [ranking for ranking in rankings if np.ptp(ranking.grades) > 0]
    scores = [(one.grades == one.grades.max())[one.picked].mean() for one in decided]
    return BootstrapTable.of(np.array(scores), _prompts(decided), _subsets(decided))


def best_of_n(rankings: Sequence[RankedCandidates]) -> RankedFigures:
    """The metrics of a best-of-n set.

    The share of the possible gain is (grade of the pick - mean grade) / (best grade - mean grade).
    """
    picks = pick_scores(rankings)
    columns = {
        "pick": [one.grades[one.picked].mean() for one in rankings],
        "random": [one.grades.mean() for one in rankings],
        "best": [one.grades.max() for one in rankings],
    }
    grades = BootstrapTable.of(
        np.concatenate(list(columns.values())),
        np.tile(_prompts(rankings), len(columns)),
        np.repeat(list(columns), len(rankings)),
    )
    pick, random, best = (grades.pooled(name) for name in columns)
    gain = Metric(
        lambda *sums: _gain(*(metric.of(*sums) for metric in (pick, random, best))),
        grades.subsets,
        mean=False,
    )
    decided = int(picks.counts.sum())
    credit = f"over the {decided} prompts whose grades differ; tied picks share the score"
    official = [
        figure(picks, "a best response is picked", picks.pooled(), credit, OWN),
        figure(grades, "grade of the pick", pick, "mean grade of the strongest response", OWN),
        figure(grades, "grade of a random response", random, "mean grade of all", OWN),
        figure(grades, "grade of the best response", best, "mean of the highest grades", OWN),
        figure(
            grades, "share of the possible gain", gain, "(pick - random) / (best - random)", OWN
        ),
    ]
    return RankedFigures(official, picks, [_table_of_k(rankings)])


def _gain(pick: np.ndarray, random: np.ndarray, best: np.ndarray) -> np.ndarray:
    return (pick - random) / np.maximum(best - random, 1e-12)


def _table_of_k(rankings: Sequence[RankedCandidates]) -> BenchmarkTable:
    """Expected grade of the strongest of k responses drawn without replacement from each prompt, in closed form."""
    most = min(len(c.grades) for c in rankings)
    sizes = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < most} | {most})
    rows = []
    for k in sizes:
        picks, bests = [], []
        for ranking in rankings:
            picks.append(expected_of_k(ranking.grades, ranking.strengths, k))
            bests.append(expected_of_k(ranking.grades, ranking.grades, k))
        rows.append([k, float(np.mean(picks)), float(np.mean(bests))])
    columns = ["responses", "grade of the pick", "grade of the best"]
    return BenchmarkTable(title="Best of k", columns=columns, rows=rows)


def expected_of_k(grades: np.ndarray, by: np.ndarray, k: int) -> float:
    """Mean grade of the response with the largest `by` among k of n, over all C(n, k) subsets.

    The response of rank r (from 0) is the largest in C(n - 1 - r, k - 1) subsets. Equal `by` share their mean grade.
    """
    n = len(grades)
    values, at = np.unique(-by, return_inverse=True)
    shared = (np.bincount(at, grades) / np.bincount(at))[at] if len(values) < n else grades
    order = np.argsort(-by, kind="stable")
    weights = comb(n - 1 - np.arange(n), k - 1) / comb(n, k)
    return float(weights @ shared[order])


def reward_bench_2(rankings: Sequence[RankedCandidates]) -> RankedFigures:
    """The metrics of RewardBench 2 (arXiv 2506.01937).

    A prompt scores 1 if its right response is the strongest; responses of equal strength share the score. Ties has its
    own score. The total is the mean of the subsets in the data.
    """
    plain = [one for one in rankings if one.record.source != TIES]
    tied, alone = _ties([one for one in rankings if one.record.source == TIES])
    table = BootstrapTable.of(
        np.array([one.grades[one.picked].mean() for one in plain] + [x for _, x in tied]),
        factorize([one.record.prompt for one in plain] + [name for name, _ in tied]),
        _subsets(plain) + [TIES] * len(tied),
    )
    each = {name: table.pooled(name) for name in table.subsets}
    total = mean_of(list(each.values()))
    official = [figure(table, "RewardBench 2", total, f"the mean of {', '.join(each)}")]
    for name, metric in each.items():
        right = "the right response is the strongest of all"
        official.append(figure(table, name, metric, _TIES_DEFINITION if name == TIES else right))
    rows: list[list[str | int | float | None]]
    rows = [["prompts of Ties without their other row, left out", alone]]
    left_out = BenchmarkTable(title="RewardBench 2", columns=["", "rows"], rows=rows)
    return RankedFigures(official, table, [left_out] if alone else [])


_TIES_DEFINITION = (
    "0.3 if all right responses are above all wrong ones in the row with one right response, 0.3 if so with several; "
    "0.2 if the margin over the wrong ones exceeds the spread of several right ones, 0.2 if the smaller margin of both "
    "rows does; 0.01 tanh(smaller margin / spread - 1); mean over the prompts that have both rows"
)


def _ties(rankings: Sequence[RankedCandidates]) -> tuple[list[tuple[str, float]], int]:
    """The score of each prompt of Ties, from its two rows, and the number of rows without a counterpart."""
    rows: dict[tuple[str, str], tuple[float, float]] = {}
    for ranking in rankings:
        right, wrong = (ranking.strengths[ranking.grades == grade] for grade in (1, 0))
        apart = float(right.min() - wrong.max())  # margin of right over wrong
        rows[_half_of(ranking.record)] = apart, float(np.ptp(right))
    scores = []
    for (kind, name), (apart, spread) in rows.items():
        if kind == "ref" or ("ref", name) not in rows:
            continue
        reference = rows["ref", name][0]
        closest = min(apart, reference)
        ratio = np.tanh(closest / spread - 1) if spread > 0 else np.sign(closest)  # limit
        score = 0.3 * (apart > 0) + 0.3 * (reference > 0)
        score += 0.2 * (apart > spread) + 0.2 * (closest > spread) + 0.01 * ratio
        scores.append((f"{TIES} {name}", float(score)))
    return scores, len(rows) - 2 * len(scores)


def agreement(rankings: Sequence[RankedCandidates]) -> GradeAgreement | None:
    """Kendall's tau and Pearson's r between strengths and grades, averaged over the prompts whose grades differ."""
    taus, rs = [], []
    for ranking in rankings:
        if np.ptp(ranking.grades) > 0 and np.ptp(ranking.strengths) > 0:
            taus.append(float(cast(Any, kendalltau(ranking.strengths, ranking.grades)).statistic))
            rs.append(float(np.corrcoef(ranking.strengths, ranking.grades)[0, 1]))
    if not taus:
        return None
    return GradeAgreement(n=len(taus), kendall=float(np.mean(taus)), pearson=float(np.mean(rs)))


def _prompts(rankings: Sequence[RankedCandidates]) -> np.ndarray:
    return factorize([ranking.record.prompt for ranking in rankings])


def _subsets(rankings: Sequence[RankedCandidates]) -> list[str]:
    return subsets_of([ranking.record.source for ranking in rankings]).tolist()
