"""How well a judge picks from several graded responses: best-of-n sets and RewardBench 2."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.special import comb
from scipy.stats import kendalltau

from gram_jax.data.comparison import Candidates
from gram_jax.errors import DataError
from gram_jax.evals.benchmarks import BENCHMARK, OWN, BenchmarkMetric, mean_of, pooled
from gram_jax.evals.intervals import BootstrapTable, factorize, mean_score, subsets_of
from gram_jax.evals.pairwise import PairVerdicts, verdicts_of
from gram_jax.evals.results import BenchmarkFigure, BenchmarkTable, GradeAgreement
from gram_jax.scoring.pair import PairScore, combine_orders

TIES = (
    "Ties"  # the subset of RewardBench 2 with several right responses, which has a score of its own
)


@dataclass(frozen=True)
class RankedCandidates:
    """Graded responses to a prompt and the judge's ranking of them.

    strengths: f32 [n], log-odds against the average; logit_diffs: f32 [n, n], with i shown first and j second.
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
        """bool [n]: the strongest; several if they are equally strong, as equal texts are."""
        return self.strengths == self.strengths.max()


GradedPair = tuple[Candidates, int, int, PairScore]


class RankedFigures(NamedTuple):
    """The figures of a benchmark that ranks; table: the scores of its subsets."""

    official: list[BenchmarkFigure]
    table: BootstrapTable
    tables: list[BenchmarkTable]


def check_graded(records: Sequence[Candidates]) -> None:
    """Raises DataError if the grades of no prompt differ."""
    if not any(len(set(record.grades or ())) > 1 for record in records):
        raise DataError(
            f"all responses of a prompt have the same grade in each of {len(records)} rows: "
            "there is nothing to choose"
        )


def check_ties(records: Sequence[Candidates]) -> None:
    """Raises DataError if the rows of Ties do not have the ids of RewardBench 2, or if none of them is complete."""
    names = [_half_of(record) for record in records if record.source == TIES]
    seen = Counter(names)
    if twice := [":".join(name) for name, n in seen.items() if n > 1]:
        raise DataError(
            f"RewardBench 2, Ties: {len(twice)} ids stand in more than one row, first {twice[0]}"
        )
    whole = {name for kind, name in names if kind == "ref" and ("tied", name) in seen}
    if len(names) == len(records) and not whole:
        raise DataError("RewardBench 2: no prompt of Ties has both its ref: and its tied: row")


def _half_of(record: Candidates) -> tuple[str, str]:
    """Which of the two rows of Ties this is, and of which prompt."""
    found = re.fullmatch(r"(ref|tied):(\w+)(#\w+)?", record.id)  # "#...": an id seen before
    if found is None:
        raise DataError(
            f"RewardBench 2, Ties: id {record.id!r}: expected ref:NUMBER or tied:NUMBER"
        )
    return found.group(1), found.group(2)


def graded_pairs(rankings: Sequence[RankedCandidates]) -> list[GradedPair]:
    """Every pair of one prompt's responses of which one has the higher grade: (record, better, worse, score)."""
    pairs = []
    for ranking in rankings:
        grades, texts = ranking.grades, ranking.record.responses
        for i, j in product(range(len(grades)), repeat=2):
            if grades[i] > grades[j] and texts[i] != texts[j]:
                score = combine_orders(
                    ranking.logit_diffs[i, j], ranking.logit_diffs[j, i], ranking.shortened
                )
                pairs.append((ranking.record, i, j, score))
    return pairs


def graded_verdicts(pairs: Sequence[GradedPair]) -> PairVerdicts:
    """The columns of these pairs."""
    return verdicts_of(
        [score for *_, score in pairs],
        prompts=[record.prompt for record, *_ in pairs],
        lengths=[(len(r.responses[i]), len(r.responses[j])) for r, i, j, _ in pairs],
        subsets=[record.source for record, *_ in pairs],
    )


def pick_scores(
    rankings: Sequence[RankedCandidates],
) -> tuple[BootstrapTable, list[RankedCandidates]]:
    """How often a best response is picked, over the prompts whose grades differ; ties share the score.

    Returns the table and those rankings. Raises DataError if the grades never differ.
    """
    check_graded([ranking.record for ranking in rankings])
    decided = [ranking for ranking in rankings if np.ptp(ranking.grades) > 0]
    scores = [(c.grades == c.grades.max())[c.picked].mean() for c in decided]
    clusters = factorize([c.record.prompt for c in decided])
    return BootstrapTable.of(np.array(scores), clusters, _subsets(decided)), decided


def best_of_n(rankings: Sequence[RankedCandidates]) -> RankedFigures:
    """The figures of a best-of-n set.

    The grade of the pick stands beside that of a random response and of the best one; the last figure is how much of
    the way from one to the other the judge goes.
    """
    table, decided = pick_scores(rankings)
    clusters = factorize([c.record.prompt for c in rankings])
    columns = {
        "pick": [c.grades[c.picked].mean() for c in rankings],
        "random": [c.grades.mean() for c in rankings],
        "best": [c.grades.max() for c in rankings],
    }
    # Prompts count alike, so the figures are means over rows.
    sums = {
        name: BootstrapTable.of(np.array(values), clusters, [""] * len(rankings))
        for name, values in columns.items()
    }
    whole = BootstrapTable(
        tuple(columns),
        np.concatenate([sums[name].scores for name in columns], 1),
        np.concatenate([sums[name].counts for name in columns], 1),
    )
    pick, random, best = (pooled(whole.subsets, (name,)) for name in columns)
    figures = [
        BenchmarkMetric(
            "grade of the pick", "mean grade of the strongest response", OWN, ("pick",), pick
        ),
        BenchmarkMetric(
            "grade of a random response", "mean grade of all", OWN, ("random",), random
        ),
        BenchmarkMetric(
            "grade of the best response", "what a perfect judge gets", OWN, ("best",), best
        ),
        BenchmarkMetric(
            "share of the possible gain",
            "(pick - random) / (best - random)",
            OWN,
            whole.subsets,
            lambda scores, counts: _gain(*(m(scores, counts) for m in (pick, random, best))),
        ),
    ]
    right = BenchmarkMetric(
        "a best response is picked",
        f"over the {len(decided)} prompts whose grades differ; ties share the credit",
        OWN,
        table.subsets,
        mean_score,
    )
    official = [right.of(table), *(figure.of(whole) for figure in figures)]
    return RankedFigures(official, table, [_table_of_k(rankings)])


