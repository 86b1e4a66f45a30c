"""`gram-jax bon`: best-of-n sampling with a judge, and the reward from a second judge as n grows.

The reward of a response is P(better than the policy's own greedy response), as in the RLHF of the paper. The proxy
judge selects the response. The oracle, a second judge, measures over-optimisation. KL(best of k from the policy) is
log k - (k - 1) / k (Stiennon et al. 2020, appendix G.3; an upper bound, Beirami et al. 2024).
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gram_jax.errors import DataError
from gram_jax.evals.graded import expected_of_k
from gram_jax.evals.intervals import BootstrapTable
from gram_jax.files import write_atomic, write_json
from gram_jax.generation.generator import TextGenerator
from gram_jax.interop.models import model_config
from gram_jax.interop.resolve import pin_step
from gram_jax.judge.messages import Prompt
from gram_jax.model.execution import AskedCompute
from gram_jax.model.generate import SamplingConfig
from gram_jax.plots import check_plots, plot_best_of
from gram_jax.progress import log_time
from gram_jax.rewards.forms import RewardForm, Rewards
from gram_jax.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

SAMPLES, REPORT, PICTURE = "samples.jsonl", "bon.json", "bon.png"


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


def rate(judge: Scorer, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """P(better than the greedy response) of every sample, f64 [prompts, n]."""
    n = len(rows[0]["responses"])
    found = Rewards(judge, RewardForm("reference")).of(
        [prompt for prompt in prompts for _ in range(n)],
        [text for row in rows for text in row["responses"]],
        [[row["greedy"]] for row in rows for _ in range(n)],  # lists: a text may be empty
    )
    return np.array(found).reshape(len(rows), n)


def best_of(proxy: np.ndarray, oracle: np.ndarray | None) -> list[dict[str, Any]]:
    """Mean reward of the response that the proxy selects among k of n samples, for k = 1, 2, 4, ..., n.

    The mean over all subsets of k samples is exact. proxy, oracle: f [prompts, n]. Both have the mean reward and its
    change from k = 1. Intervals are 95 %, over prompts. The interval of a change is paired by prompt and narrower.
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
                row[name]["change"] = _over_prompts(means - first[name])
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
) -> dict[str, Any]:
    """Sample n responses to each prompt, score them, and write samples, metrics and a plot to a folder.

    Existing samples are reused. Raises DataError for fewer than two responses or prompts, and if the folder has samples
    of other prompts or settings.
    """
    if n < 2 or len(prompts) < 2:
        raise DataError(f"n = {n} on {len(prompts)} prompts: expected at least 2 of each")
    settings = {
        "policy": pin_step(policy),  # later steps of a run are a different policy
        "prompts": len(prompts),
        "n": n,
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }
    for name in filter(None, (judge, oracle)):
        model_config(name)  # raises before generation starts
    check_plots()
    rows = _kept(out / SAMPLES, settings, prompts)
    if rows is None:
        generator = TextGenerator.load(policy, compute_dtype=compute_dtype)
        rows = write_samples(generator, prompts, sampling, n=n)
        del generator
        lines = [json.dumps({"settings": settings}), *map(json.dumps, rows)]
        write_atomic(out / SAMPLES, (line + "\n" for line in lines), error=DataError)
    rated: dict[str, np.ndarray] = {}
    for role, name in (("proxy", judge), ("oracle", oracle)):
        if name is not None:
            with log_time(logger, f"rate with the {role}"):
                rated[role] = rate(Scorer.load(name, compute_dtype=compute_dtype), prompts, rows)
    table = best_of(rated["proxy"], rated.get("oracle"))
    report = {
        "format": 1,
        "settings": settings,
        "judge": judge,
        "oracle": oracle,
        "best_of": table,
        "rewards": {role: values.tolist() for role, values in rated.items()},
    }
    write_json(out / REPORT, report, error=DataError)
    plot_best_of(table, out / PICTURE, title=f"best of n from {policy}")
    return report


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


def _kept(
    path: Path, settings: dict[str, Any], prompts: Sequence[Prompt]
) -> list[dict[str, Any]] | None:
    """Samples of an earlier run with these settings and prompts; None if there are none."""
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8") as lines:  # str.splitlines would also split at U+2028
            first, *rows = map(json.loads, lines)
        found = first["settings"], [row["prompt"] for row in rows]
    except (ValueError, KeyError, TypeError) as error:
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
