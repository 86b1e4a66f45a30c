"""All metrics of a judge on one source."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy.stats import kendalltau, pearsonr

from gram_jax.data.records import Comparison, contents_of
from gram_jax.errors import DataError
from gram_jax.evals import benchmarks, graded
from gram_jax.evals.calibration import (
    accuracy_over_coverage,
    held_out_temperature,
    negative_log_likelihood,
    reliability,
)
from gram_jax.evals.cycles import cycle_rate, pair_tables
from gram_jax.evals.datasets import EvalDataset
from gram_jax.evals.intervals import BootstrapTable
from gram_jax.evals.lengths import controlled_accuracy, length_bins
from gram_jax.evals.paired import outcomes
from gram_jax.evals.pairwise import PairVerdicts, report_pairs, verdicts_on
from gram_jax.evals.results import (
    Calibration,
    GradeAgreement,
    Histogram,
    LengthBias,
    Mistake,
    SourceResult,
    SubsetAccuracy,
)
from gram_jax.evals.scores import OutputSink, rank_graded, score_pairs
from gram_jax.judge.messages import render_turns, turns_of
from gram_jax.scoring.text_scorer import TextScorer

WORST = 20
POSITION_EDGES = np.linspace(-1, 1, 21)


def measure(
    scorer: TextScorer, model: str, data: EvalDataset, sink: OutputSink
) -> tuple[SourceResult, PairVerdicts]:
    """Score a data set; returns its metrics and the verdicts on its pairs."""
    if data.ranks:
        rankings = rank_graded(scorer, model, data.source, data.records, sink)
        pairs, scores = graded.graded_pairs(rankings)
        if not pairs:
            raise DataError(
                f"{data.source}: no two different responses of a prompt differ in grade"
            )
        verdicts = verdicts_on(pairs, scores)
        rewardbench2 = data.benchmark == "rewardbench2"
        figures = (graded.reward_bench_2 if rewardbench2 else graded.best_of_n)(rankings)
        found = _result(
            data,
            pairs,
            verdicts,
            outcomes=None,
            official=figures.official,
            subsets=_subsets(figures.table),
            tables=figures.tables,
            grades=graded.agreement(rankings),
            cycles=cycle_rate((r.logit_diffs - r.logit_diffs.T) / 2 for r in rankings),
        )
        return found, verdicts
    pairs = data.records
    verdicts = verdicts_on(pairs, score_pairs(scorer, model, data.source, pairs, sink))
    table = _table(verdicts, verdicts.correct)
    match data.benchmark:
        case "judgebench":
            votes = _table(verdicts, verdicts.right_by_votes)
            official = benchmarks.judgebench_figures(table, votes)
        case "rewardbench":
            official = benchmarks.reward_bench_figures(table)
        case "rmbench":
            official = benchmarks.rm_bench_figures(table)
        case _:
            official = benchmarks.plain_figures(table)
    domains = np.array([name.partition("|")[0] for name in verdicts.subset])  # of RM-Bench cells
    verdicts = verdicts._replace(subset=domains)
    found = _result(
        data,
        pairs,
        verdicts,
        outcomes=outcomes(pairs, verdicts.correct, verdicts.cluster),
        official=official,
        subsets=_subsets(_table(verdicts, verdicts.correct)),
        tables=benchmarks.rm_bench_tables(table) if data.benchmark == "rmbench" else [],
        grades=_grades(verdicts.margin, [pair.margin for pair in pairs]),
        cycles=cycle_rate(pair_tables(pairs, verdicts.margin)),
    )
    return found, verdicts


def _table(verdicts: PairVerdicts, right: np.ndarray) -> BootstrapTable:
    return BootstrapTable.of(right, verdicts.cluster, verdicts.subset)


def _result(
    data: EvalDataset, pairs: Sequence[Comparison], verdicts: PairVerdicts, **own: Any
) -> SourceResult:
    """own: the fields that depend on the benchmark."""
    counts, edges = np.histogram(verdicts.position_bias, POSITION_EDGES)
    return SourceResult(
        source=data.source,
        contents=contents_of(data.records),
        benchmark=data.benchmark,
        rows=data.read.rows,
        dropped=dict(data.read.dropped),
        pairs=report_pairs(verdicts, skipped_ties=data.skipped_ties),
        calibration=Calibration(
            nll=negative_log_likelihood(verdicts.margin),
            bins=reliability(verdicts.p),
            selective=accuracy_over_coverage(verdicts.p),
            temperature=held_out_temperature(verdicts.margin, verdicts.cluster),
        ),
        length=LengthBias(
            controlled_accuracy=controlled_accuracy(verdicts.correct, verdicts.lengths),
            bins=length_bins(verdicts.correct, verdicts.lengths, verdicts.cluster),
        ),
        positions=Histogram(edges=edges.tolist(), counts=counts.tolist()),
        worst=_worst(pairs, verdicts),
        **own,
    )


def _subsets(table: BootstrapTable) -> list[SubsetAccuracy]:
    return [
        SubsetAccuracy(
            name=name,
            n=int(table.counts[:, at].sum()),
            prompts=table.prompts(name),
            accuracy=table.value(metric),
            interval=table.interval(metric),
        )
        for at, name in enumerate(table.subsets)
        for metric in [table.pooled(name)]
    ]


def _grades(margin: np.ndarray, graded: Sequence[float | None]) -> GradeAgreement | None:
    """Agreement of the judge's log-odds of the chosen response with the preference margins of the source."""
    known = np.array([x is not None for x in graded])
    ours, theirs = margin[known], np.array([x for x in graded if x is not None], float)
    if len(theirs) < 3 or np.ptp(theirs) == 0 or np.ptp(ours) == 0:
        return None
    return GradeAgreement(
        n=len(theirs),
        kendall=float(cast(Any, kendalltau(ours, theirs)).statistic),
        pearson=float(cast(Any, pearsonr(ours, theirs)).statistic),
    )


def _worst(pairs: Sequence[Comparison], verdicts: PairVerdicts) -> list[Mistake]:
    """The mistakes with the highest confidence."""
    wrong = np.flatnonzero(verdicts.p < verdicts.p_rejected)
    order = wrong[np.argsort(verdicts.p[wrong], kind="stable")][:WORST]
    return [
        Mistake(
            id=pairs[at].id,
            prompt=render_turns(turns_of(pairs[at].prompt)),
            chosen=pairs[at].chosen,
            rejected=pairs[at].rejected,
            probability=float(verdicts.p[at]),
            position_bias=float(verdicts.position_bias[at]),
            subset=str(verdicts.subset[at]),
        )
        for at in order.tolist()
    ]
