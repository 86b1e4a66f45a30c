"""Everything that is measured of a judge on one source."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy.stats import kendalltau, pearsonr

from gram_jax.data.comparison import contents_of
from gram_jax.errors import DataError
from gram_jax.evals.benchmarks import (
    judgebench_figures,
    judgebench_votes,
    plain_figures,
    pooled,
    reward_bench_figures,
    rm_bench_figures,
    rm_bench_tables,
)
from gram_jax.evals.calibration import (
    held_out_temperature,
    negative_log_likelihood,
    reliability,
)
from gram_jax.evals.datasets import EvalDataset
from gram_jax.evals.graded import (
    RankedCandidates,
    agreement,
    best_of_n,
    graded_pairs,
    graded_verdicts,
    reward_bench_2,
)
from gram_jax.evals.intervals import BootstrapTable
from gram_jax.evals.lengths import controlled_accuracy, length_bins
from gram_jax.evals.paired import outcomes
from gram_jax.evals.pairwise import PairVerdicts, report_pairs, verdicts_on
from gram_jax.evals.results import (
    BenchmarkFigure,
    BenchmarkName,
    Calibration,
    GradeAgreement,
    Histogram,
    LengthBias,
    Mistake,
    SourceResult,
    SubsetAccuracy,
)
from gram_jax.evals.scores import OutputSink, rank_graded, score_pairs
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer

WORST = 20
POSITION_EDGES = np.linspace(-1, 1, 21)


def measure(
    scorer: Scorer | ScalarRewardModel, model: str, data: EvalDataset, sink: OutputSink
) -> tuple[SourceResult, PairVerdicts]:
    """Score a data set; everything measured on it, and the verdicts on its pairs."""
    if data.ranks:
        return _measure_rankings(data, rank_graded(scorer, model, data.source, data.records, sink))
    scores = score_pairs(scorer, model, data.source, data.records, sink)
    return _measure_pairs(data, verdicts_on(data.records, scores))


def _measure_pairs(data: EvalDataset, verdicts: PairVerdicts) -> tuple[SourceResult, PairVerdicts]:
    table = BootstrapTable.of(verdicts.correct, verdicts.cluster, verdicts.subset)
    official = _official(data.benchmark, verdicts, table)
    margins = [record.margin for record in data.records]
    shown = np.array([name.partition("|")[0] for name in verdicts.subset])  # RM-Bench's domains
    verdicts = verdicts._replace(subset=shown)
    texts = [(r.id, r.prompt, r.chosen, r.rejected) for r in data.records]
    found = SourceResult(
        **_measured(data, verdicts),
        outcomes=outcomes(data.records, verdicts.correct, verdicts.cluster),
        official=official,
        subsets=_subsets(BootstrapTable.of(verdicts.correct, verdicts.cluster, shown)),
        tables=rm_bench_tables(table) if data.benchmark == "rmbench" else [],
        grades=_grades(verdicts.margin, margins),
        worst=_worst(texts, verdicts),
    )
    return found, verdicts


def _measure_rankings(
    data: EvalDataset, rankings: list[RankedCandidates]
) -> tuple[SourceResult, PairVerdicts]:
    figures = (reward_bench_2 if data.benchmark == "rewardbench2" else best_of_n)(rankings)
    pairs = graded_pairs(rankings)
    if not pairs:
        raise DataError(f"{data.source}: no two different responses of a prompt differ in grade")
    verdicts = graded_verdicts(pairs)
    texts = [(r.id, r.prompt, r.responses[i], r.responses[j]) for r, i, j, _ in pairs]
    found = SourceResult(
        **_measured(data, verdicts),
        outcomes=None,
        official=figures.official,
        subsets=_subsets(figures.table),
        tables=figures.tables,
        grades=agreement(rankings),
        worst=_worst(texts, verdicts),
    )
    return found, verdicts


def _official(
    benchmark: BenchmarkName, verdicts: PairVerdicts, table: BootstrapTable
) -> list[BenchmarkFigure]:
    metrics = {
        "judgebench": judgebench_figures,
        "rewardbench": reward_bench_figures,
        "rmbench": rm_bench_figures,
        "pairs": plain_figures,
    }[benchmark]
    found = [metric.of(table) for metric in metrics(table.subsets)]
    if benchmark == "judgebench":
        votes = BootstrapTable.of(verdicts.right_by_votes, verdicts.cluster, verdicts.subset)
        found.insert(1, judgebench_votes(votes.subsets).of(votes))
    return found


def _measured(data: EvalDataset, verdicts: PairVerdicts) -> dict[str, Any]:
    """The fields of SourceResult that do not depend on the benchmark."""
    counts, edges = np.histogram(verdicts.position_bias, POSITION_EDGES)
    return {
        "source": data.source,
        "contents": contents_of(data.records),
        "benchmark": data.benchmark,
        "rows": data.read.rows,
        "dropped": dict(data.read.dropped),
        "pairs": report_pairs(verdicts, skipped_ties=data.skipped_ties),
        "calibration": Calibration(
            nll=negative_log_likelihood(verdicts.margin),
            bins=reliability(verdicts.p),
            temperature=held_out_temperature(verdicts.margin, verdicts.cluster),
        ),
        "length": LengthBias(
            controlled_accuracy=controlled_accuracy(verdicts.correct, verdicts.lengths),
            bins=length_bins(verdicts.correct, verdicts.lengths, verdicts.cluster),
        ),
        "positions": Histogram(edges=edges.tolist(), counts=counts.tolist()),
    }


def _subsets(table: BootstrapTable) -> list[SubsetAccuracy]:
    return [
        SubsetAccuracy(
            name=name,
            n=int(table.counts[:, at].sum()),
            prompts=table.prompts((name,)),
            accuracy=table.value(metric),
            interval=table.interval(metric, (name,)),
        )
        for at, name in enumerate(table.subsets)
        for metric in [pooled(table.subsets, (name,))]
    ]


def _grades(margin: np.ndarray, graded: Sequence[float | None]) -> GradeAgreement | None:
    """Agreement of the judge's log-odds for the chosen response with the margins of the source."""
    known = np.array([x is not None for x in graded])
    ours, theirs = margin[known], np.array([x for x in graded if x is not None], float)
    if len(theirs) < 3 or np.ptp(theirs) == 0 or np.ptp(ours) == 0:
        return None
    return GradeAgreement(
        n=len(theirs),
        kendall=float(cast(Any, kendalltau(ours, theirs)).statistic),
        pearson=float(cast(Any, pearsonr(ours, theirs)).statistic),
    )


def _worst(texts: Sequence[tuple[str, Any, str, str]], verdicts: PairVerdicts) -> list[Mistake]:
    """The mistakes of which the judge was surest."""
    wrong = np.flatnonzero(verdicts.p < verdicts.p_rejected)
    order = wrong[np.argsort(verdicts.p[wrong], kind="stable")][:WORST]
    return [
        Mistake(
            id=name,
            prompt=_as_text(prompt),
            chosen=chosen,
            rejected=rejected,
            probability=float(verdicts.p[at]),
            position_bias=float(verdicts.position_bias[at]),
            subset=str(verdicts.subset[at]),
        )
        for at in order.tolist()
        for name, prompt, chosen, rejected in [texts[at]]
    ]


def _as_text(prompt: Any) -> str:
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)
