"""A judge that writes short structured rationales against the one-token judge, on kinds that code can check.

    python benchmarks/claims/rationales.py OUT [--model smollm2-135m] [--seeds 0 1 2] [--pairs 72] [--test-pairs 40]

For each seed two judges learn from the same pairs in both orders, with the same number of steps and about the same
number of documents in a step: "label" by stage finetune, "rationale" by stage rationale, with the rationales of
rationale_tasks.py. At several steps both are tested on other pairs of the same kinds, with other words: the one-token
verdict of both, and the verdict after the most likely rationale. OUT gets results.json and results.md: accuracy, the
share of pairs with the same preference in both orders, generated tokens, the shares of rationales without a verdict and
of right ones, by kind, with 95 % intervals over seeds and items. The same command resumes an interrupted run.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import rationale_tasks
from intervals import Estimate, estimate, mean_over_pairs
from rationale_tasks import KINDS, Pair
from sizes import DEMO_TEMPLATE

from gram_jax.cli.console import Console
from gram_jax.data.reading import read_records
from gram_jax.evals.scores import score_pairs
from gram_jax.recipes.reading import read_recipe
from gram_jax.scoring.pair import PairScore
from gram_jax.scoring.results import OutputSink
from gram_jax.scoring.scorer import Scorer
from gram_jax.scoring.think import Think
from gram_jax.scoring.votes import votes_on
from gram_jax.sharding import make_placement
from gram_jax.training.loop import train

BED_SEED = 0  # the pairs are the same for all seeds, which draw their order and nothing else
RECIPES = {"label": "smollm2-135m-finetune", "rationale": "smollm2-135m-rationale"}
JUDGES = ("label", "rationale", "rationale, one-token")
METRICS = ("accuracy", "consistency", "tokens", "no verdict", "work right", "rationale right")
BOUNDS = {"tokens": (0.0, float("inf"))}


class Verdict(NamedTuple):
    """The figures of one pair, in the order of METRICS; nan for what a judge does not have.

    no_verdict: share of its rationales. Such a pair has no preference, which counts as a wrong one.
    """

    accuracy: float
    consistency: float
    tokens: float = 0.0
    no_verdict: float = 0.0
    work_right: float = np.nan
    rationale_right: float = np.nan


class Bed(NamedTuple):
    """The pairs of both parts, and the files of them."""

    train: list[Pair]
    test: list[Pair]
    files: dict[str, Path]


def make_bed(out: Path, count: int, test_count: int) -> Bed:
    """Write labels.jsonl and rationales.jsonl, on which the judges learn, and test.jsonl."""
    seen: set[str] = set()
    _, learned, test = (
        list(rationale_tasks.pairs(BED_SEED, each, part, seen))
        for part, each in (("pilot", test_count), ("train", count), ("test", test_count))
    )
    shown = [row for pair in learned for row in rationale_rows(pair)]
    files = {"label": out / "labels.jsonl", "rationale": out / "rationales.jsonl"}
    write_lines(files["label"], [label_row(pair) for pair in learned])
    write_lines(files["rationale"], shown)
    write_lines(out / "test.jsonl", [label_row(pair) for pair in test])
    return Bed(learned, test, files | {"test": out / "test.jsonl"})


def label_row(pair: Pair) -> dict[str, Any]:
    """A pair as a preference."""
    return {
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "source": pair.kind,
    }


def rationale_rows(pair: Pair) -> list[dict[str, Any]]:
    """A pair in both orders, each with its rationale."""
    return [
        {
            "prompt": pair.prompt,
            "response_a": first,
            "response_b": second,
            "label": label,
            "rationale": rationale_tasks.rationale(pair, BED_SEED, swapped=bool(label)),
        }
        for label, (first, second) in enumerate(
            ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
        )
    ]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_judge(
    kind: str, seed: int, data: Sequence[Path], folder: Path, asked: argparse.Namespace
) -> None:
    """Train the judge of a run, if it is not finished."""
    every, at = asked.steps // asked.points, list(RECIPES).index(kind)
    settings: dict[str, Any] = {
        "run.output_dir": str(folder),
        "run.seed": seed,
        "run.max_steps": asked.steps,
        "model.name_or_path": asked.model,
        "data.train": [str(file) for file in data],
        "judge.template": DEMO_TEMPLATE,
        "judge.max_length": asked.max_length,
        "batch.batch_size": 1,
        "batch.max_length": asked.row_lengths[at],
        "batch.gradient_accumulation_steps": 1,
        "optimizer.learning_rate": asked.learning_rate,
        "checkpoint.save_steps": every,
        "checkpoint.keep_period": every,
    }
    if kind == "rationale":
        settings |= {"judge.max_rationale": asked.max_rationale}
    recipe = read_recipe(RECIPES[kind], [f"{key}={json.dumps(x)}" for key, x in settings.items()])
    # A step is one row, which is not divided over devices.
    train(recipe, placement=make_placement({}, devices=jax.devices()[:1]))


def test_judge(
    kind: str, run: Path, step: int, bed: Bed, out: Path, progress: Any
) -> dict[str, list[Verdict]]:
    """The verdicts on the test pairs by judge. Those of a step are kept in a file, from which a test resumes."""
    model, source = f"{run}@{step}", str(bed.files["test"])
    records, _ = read_records(source)
    scorer = Scorer.load(model)
    folder = out / "verdicts"
    folder.mkdir(exist_ok=True)
    sink = OutputSink(folder / f"{run.name}-{step}.jsonl", progress=progress)
    if kind == "label":
        return {"label": [_verdict(x) for x in score_pairs(scorer, model, source, records, sink)]}
    thoughts = votes_on(scorer.thinking(Think(temperature=0)), model, source, records, sink)
    found: dict[str, list[Verdict]] = {"rationale": [], "rationale, one-token": []}
    for pair, thought in zip(bed.test, thoughts, strict=True):
        lines = [
            rationale_tasks.right_lines(
                vote.text, rationale_tasks.rationale(pair, BED_SEED, swapped=bool(order))
            )
            for order, votes in enumerate(thought.rationales)
            for vote in votes
        ]
        work, whole = np.mean(lines, axis=0).tolist()
        missing = thought.without_verdict / len(lines)
        found["rationale"].append(_verdict(thought.score, thought.tokens, missing, work, whole))
        assert thought.direct is not None
        found["rationale, one-token"].append(_verdict(thought.direct))
    return found


def _verdict(score: PairScore, *thought: float) -> Verdict:
    consistent = abs(score.position_bias) < abs(2 * score.first - 1)
    return Verdict(score.first > score.second, consistent, *thought)


def figures_of(
    verdicts: Mapping[tuple[str, int], list[list[Verdict]]],
    test: Sequence[Pair],
    seeds: Sequence[int],
    compared: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Every figure with its interval: by judge, step, kind ("all" too) and metric.

    verdicts: of each seed; compared: pairs of judges; the accuracy of the first minus that of the second, at
    the same step, is a figure, too.
    """
    items = {name: at for at, name in enumerate(dict.fromkeys((p.kind, p.item) for p in test))}
    cluster, kinds = np.array([items[p.kind, p.item] for p in test]), [p.kind for p in test]
    chosen = {kind: np.array([kind in ("all", name) for name in kinds]) for kind in ("all", *KINDS)}
    rows = []
    arrays = {key: np.array(of_seeds, float) for key, of_seeds in verdicts.items()}  # [S, n, 6]
    for (judge, step), values in arrays.items():
        for kind, here in chosen.items():
            if not here.any():
                continue
            make = partial(_estimate, cluster=cluster[here], seeds=seeds)
            for at, metric in enumerate(METRICS):
                figures = values[:, here, at]
                if not np.isnan(figures).all():
                    found = make(figures, bounds=BOUNDS.get(metric, (0.0, 1.0)))
                    rows.append(_row(judge, step, kind, metric, found))
            for other in (second for first, second in compared if first == judge):
                gain = values[:, here, 0] - arrays[other, step][:, here, 0]
                found = make(gain, bounds=(-1.0, 1.0))
                rows.append(_row(f"{judge} - {other}", step, kind, "accuracy", found))
    return rows


