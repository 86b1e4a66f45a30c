"""`gram-jax demo`: an instruction-tuned language model becomes a judge, from weights to export.

Both recipes, the judge's template and the data ship in demo/assets; tools/demo_data.py makes the data.
The numbers of steps are fixed, so that the demo does the same work on every machine. Run again in
the same folder, it goes on where it was interrupted.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.console import Console
from gram_jax.data.comparison import Comparison
from gram_jax.data.records import Kind, read_records
from gram_jax.errors import CheckpointError, StoppedError
from gram_jax.evals.pairwise import PairwiseReport, evaluate_pairs
from gram_jax.formatting import format_seconds
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.interop.resolve import resolve_model
from gram_jax.judge.encode import encode_comparisons
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.execution import Compute, Execution
from gram_jax.model.matmul import matmul
from gram_jax.plots import plot_before_after
from gram_jax.recipes.reading import read_recipe
from gram_jax.recipes.tables import Recipe
from gram_jax.run.lifecycle import RunResult
from gram_jax.run.metrics import read_metrics
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import Placement, make_placement
from gram_jax.training.loop import train
from gram_jax.training.stages import judge_spec

ASSETS = Path(__file__).parent / "assets"
PREFERENCES, HELDOUT, UNLABELED = (
    ASSETS / f"demo_{name}.jsonl.gz" for name in ("preferences", "heldout", "unlabeled")
)
STATE = "demo.json"

# The same story on a tiny random model with a byte-like tokenizer: longer rows, fewer of everything.
FAST_START, FAST_PAIRS = "tiny-random", 28
FAST = (
    "run.max_steps=6",
    "batch.max_length=1024",
    "judge.max_length=1024",
    "optimizer.learning_rate=1e-3",
)

# How much faster bfloat16 has to be in a bare product before the whole model gains by it.
WORTH_BFLOAT16 = 1.4

# What anyone can run against the exported folder; the demo runs it where PyTorch is installed.
CHECK = '''\
"""Label logits of an exported judge, from PyTorch: python check.py FOLDER < prompts.json"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM

asked = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    for tokens in asked["prompts"]:
        last = model(torch.tensor([tokens])).logits[0, -1]
        print(json.dumps([last[label].item() for label in asked["label_ids"]]))
