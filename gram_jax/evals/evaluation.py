"""`gram-jax evaluate`: a judge on benchmarks and labeled data, as values for evaluation.json.

What each entry of `sources` holds is listed in docs/evaluation.md.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy.stats import kendalltau, pearsonr

from gram_jax.data.comparison import contents_of
from gram_jax.errors import DataError
from gram_jax.evals.calibration import (
    held_out_temperature,
    negative_log_likelihood,
    reliability,
)
from gram_jax.evals.graded import (
    Graded,
    agreement,
    best_of_n,
    graded_pairs,
    graded_verdicts,
    reward_bench_2,
)
from gram_jax.evals.intervals import Tally
from gram_jax.evals.lengths import controlled_accuracy, length_bins
from gram_jax.evals.official import (
    judgebench_figures,
    judgebench_votes,
    plain_figures,
    pooled,
    reward_bench_figures,
    rm_bench_figures,
    rm_bench_tables,
)
from gram_jax.evals.paired import outcomes
from gram_jax.evals.pairwise import Verdicts, report_pairs, verdicts_on
from gram_jax.evals.scores import Target, rank_graded, score_pairs
from gram_jax.evals.workload import Benchmark, Workload
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer

WORST = 20
GAP_EDGES = np.linspace(-1, 1, 21)


def evaluate_workload(
    scorer: Scorer | ScalarRewardModel, model: str, work: Workload, to: Target
) -> tuple[dict[str, Any], Verdicts]:
    """Everything measured on one source, as evaluation.json holds it, and the verdicts themselves."""
    if work.ranks:
        contests = rank_graded(scorer, model, work.source, work.records, to)
        return _of_contests(work, contests)
    scores = score_pairs(scorer, model, work.source, work.records, to)
    verdicts = verdicts_on(work.records, scores)
    tally = Tally.of(verdicts.correct, verdicts.cluster, verdicts.subset)
    official = _official(work.benchmark, verdicts, tally)
    margins = [record.margin for record in work.records]
    shown = np.array([name.partition("|")[0] for name in verdicts.subset])  # RM-Bench's domains
    verdicts = verdicts._replace(subset=shown)
    found = _measured(work, verdicts) | {
        "outcomes": outcomes(work.records, verdicts.correct, verdicts.cluster),
        "official": official,
        "subsets": _subsets(Tally.of(verdicts.correct, verdicts.cluster, shown)),
        "tables": rm_bench_tables(tally) if work.benchmark == "rmbench" else [],
        "grades": _grades(verdicts.margin, margins),
        "worst": _worst([(r.id, r.prompt, r.chosen, r.rejected) for r in work.records], verdicts),
    }
    return found, verdicts


def _official(benchmark: Benchmark, verdicts: Verdicts, tally: Tally) -> list[dict[str, Any]]:
    figures = {
        "judgebench": judgebench_figures,
        "rewardbench": reward_bench_figures,
        "rmbench": rm_bench_figures,
        "pairs": plain_figures,
    }[benchmark]
    found = [figure.of(tally) for figure in figures(tally.subsets)]
    if benchmark == "judgebench":
        votes = Tally.of(verdicts.right_by_votes, verdicts.cluster, verdicts.subset)
        found.insert(1, judgebench_votes(votes.subsets).of(votes))
    return found


def _of_contests(work: Workload, contests: list[Graded]) -> tuple[dict[str, Any], Verdicts]:
    chosen = reward_bench_2 if work.benchmark == "rewardbench2" else best_of_n
    found = chosen(contests)
    pairs = graded_pairs(contests)
    if not pairs:
        raise DataError(f"{work.source}: no two different responses of a prompt differ in grade")
    verdicts = graded_verdicts(pairs)
    texts = [(r.id, r.prompt, r.responses[i], r.responses[j]) for r, i, j, _ in pairs]
    return _measured(work, verdicts) | {
        "outcomes": None,
        "official": found["official"],
        "subsets": _subsets(found["tally"]),
        "tables": found["tables"],
        "grades": agreement(contests),
        "worst": _worst(texts, verdicts),
    }, verdicts


def _measured(work: Workload, verdicts: Verdicts) -> dict[str, Any]:
    """What every evaluation has, whatever the benchmark."""
    report = report_pairs(verdicts, skipped_ties=work.skipped_ties)
    counts, edges = np.histogram(verdicts.position_bias, GAP_EDGES)
    return {
        "source": work.source,
        "contents": contents_of(work.records),
        "benchmark": work.benchmark,
        "rows": work.read.rows,
        "dropped": dict(work.read.dropped),
        "pairs": report.to_dict(),
        "calibration": {
            "ece": report.ece,
            "brier": report.brier,
            "nll": negative_log_likelihood(verdicts.margin),
            "bins": reliability(verdicts.p),
            "temperature": held_out_temperature(verdicts.margin, verdicts.cluster),
        },
        "length": {
            "slope": report.length_slope,
            "controlled_accuracy": controlled_accuracy(verdicts.correct, verdicts.lengths),
            "bins": length_bins(verdicts.correct, verdicts.lengths, verdicts.cluster),
        },
        "position": {
            "bias": report.position_bias,
            "consistency": report.consistency,
            "accuracy_chosen_first": report.accuracy_chosen_first,
            "accuracy_chosen_second": report.accuracy_chosen_second,
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        },
    }


def _subsets(tally: Tally) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "n": int(tally.count[:, at].sum()),
            "prompts": tally.prompts((name,)),
            "accuracy": tally.value(metric),
            "interval": tally.interval(metric, (name,)),
        }
        for at, name in enumerate(tally.subsets)
        for metric in [pooled(tally.subsets, (name,))]
    ]


def _grades(margin: np.ndarray, graded: Sequence[float | None]) -> dict[str, Any] | None:
    """Agreement of the judge's log-odds for the chosen response with by how much people preferred it."""
    known = np.array([x is not None for x in graded])
    ours, theirs = margin[known], np.array([x for x in graded if x is not None], float)
    if len(theirs) < 3 or np.ptp(theirs) == 0 or np.ptp(ours) == 0:
        return None
    return {
        "pairs": len(theirs),
        "kendall": float(cast(Any, kendalltau(ours, theirs)).statistic),
        "pearson": float(cast(Any, pearsonr(ours, theirs)).statistic),
    }


def _worst(texts: Sequence[tuple[str, Any, str, str]], verdicts: Verdicts) -> list[dict[str, Any]]:
    """The mistakes of which the judge was surest."""
    wrong = np.flatnonzero(verdicts.p < verdicts.p_rejected)
    order = wrong[np.argsort(verdicts.p[wrong], kind="stable")][:WORST]
    return [
        {
            "id": name,
            "prompt": _as_text(prompt),
            "chosen": chosen,
            "rejected": rejected,
            "probability": float(verdicts.p[at]),
            "position_bias": float(verdicts.position_bias[at]),
            "subset": str(verdicts.subset[at]),
        }
        for at in order.tolist()
        for name, prompt, chosen, rejected in [texts[at]]
    ]


def _as_text(prompt: Any) -> str:
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)
