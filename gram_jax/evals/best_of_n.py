"""`gram-jax bon`: best-of-n sampling with a judge, and the reward from a second judge as n grows.

The reward of a response is P(better than the policy's own greedy response), as in the RLHF of the paper. The proxy
judge selects the response. The oracle, a second judge, measures over-optimisation. KL(best of k from the policy) is
log k - (k - 1) / k (Stiennon et al. 2020, appendix G.3; an upper bound, Beirami et al. 2024).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.data.records import Candidates, content_id
from gram_jax.errors import DataError
from gram_jax.evals.evaluate import open_folder
from gram_jax.evals.graded import expected_of_k
from gram_jax.evals.intervals import BootstrapTable
from gram_jax.evals.paired import paired_gain
from gram_jax.files import write_atomic, write_json
from gram_jax.generation.generator import TextGenerator
from gram_jax.interop.models import model_config
from gram_jax.interop.resolve import pin_step
from gram_jax.judge.messages import Prompt
from gram_jax.model.execution import AskedCompute
from gram_jax.model.generate import SamplingConfig
from gram_jax.plots import check_plots, plot_best_of
from gram_jax.progress import ProgressBar, ProgressFactory, log_time, no_progress
from gram_jax.rewards.forms import EVEN
from gram_jax.scoring.files import WINDOWS
from gram_jax.scoring.parts import write_results
from gram_jax.scoring.results import (
    OutputSink,
    RowTask,
    Shard,
    WriteSummary,
    decode_row,
    encode_row,
    hold_shard,
    list_source,
    read_rows,
)
from gram_jax.scoring.rows import NumberedRecord, computed_by, judge_identity, row_start
from gram_jax.scoring.scalar import Judge, load_judge

logger = logging.getLogger(__name__)

SAMPLES, REPORT, PICTURE = "samples.jsonl", "bon.json", "bon.png"
SCORES = ".scores.jsonl"  # after the role of a judge


def divergence(k: int) -> float:
    """KL divergence of the best-of-k policy from the policy, in nats.

    >>> round(divergence(4), 3)
    0.636
    """
    return math.log(k) - (k - 1) / k


def write_samples(
    generator: TextGenerator,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    *,
    n: int,
) -> list[dict[str, Any]]:
    """Generate the greedy response and n sampled responses to each prompt."""
    with log_time(logger, "generate the greedy responses"):
        tokens = generator.encode_all(prompts, sampling.max_new_tokens)
        greedy = generator.generate_from_tokens(tokens, replace(sampling, temperature=0)).texts
    with log_time(logger, f"generate {n} responses to each of {len(prompts)} prompts"):
        repeated = [ids for ids in tokens for _ in range(n)]
        drawn = generator.generate_from_tokens(repeated, sampling).texts
    return [
        {
            "prompt": _turns(prompt),
            "greedy": greedy[at],
            "responses": drawn[n * at : n * (at + 1)],
        }
        for at, prompt in enumerate(prompts)
    ]


def rate(
    judge: Judge,
    model: str,
    prompts: Sequence[Prompt],
    rows: Sequence[dict[str, Any]],
    sink: OutputSink,
) -> WriteSummary:
    """Write P(better than the greedy response) of every sample, a row for each prompt, or those of a shard."""

    def rated(window: list[NumberedRecord], bar: ProgressBar) -> list[dict[str, Any]]:
        triples = [
            (record.prompt, text, record.responses[0])
            for _, record in window
            for text in record.responses[1:]
        ]
        # Equal texts are even without a comparison.
        scores = iter(judge.stream(triple for triple in triples if triple[1] != triple[2]))
        found = []
        for number, record in window:
            greedy, *drawn = record.responses
            own = [next(scores) if text != greedy else EVEN for text in drawn]
            bar.update(1, units=1)
            found.append(
                row_start(number, record)
                | {"rewards": [x.first for x in own], "shortened": any(x.shortened for x in own)}
            )
        return found

    records = [
        Candidates(prompt, (row["greedy"], *row["responses"]), id=content_id(prompt))
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    return write_results(
        sink,
        {"format": 1, "source": SAMPLES, "kind": "best of n"} | judge_identity(judge, model),
        list_source(list(enumerate(records, 1))),
        RowTask(
            rated, lambda record: len(record.responses), WINDOWS * judge.window, "rated", "prompts"
        ),
        partial(computed_by, judge),
    )


def best_of(proxy: np.ndarray, oracle: np.ndarray | None) -> list[dict[str, Any]]:
    """Mean reward of the response that the proxy selects among k of n samples, for k = 1, 2, 4, ..., n.

    The mean over all subsets of k samples is exact. proxy, oracle: f [prompts, n], from 0 to 1. Both have the mean
    reward and its change from k = 1. Intervals are 95 %, over prompts. The interval of a change is paired by prompt and
    narrower.
    """
    n = proxy.shape[1]
    rows = []
    first: dict[str, np.ndarray] = {}
    for k in sorted({1 << power for power in range(n.bit_length()) if 1 << power <= n} | {n}):
        row: dict[str, Any] = {"k": k, "kl": divergence(k)}
        for name, values in (("proxy", proxy), ("oracle", oracle)):
            if values is None:
                continue
            means = np.array(
                [expected_of_k(graded, by, k) for graded, by in zip(values, proxy, strict=True)]
            )
            row[name] = _over_prompts(means)
            if k > 1:
                change, interval = paired_gain(first[name], means, np.arange(len(means)))
                row[name]["change"] = {"mean": change, "interval": interval}
            else:
                first[name] = means
        rows.append(row)
    return rows


def _over_prompts(values: np.ndarray) -> dict[str, Any]:
    prompts = len(values)
    table = BootstrapTable.of(values, np.arange(prompts), [""] * prompts)
    mean = table.value()
    return {"mean": mean, "interval": table.interval() or (mean, mean)}


def run_best_of_n(
    policy: str,
    judge: str,
    prompts: Sequence[Prompt],
    out: Path,
    sampling: SamplingConfig,
    *,
    n: int,
    oracle: str | None = None,
    compute_dtype: AskedCompute = "auto",
    progress: ProgressFactory = no_progress,
) -> dict[str, Any]:
    """Sample n responses to each prompt, score them, and write samples, scores, metrics and a plot to a folder.

    Existing samples and scores are used. Raises DataError for fewer than two responses or prompts, and if the folder
    has those of other prompts, settings or judges, or is written by another process.
    """
    check_plots()
    with open_folder(out):
        rows = draw_samples(
            policy, prompts, out, sampling, n=n, judges=(judge, oracle), compute_dtype=compute_dtype
        )
        rated: dict[str, np.ndarray] = {}
        for role, name in judges_of(judge, oracle).items():
            with log_time(logger, f"rate with the {role}"):
                file = out / f"{role}{SCORES}"
                scorer = load_judge(name, compute_dtype=compute_dtype)
                rate(scorer, name, prompts, rows, OutputSink(file, progress=progress))
                rated[role] = np.array([row["rewards"] for row in read_rows(file)])
        table = best_of(rated["proxy"], rated.get("oracle"))
        report = {
            "format": 1,
            "settings": _settings(policy, prompts, sampling, n),
            "judge": judge,
            "oracle": oracle,
            "best_of": table,
            "rewards": {role: values.tolist() for role, values in rated.items()},
        }
        write_json(out / REPORT, report, error=DataError)
        plot_best_of(table, out / PICTURE, title=f"best of n from {policy}")
        return report


def draw_samples(
    policy: str,
    prompts: Sequence[Prompt],
    out: Path,
    sampling: SamplingConfig,
    *,
    n: int,
    judges: Sequence[str | None],
    compute_dtype: AskedCompute = "auto",
) -> list[dict[str, Any]]:
    """The samples in the folder, or new ones, which are written to it. judges: checked before generation starts.

    Raises DataError as `run_best_of_n`.
    """
    if n < 2 or len(prompts) < 2:
        raise DataError(f"n = {n} on {len(prompts)} prompts: expected at least 2 of each")
    for name in filter(None, judges):
        model_config(name)
    settings = _settings(policy, prompts, sampling, n)
    rows = read_samples(out, settings, prompts)
    if rows is None:
        generator = TextGenerator.load(policy, compute_dtype=compute_dtype)
        rows = write_samples(generator, prompts, sampling, n=n)
        lines = map(encode_row, [{"settings": settings}, *rows])
        write_atomic(out / SAMPLES, lines, error=DataError)
    return rows


def rate_shard(
    policy: str,
    judge: str,
    prompts: Sequence[Prompt],
    out: Path,
    sampling: SamplingConfig,
    shard: Shard,
    *,
    n: int,
    oracle: str | None = None,
    compute_dtype: AskedCompute = "auto",
    progress: ProgressFactory = no_progress,
) -> list[WriteSummary]:
    """Write a shard of the scores of each judge; `gram-jax merge` joins them, and then `run_best_of_n` finds them.

    Raises DataError if there are no samples: one process draws them before.
    """
    with hold_shard(out, shard):
        rows = read_samples(out, _settings(policy, prompts, sampling, n), prompts)
        if rows is None:
            raise DataError(
                f"{out / SAMPLES} does not exist: draw the samples before, with --samples-only"
            )
        return [
            rate(
                load_judge(name, compute_dtype=compute_dtype),
                name,
                prompts,
                rows,
                OutputSink(out / f"{role}{SCORES}", progress=progress, shard=shard),
            )
            for role, name in judges_of(judge, oracle).items()
        ]


def judges_of(judge: str, oracle: str | None) -> dict[str, str]:
    """The judges by their role."""
    return {"proxy": judge} | ({} if oracle is None else {"oracle": oracle})


def _settings(
    policy: str, prompts: Sequence[Prompt], sampling: SamplingConfig, n: int
) -> dict[str, Any]:
    return {
        "policy": pin_step(policy),  # later steps of a run are a different policy
        "prompts": len(prompts),
        "n": n,
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }


COLUMNS = ("n", "KL", "judge that picks", "oracle", "oracle less n = 1")


def best_of_n_rows(table: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of the table as text, with the columns of COLUMNS."""

    def cell(found: dict[str, Any] | None, sign: str = "") -> str:
        if found is None:
            return "-"
        low, high = found["interval"]
        return f"{found['mean']:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"

    return [
        (
            str(row["k"]),
            f"{row['kl']:.2f}",
            cell(row.get("proxy")),
            cell(row.get("oracle")),
            cell(row.get("oracle", {}).get("change"), "+"),
        )
        for row in table
    ]


def read_samples(
    out: Path, settings: dict[str, Any], prompts: Sequence[Prompt]
) -> list[dict[str, Any]] | None:
    """Samples of an earlier run with these settings and prompts; None if there are none."""
    path = out / SAMPLES
    if not path.exists():
        return None
    try:
        with path.open("rb") as lines:
            first, *rows = map(decode_row, lines)
        found = first["settings"], [row["prompt"] for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({error}): remove it, or give another folder"
        ) from error
    if found != (settings, [_turns(prompt) for prompt in prompts]):
        raise DataError(
            f"{path} holds samples of other prompts or settings ({first['settings']}): give another folder"
        )
    return rows


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in prompt]
