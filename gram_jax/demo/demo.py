"""`gram-jax demo`: train a judge from an instruction-tuned language model and export it.

Both recipes, the judge's template and the data are in demo/assets; tools/demo_data.py makes the data. The number of
steps is fixed, so the work is the same on every machine. Run again in the same folder, the demo resumes.
"""

import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from gram_jax.data.reading import read_records
from gram_jax.data.records import Comparison
from gram_jax.demo.compute import demo_compute
from gram_jax.demo.transformers_check import compare_with_transformers
from gram_jax.errors import StoppedError
from gram_jax.evals.pairwise import evaluate_pairs
from gram_jax.evals.results import PairMetrics
from gram_jax.formatting import format_seconds
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_tokenizer
from gram_jax.interop.resolve import resolve_model
from gram_jax.plots import check_plots, plot_before_after
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.recipes.reading import read_recipe
from gram_jax.recipes.tables import Recipe
from gram_jax.run.lifecycle import RunResult
from gram_jax.run.metrics import read_metrics
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement
from gram_jax.training.loop import train
from gram_jax.training.stages import judge_spec

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
PREFERENCES, HELDOUT, UNLABELED = (
    ASSETS / f"demo_{name}.jsonl.gz" for name in ("preferences", "heldout", "unlabeled")
)
# The same steps on a tiny random model with a byte-like tokenizer: longer rows, fewer steps and pairs.
FAST_PAIRS = 28
FAST = (
    "run.max_steps=6",
    "batch.max_length=1024",
    "judge.max_length=1024",
    "optimizer.learning_rate=1e-3",
)
CHECKED_PAIRS = 4


@dataclass(frozen=True)
class DemoResult:
    """before, after: on the held-out pairs; judge: the exported folder; plot: the picture.

    difference: largest |log-odds here - in transformers|, None if PyTorch is not installed.
    """

    before: PairMetrics
    after: PairMetrics
    judge: Path
    plot: Path
    difference: float | None
    seconds: float


def run_demo(
    folder: Path, *, fast: bool = False, progress: ProgressFactory = no_progress
) -> DemoResult:
    """Load, evaluate, train stages 1 and 2, evaluate, export: all in `folder`, each step logged.

    fast: use a tiny random model, which learns nothing. Raises CheckpointError if the folder holds something else than
    this demo.
    """
    # Messages of third parties that a first-time reader cannot use.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    check_plots()  # before minutes of training
    start, numbers = time.perf_counter(), itertools.count(1)

    def begin(title: str) -> None:
        logger.info("")
        took = format_seconds(time.perf_counter() - start)
        logger.info(f"{next(numbers)}. {title}  [{took}]")

    model = "tiny-random" if fast else "smollm2-135m"
    placement = make_placement({}, devices=jax.devices()[:1])
    logger.info("gram_jax demo: train a judge of responses from %s.", model)
    if fast:
        logger.info("This is the fast demo on a tiny random model: its figures mean nothing.")
    logger.info("All output is in %s. The same command resumes an interrupted demo.", folder)

    begin("The weights")
    compute_dtype = demo_compute(folder, fast=fast)
    stage1 = _recipe("pretrain", folder / "stage1", model, compute_dtype, fast)
    stage2 = _recipe("finetune", folder / "stage2", str(folder / "stage1"), compute_dtype, fast)
    spec = judge_spec(stage2, load_tokenizer(model))
    load = partial(Scorer.load, placement=placement, spec=spec)
    judge = load(model, compute_dtype=compute_dtype)
    count, origin = sum(x.size for x in jax.tree.leaves(judge.params)), resolve_model(model).path
    logger.info("%s weights from %s", f"{count:,}", origin.name if origin else "a random generator")

    begin("The task")
    heldout = read_records(str(HELDOUT), "preference")[0][: FAST_PAIRS if fast else None]
    examples = {record.source: record for record in reversed(heldout)}  # the first of each kind
    _log_task(heldout, examples)

    begin("Before training")
    before = _evaluate(judge, heldout, progress)
    del judge  # free its memory for the training state

    resume = f"gram-jax demo{' --fast' if fast else ''} --folder {folder}"
    run_stage = partial(train, placement=placement, progress=progress)
    begin("Stage 1: write both responses to a question, no labels")
    _train(stage1, run_stage, resume)
    begin("Stage 2: name the better response, smoothed labels")
    _train(stage2, run_stage, resume)

    begin("After training, on questions that are not in the training data")
    judge = load(folder / "stage2", compute_dtype=compute_dtype)
    after = _evaluate(judge, heldout, progress)
    if compute_dtype != "float32":  # the float32 master weights are exported and compared
        judge = load(folder / "stage2", compute_dtype="float32")

    begin("One pair in both orders")
    _log_scores(judge, examples.get("cut_off", heldout[0]))

    begin("Export for transformers")
    exported = export_hf(
        folder / "judge",
        judge.cfg,
        judge.params,
        dtype=None,
        tokenizer=judge.tokenizer,
        spec=spec,
        overwrite=True,
    )
    logger.info("%s: safetensors, config, tokenizer, chat template and judge.json", exported)
    pairs = [(record.prompt, record.chosen, record.rejected) for record in heldout[:CHECKED_PAIRS]]
    difference = compare_with_transformers(judge, exported, pairs, folder / "check.py")

    begin("Results")
    plot = plot_before_after(
        read_metrics(folder / "stage1" / "metrics.jsonl"),
        read_metrics(folder / "stage2" / "metrics.jsonl"),
        {k: (before.by_source[k][1], after.by_source[k][1]) for k in after.by_source},
        folder / "demo.png",
        title=f"{model}: held-out accuracy {before.accuracy:.2f} -> {after.accuracy:.2f}",
    )
    return DemoResult(before, after, exported, plot, difference, time.perf_counter() - start)