def _estimate(
    values: np.ndarray, *, cluster: np.ndarray, seeds: Sequence[int], bounds: tuple[float, float]
) -> Estimate:
    _, dense = np.unique(cluster, return_inverse=True)
    return estimate([mean_over_pairs(values, np.ones(len(dense)), dense)], seeds, bounds)


def _row(judge: str, step: int, kind: str, metric: str, found: Estimate) -> dict[str, Any]:
    by_seed = {str(seed): x for seed, x in found.by_seed.items()}
    figures = {"value": found.value, "low": found.low, "high": found.high, "by_seed": by_seed}
    return {"judge": judge, "step": step, "kind": kind, "metric": metric} | figures


def markdown(rows: Sequence[dict[str, Any]], last: int) -> str:
    """Two tables: accuracy by step, and all figures of the last step by kind."""
    table = {(r["judge"], r["step"], r["kind"], r["metric"]): r for r in rows}

    def cell(*key: Any) -> str:
        if (row := table.get(key)) is None:
            return ""
        form = "{:.1f} ({:.1f} to {:.1f})" if key[-1] == "tokens" else "{:.3f} ({:.3f} to {:.3f})"
        return form.format(row["value"], row["low"], row["high"])

    judges = (*JUDGES, "rationale - label")
    lines = ["Accuracy by step, all kinds", "", "| step | " + " | ".join(judges) + " |"]
    lines.append("|---" * (len(judges) + 1) + "|")
    for step in sorted({row["step"] for row in rows}):
        cells = (cell(judge, step, "all", "accuracy") for judge in judges)
        lines.append(f"| {step} | {' | '.join(cells)} |")
    head = [
        ("accuracy", "label"), ("accuracy", "rationale"), ("accuracy", "rationale - label"),
        ("consistency", "label"), ("consistency", "rationale"), ("tokens", "rationale"),
        ("no verdict", "rationale"), ("work right", "rationale"), ("rationale right", "rationale"),
    ]  # fmt: skip
    lines += ["", f"By kind, step {last}", ""]
    lines.append("| kind | " + " | ".join(f"{metric}, {judge}" for metric, judge in head) + " |")
    lines.append("|---" * (len(head) + 1) + "|")
    for kind in ("all", *KINDS):
        cells = (cell(judge, last, kind, metric) for metric, judge in head)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=72, help="training pairs of each kind")
    parser.add_argument("--test-pairs", type=int, default=40, help="test pairs of each kind")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--points", type=int, default=2, help="number of tests in a run")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a comparison")
    parser.add_argument("--max-rationale", type=int, default=80, help="tokens of a rationale")
    parser.add_argument(
        "--row-lengths",
        type=int,
        nargs=len(RECIPES),
        default=[720, 1120],
        metavar=tuple(RECIPES),
        help="tokens of the row of a step, with about eight documents of either judge",
    )
    asked = parser.parse_args(words)
    if asked.steps % asked.points:
        parser.error(f"--steps {asked.steps} is not a multiple of --points {asked.points}")
    return asked


def main(words: Sequence[str] | None = None) -> None:
    """Make the pairs, train and test every judge, write the results."""
    asked = parse(words)
    asked.out.mkdir(parents=True, exist_ok=True)
    bed = make_bed(asked.out, asked.pairs, asked.test_pairs)
    console = Console()
    every = asked.steps // asked.points
    steps = range(every, asked.steps + 1, every)
    verdicts: dict[tuple[str, int], list[list[Verdict]]] = {}
    for seed in asked.seeds:
        for kind in RECIPES:
            run = asked.out / "runs" / f"{kind}-{seed}"
            train_judge(kind, seed, [bed.files[kind]], run, asked)
            for step in steps:
                found = test_judge(kind, run, step, bed, asked.out, console.progress)
                for judge, of_pairs in found.items():
                    verdicts.setdefault((judge, step), []).append(of_pairs)
    rows = figures_of(verdicts, bed.test, asked.seeds, [("rationale", "label")])
    settings = {key: str(x) if isinstance(x, Path) else x for key, x in vars(asked).items()}
    content = {"settings": settings, "figures": rows}
    (asked.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    text = markdown(rows, asked.steps)
    (asked.out / "results.md").write_text(text)
    console.say(text)


if __name__ == "__main__":
    main()