'''
CHECKED_PAIRS = 4


@dataclass(frozen=True)
class DemoResult:
    """before, after: on the held-out pairs; judge: the exported folder; plot: the picture.

    difference: largest |log-odds here - in transformers|, None where PyTorch is not installed.
    """

    before: PairwiseReport
    after: PairwiseReport
    judge: Path
    plot: Path
    difference: float | None
    seconds: float


class _Story:
    """Numbered headings with the time that has passed."""

    def __init__(self, console: Console):
        self.console, self.number, self.start = console, 0, time.perf_counter()

    def chapter(self, title: str) -> None:
        self.number += 1
        self.console.say()
        self.console.heading(f"{self.number}. {title}  [{format_seconds(self.seconds)}]")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


def run_demo(folder: Path, *, fast: bool = False, console: Console | None = None) -> DemoResult:
    """Tell the whole story in `folder`: weights, accuracy, stage 1, stage 2, accuracy, export.

    fast: on a tiny random model, which learns nothing worth having but takes the same path.
    Raises CheckpointError where the folder holds something else than this demo.
    """
    console = console or Console()
    # Third parties' notes on their own affairs, which a first-time reader cannot use.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    story, say = _Story(console), console.say
    model = FAST_START if fast else "smollm2-135m"
    placement = make_placement({}, devices=jax.devices()[:1])
    say(f"gram_jax demo: {model} becomes a judge of responses.")
    if fast:
        say(
            "This is the fast tour on a tiny random model: the path is real, its figures mean nothing."
        )
    say(f"Everything goes to {folder}. Interrupted? The same command goes on where it stopped.")

    story.chapter("The weights")
    compute = _open(folder, fast, console)
    stage1 = _recipe("pretrain", folder / "stage1", model, compute, fast)
    stage2 = _recipe("finetune", folder / "stage2", str(folder / "stage1"), compute, fast)
    spec = judge_spec(stage2, load_tokenizer(model))
    judge = _judge(model, spec, compute, placement)
    say(f"{sum(x.size for x in jax.tree.leaves(judge.params)):,} weights from {_origin(model)}")

    story.chapter("The task")
    heldout = _held_out(fast)
    _show_task(heldout, console)

    story.chapter("Before training")
    before = _evaluate(judge, heldout, console)
    say(_in_words(before))
    del judge  # its weights make room for the training state

    story.chapter("Stage 1: write both responses to a question, no labels")
    again = f"gram-jax demo{' --fast' if fast else ''} --folder {folder}"
    _train(stage1, placement, console, again)

    story.chapter("Stage 2: name the better response, smoothed labels")
    _train(stage2, placement, console, again)

    story.chapter("After training, on questions that it never saw")
    judge = _judge(folder / "stage2", spec, compute, placement)
    after = _evaluate(judge, heldout, console)
    say(_in_words(after))
    if compute != "float32":  # what is exported and compared is the float32 master
        judge = _judge(folder / "stage2", spec, "float32", placement)

    story.chapter("One pair, shown both ways")
    _show_scores(judge, _telling_pair(heldout), console)

    story.chapter("Export for transformers")
    exported = export_hf(
        folder / "judge",
        judge.cfg,
        judge.params,
        dtype=None,
        tokenizer=judge.tokenizer,
        spec=spec,
        overwrite=True,
    )
    say(f"{exported}: safetensors, config, tokenizer, chat template and judge.json")
    difference = _compare(judge, exported, heldout[:CHECKED_PAIRS], folder, console)

    story.chapter("What came of it")
    plot = plot_before_after(
        read_metrics(folder / "stage1" / "metrics.jsonl"),
        read_metrics(folder / "stage2" / "metrics.jsonl"),
        {k: (before.by_source[k][1], after.by_source[k][1]) for k in after.by_source},
        folder / "demo.png",
        title=f"{model}: held-out accuracy {before.accuracy:.2f} -> {after.accuracy:.2f}",
    )
    _conclude(before, after, plot, exported, story.seconds, console)
    return DemoResult(before, after, exported, plot, difference, story.seconds)


def product_speeds() -> dict[str, float]:
    """GFLOP/s of a product of SmolLM2's own shape in each format, a fraction of a second in all."""
    speeds = {}
    for dtype in ("float32", "bfloat16"):
        x, w = jnp.ones((1, 1024, 576), dtype), jnp.ones((576, 1536), dtype)
        compiled = jax.jit(matmul, static_argnums=2).lower(x, w, 1).compile()
        compiled(x, w).block_until_ready()
        best = min(_seconds(lambda p=compiled, x=x, w=w: p(x, w)) for _ in range(7))
        speeds[dtype] = 2 * 1024 * 576 * 1536 / best / 1e9
    return speeds


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call().block_until_ready()
    return time.perf_counter() - start


def _open(folder: Path, fast: bool, console: Console) -> Compute:
    """The number format of this demo: measured when it begins, remembered when it goes on."""
    path, kind = folder / STATE, "fast" if fast else "full"
    if path.is_file():
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            found, compute = state["kind"], state["compute"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged: delete {folder} to begin the demo anew, or give another --folder"
            ) from error
        if found != kind:
            raise CheckpointError(
                f"{folder} holds a {found} demo, asked for is a {kind} one: give another "
                "--folder, or delete that one"
            )
        console.say(f"going on with the demo in {folder} (delete the folder to begin anew)")
        return compute
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no demo: give another --folder")
    speeds = product_speeds()
    compute: Compute = "float32"
    if not fast and speeds["bfloat16"] > WORTH_BFLOAT16 * speeds["float32"]:
        compute = "bfloat16"
    shown = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    console.say(f"speed of a product here, in GFLOP/s: {shown}. Computing in {compute}.")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": kind, "compute": compute}) + "\n", encoding="utf-8")
    return compute


def _recipe(stage: str, folder: Path, start: str, compute: str, fast: bool) -> Recipe:
    """The shipped recipe of a stage with the paths of this machine."""
    data = UNLABELED if stage == "pretrain" else PREFERENCES
    values = {
        "run.output_dir": str(folder),
        "model.name_or_path": start,
        "judge.template": str(ASSETS / "demo-template.txt"),
        "data.train": [str(data)],
        "execution.compute_dtype": compute,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return read_recipe(ASSETS / f"demo-{stage}.toml", [*overrides, *(FAST if fast else ())])


def _judge(name: str | Path, spec: JudgeSpec, compute: Compute, placement: Placement) -> Scorer:
    cfg, params = load_model(name, placement, compute)
    execution = Execution(compute, "auto", "none", placement, packed=False)
    return Scorer(params, cfg, load_tokenizer(name), spec, execution)


def _origin(model: str) -> str:
    source = resolve_model(model)
    return source.path.name if source.path is not None else "a random generator"


def _held_out(fast: bool) -> list[Comparison]:
    records, _ = read_records(str(HELDOUT), "preference")
    return records[:FAST_PAIRS] if fast else records


def _evaluate(judge: Scorer, records: Sequence[Comparison], console: Console) -> PairwiseReport:
    with console.progress(len(records), label="pairs in both orders", unit="pairs") as bar:
        return evaluate_pairs(judge, records, progress=lambda n: bar.update(n, units=n))


def _show_task(heldout: Sequence[Comparison], console: Console) -> None:
    training: tuple[tuple[Path, Kind], ...] = ((PREFERENCES, "preference"), (UNLABELED, "pair"))
    counts = [len(read_records(str(path), kind)[0]) for path, kind in training]
    kinds = sorted({record.source for record in heldout})
    console.say(f"{counts[0]} labeled pairs to learn from, {counts[1]} without labels, and")
    console.say(
        f"{len(heldout)} held out with questions of their own. A right response and one that"
    )
    console.say(
        f"fails in one of {len(kinds)} ways: {', '.join(kinds).replace('_', ' ')}. Such as:"
    )
    for kind in ("cut_off", "wrong_fact", "sorting"):
        record = next((r for r in heldout if r.source == kind), None)
        if record is not None:
            console.say(f"  {record.prompt[0].content}")
            console.say(f"     better  {record.chosen}")
            console.say(f"     worse   {record.rejected}")


def _in_words(report: PairwiseReport) -> str:
    low, high = report.interval
    return (
        f"accuracy {report.accuracy:.2f} on {report.n} pairs (95 %: {low:.2f} to {high:.2f}; "
        f"chance is 0.50).\nThe response shown first gets {0.5 + report.position_bias:.2f} on "
        f"average; the verdict is the same both ways for {report.consistency:.0%} of the pairs."
    )


def _train(recipe: Recipe, placement: Placement, console: Console, again: str) -> None:
    try:
        result = train(recipe, placement=placement, progress=console.progress)
    except StoppedError as stopped:
        raise StoppedError(
            f"the demo was stopped, what it has done is saved. Go on with: {again}"
        ) from stopped
    _say_losses(result, console)


def _say_losses(result: RunResult, console: Console) -> None:
    rows = [row for row in read_metrics(result.folder / "metrics.jsonl") if "loss" in row]
    part = max(1, len(rows) // 8)
    first, last = (sum(row["loss"] for row in some) / part for some in (rows[:part], rows[-part:]))
    tokens = result.metrics.get("num_tokens", 0)
    console.say(f"{result.steps} steps, {tokens:,.0f} tokens: loss {first:.3f} -> {last:.3f}")


def _telling_pair(heldout: Sequence[Comparison]) -> Comparison:
    return next((r for r in heldout if r.source == "cut_off"), heldout[0])


def _show_scores(judge: Scorer, record: Comparison, console: Console) -> None:
    score = judge.score(record.prompt, record.chosen, record.rejected)
    console.say(f"request   {record.prompt[0].content}")
    console.say(f"right     {record.chosen}")
    console.say(f"wrong     {record.rejected}")
    first, second = score.first + score.position_bias / 2, score.first - score.position_bias / 2
    console.say(f"P(the right one is better): {first:.3f} shown first, {second:.3f} shown second;")
    console.say(
        f"the score is their mean, {score.first:.3f}, and {score.second:.3f} for the other."
    )


def _compare(
    judge: Scorer, exported: Path, records: Sequence[Comparison], folder: Path, console: Console
) -> float | None:
    """The same label logits from PyTorch, run as a program of its own on the exported folder."""
    script = folder / "check.py"
    script.write_text(CHECK, encoding="utf-8")
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        console.say(f"PyTorch is not installed, so transformers is not asked ({script} would).")
        return None
    pairs = [(r.prompt, r.chosen, r.rejected) for r in records]
    shown = [side for p, a, b in pairs for side in ((p, a, b), (p, b, a))]
    encoded = encode_comparisons(judge.tokenizer, judge.spec, shown, overlong="truncate")
    asked = {"label_ids": judge.spec.label_ids, "prompts": [e.tokens.tolist() for e in encoded]}
    done = subprocess.run(
        [sys.executable, str(script), str(exported)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        console.warn(f"transformers could not be asked: {last}")
        return None
    gaps = [a - b for a, b in map(json.loads, done.stdout.strip().splitlines())]
    theirs = [(one - other) / 2 for one, other in zip(gaps[::2], gaps[1::2], strict=True)]
    ours = [score.margin for score in judge.score_many(pairs)]
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    console.say(
        f"transformers gives the same log-odds for {len(pairs)} pairs, largest difference "
        f"{difference:.1e} ({script})"
    )
    return difference


def _conclude(
    before: PairwiseReport,
    after: PairwiseReport,
    plot: Path,
    exported: Path,
    seconds: float,
    console: Console,
) -> None:
    def interval(report: PairwiseReport) -> str:
        return f"{report.interval[0]:.2f} to {report.interval[1]:.2f}"

    rows = [("accuracy", f"{before.accuracy:.2f}", f"{after.accuracy:.2f}")]
    rows += [("  95 % interval", interval(before), interval(after))]
    rows += [("same verdict both ways", f"{before.consistency:.2f}", f"{after.consistency:.2f}")]
    rows += [
        (f"  {kind.replace('_', ' ')} ({n})", f"{before.by_source[kind][1]:.2f}", f"{share:.2f}")
        for kind, (n, share) in after.by_source.items()
    ]
    console.table(f"{after.n} held-out pairs", ("", "before", "after"), rows)
    console.say(f"picture: {plot}")
    console.say(f"time: {format_seconds(seconds)}")
    console.say()
    console.heading("Try next")
    command = _command()
    console.say(f"  {command} evaluate {exported} {_near(HELDOUT)}")
    console.say(f"  {command} data inspect {_near(PREFERENCES)} --model {exported}")
    console.say(f"  {command} score {_near(HELDOUT)} scores.jsonl --model {exported}")


def _command() -> str:
    """How `gram-jax` is called from here."""
    beside = Path(sys.executable).with_name("gram-jax")
    return str(_near(beside)) if beside.exists() else "gram-jax"


def _near(path: Path) -> Path:
    """The path from the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