def _gain(pick: np.ndarray, random: np.ndarray, best: np.ndarray) -> np.ndarray:
    return (pick - random) / np.maximum(best - random, 1e-12)


def _table_of_k(rankings: Sequence[RankedCandidates]) -> BenchmarkTable:
    """Expected grade of the strongest of k responses drawn from each prompt's own, in closed form."""
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
    """Mean grade of that of k of n which is largest `by`, over all subsets: the r-th largest is taken by C(n-1-r, k-1).

    Equals share their grades: each of them is as likely to be taken.
    """
    n = len(grades)
    values, at = np.unique(-by, return_inverse=True)
    shared = (np.bincount(at, grades) / np.bincount(at))[at] if len(values) < n else grades
    order = np.argsort(-by, kind="stable")
    weights = comb(n - 1 - np.arange(n), k - 1) / comb(n, k)
    return float(weights @ shared[order])


def reward_bench_2(rankings: Sequence[RankedCandidates]) -> RankedFigures:
    """The figures of RewardBench 2 (arXiv 2506.01937).

    A prompt scores 1 if its right response is the strongest, shared with those as strong; Ties has its own score. The
    total is the mean of the subsets that are there.
    """
    check_ties([ranking.record for ranking in rankings])
    plain = [c for c in rankings if c.record.source != TIES]
    tied, alone = _ties([c for c in rankings if c.record.source == TIES])
    scores = [c.grades[c.picked].mean() for c in plain] + [x for _, x in tied]
    prompts = [c.record.prompt for c in plain] + [name for name, _ in tied]
    subsets = _subsets(plain) + [TIES] * len(tied)
    table = BootstrapTable.of(np.array(scores), factorize(prompts), subsets)
    names = table.subsets
    each = [
        BenchmarkMetric(
            name,
            _TIES_DEFINITION if name == TIES else "the right response is the strongest of all",
            BENCHMARK,
            (name,),
            pooled(names, (name,)),
        )
        for name in names
    ]
    total = BenchmarkMetric(
        "RewardBench 2",
        f"the mean of {', '.join(names)}",
        BENCHMARK,
        names,
        mean_of([figure.metric for figure in each]),
    )
    tables = []
    if alone:
        rows: list[list[str | int | float | None]]
        rows = [["prompts of Ties without their other row, left out", alone]]
        tables = [BenchmarkTable(title="RewardBench 2", columns=["", "rows"], rows=rows)]
    return RankedFigures([figure.of(table) for figure in (total, *each)], table, tables)


_TIES_DEFINITION = (
    "0.3 accuracy (all right above all wrong) with one right response, 0.3 with several, 0.2 and 0.2 for right ones "
    "closer to each other than to the wrong ones (there, and in both rows), 0.01 tanh of that ratio - 1; over the "
    "prompts that have both rows"
)


def _ties(rankings: Sequence[RankedCandidates]) -> tuple[list[tuple[str, float]], int]:
    """The score of each prompt of Ties, by its ref: and its tied: row; how many rows have no counterpart."""
    rows: dict[tuple[str, str], tuple[float, float]] = {}
    for ranking in rankings:
        right, wrong = (ranking.strengths[ranking.grades == grade] for grade in (1, 0))
        apart = float(right.min() - wrong.max())  # right ones from wrong ones
        rows[_half_of(ranking.record)] = apart, float(np.ptp(right))
    scores = []
    for (kind, name), (apart, spread) in rows.items():
        if kind == "ref" or ("ref", name) not in rows:
            continue
        reference = rows["ref", name][0]
        closest = min(apart, reference)
        ratio = np.tanh(closest / spread - 1) if spread > 0 else np.sign(closest)  # its limit
        score = 0.3 * (apart > 0) + 0.3 * (reference > 0)
        score += 0.2 * (apart > spread) + 0.2 * (closest > spread) + 0.01 * ratio
        scores.append((f"{TIES} {name}", float(score)))
    return scores, len(rows) - 2 * len(scores)


def agreement(rankings: Sequence[RankedCandidates]) -> GradeAgreement | None:
    """Kendall's tau and Pearson's r between strengths and grades, means over the prompts whose grades differ."""
    taus, rs = [], []
    for ranking in rankings:
        if np.ptp(ranking.grades) > 0 and np.ptp(ranking.strengths) > 0:
            taus.append(float(cast(Any, kendalltau(ranking.strengths, ranking.grades)).statistic))
            rs.append(float(np.corrcoef(ranking.strengths, ranking.grades)[0, 1]))
    if not taus:
        return None
    return GradeAgreement(n=len(taus), kendall=float(np.mean(taus)), pearson=float(np.mean(rs)))


def _subsets(rankings: Sequence[RankedCandidates]) -> list[str]:
    return subsets_of([ranking.record.source for ranking in rankings]).tolist()