def result_rows(result: DemoResult) -> list[tuple[str, str, str]]:
    """(figure, before, after) of the held-out pairs."""
    before, after = result.before, result.after
    low_high = ["{:.2f} to {:.2f}".format(*report.interval) for report in (before, after)]
    rows = [
        ("accuracy", f"{before.accuracy:.2f}", f"{after.accuracy:.2f}"),
        ("  95 % interval", *low_high),
        ("same verdict both ways", f"{before.consistency:.2f}", f"{after.consistency:.2f}"),
    ]
    return rows + [
        (f"  {kind.replace('_', ' ')} ({n})", f"{before.by_source[kind][1]:.2f}", f"{share:.2f}")
        for kind, (n, share) in after.by_source.items()
    ]


def _recipe(stage: str, folder: Path, start: str, compute_dtype: str, fast: bool) -> Recipe:
    """The shipped recipe of a stage with the paths of this machine."""
    data = UNLABELED if stage == "pretrain" else PREFERENCES
    values = {
        "run.output_dir": str(folder),
        "model.name_or_path": start,
        "judge.template": str(ASSETS / "demo-template.txt"),
        "data.train": [str(data)],
        "execution.compute_dtype": compute_dtype,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return read_recipe(ASSETS / f"demo-{stage}.toml", [*overrides, *(FAST if fast else ())])


def _log_task(heldout: Sequence[Comparison], examples: Mapping[str, Comparison]) -> None:
    labeled = len(read_records(str(PREFERENCES), "preference")[0])
    unlabeled = len(read_records(str(UNLABELED), "pair")[0])
    logger.info(
        f"{labeled} labeled pairs, {unlabeled} without labels, {len(heldout)} held out, with other questions."
    )
    faults = ", ".join(sorted(examples)).replace("_", " ")
    logger.info(f"A pair is a right response and one with one of {len(examples)} faults: {faults}.")
    for kind in ("cut_off", "wrong_fact", "sorting"):
        if (record := examples.get(kind)) is not None:
            logger.info("  %s", record.prompt[0].content)
            logger.info("     better  %s", record.chosen)
            logger.info("     worse   %s", record.rejected)


def _evaluate(
    judge: Scorer, records: Sequence[Comparison], progress: ProgressFactory
) -> PairMetrics:
    with progress(len(records), label="pairs in both orders", unit="pairs") as bar:
        report = evaluate_pairs(judge, records, progress=lambda n: bar.update(n, units=n))
    low, high = report.interval
    logger.info(
        f"accuracy {report.accuracy:.2f} on {report.n} pairs (95 %: {low:.2f} to {high:.2f}; chance is 0.50)."
    )
    logger.info(
        f"P(the response shown first) is {0.5 + report.position_bias / 2:.2f} on average; both orders give the same "
        f"verdict for {100 * report.consistency:.0f} % of the pairs."
    )
    return report


def _train(recipe: Recipe, run_stage: Callable[[Recipe], RunResult], resume: str) -> None:
    try:
        result = run_stage(recipe)
    except StoppedError as stopped:
        raise StoppedError(
            f"the demo was stopped and its work is saved. Resume with: {resume}"
        ) from stopped
    losses = [r["loss"] for r in read_metrics(result.folder / "metrics.jsonl") if "loss" in r]
    part = max(1, len(losses) // 8)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    tokens = result.metrics.get("num_tokens", 0)
    logger.info(f"{result.steps} steps, {tokens:,.0f} tokens: loss {first:.3f} -> {last:.3f}")


def _log_scores(judge: Scorer, record: Comparison) -> None:
    score = judge.score(record.prompt, record.chosen, record.rejected)
    half = score.position_bias / 2
    logger.info("request   %s", record.prompt[0].content)
    logger.info("right     %s", record.chosen)
    logger.info("wrong     %s", record.rejected)
    logger.info(
        f"P(the right one is better): {score.first + half:.3f} shown first, {score.first - half:.3f} shown second; the "
        f"score is their mean, {score.first:.3f}."
    )
