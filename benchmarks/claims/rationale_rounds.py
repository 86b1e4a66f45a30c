"""What a judge with rationales gains without more rationales: a round of self-training, and reinforcement learning.

    python benchmarks/claims/rationales.py OUT --points 1
    python benchmarks/claims/rationale_rounds.py OUT [--seed 0] [--new-pairs 20] [--votes 2] [--rl-steps 12]

Three judges continue from the judge of rationales.py. "labeled" learns from its rationales again, which is the control:
the same steps without anything new. "self-training" learns from them and from the judge's own rationales for new pairs
with the words of the test, of which it accepts those on which all votes of both orders agree. "reward" is trained by
reinforcement learning on the new pairs, with their labels as the reward. All are tested as in rationales.py, on the
same pairs. OUT gets rounds.json and rounds.md. The same command resumes an interrupted run; --arms divides the work
among processes. The options of rationales.py are accepted, too, and are those of its run.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import rationale_tasks
import rationales
from rationale_tasks import KINDS
from rationales import (
    BED_SEED,
    METRICS,
    Bed,
    Verdict,
    figures_of,
    make_bed,
    test_judge,
    train_judge,
    write_lines,
)

from gram_jax.cli import run_command
from gram_jax.cli.console import Console

ARMS = ("labeled", "self-training", "reward")


def new_pairs(count: int, bed: Bed) -> Iterator[tuple[dict[str, Any], int]]:
    """`count` unlabeled pairs of each kind with prompts of their own, and their labels."""
    seen = {pair.prompt for pair in (*bed.train, *bed.test)}
    for at, pair in enumerate(rationale_tasks.pairs(BED_SEED, count, "new", seen)):
        first, second = (pair.chosen, pair.rejected)[:: -1 if at % 2 else 1]
        row = {"prompt": pair.prompt, "response_a": first, "response_b": second}
        yield row | {"source": pair.kind}, at % 2


def sample_round(start: Path, bed: Bed, asked: argparse.Namespace) -> Path:
    """The rows of a round: rationales of the judge for pairs on which all votes of both orders agree."""
    source, accepted = asked.out / "unlabeled.jsonl", asked.out / f"round-{asked.seed}.jsonl"
    write_lines(source, [row for row, _ in new_pairs(asked.new_pairs, bed)])
    command("rationales", start, source, accepted, "--accept", "agreement",
            "--votes", asked.votes, "--think-seed", 1)  # fmt: skip
    return accepted


def counts(accepted: Path, bed: Bed, asked: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Of each kind: the new pairs, the accepted ones, and those of them with the right label."""
    labels = {
        (row["prompt"], row["response_a"]): (row["source"], label)
        for row, label in new_pairs(asked.new_pairs, bed)
    }
    found = {kind: Counter(pairs=asked.new_pairs, accepted=0, right=0) for kind in KINDS}
    for line in accepted.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["order"] == 0:
            kind, label = labels[row["prompt"][0]["content"], row["response_a"]]
            found[kind].update(accepted=1, right=int(row["label"] == label))
    total = {
        name: sum(of_kind[name] for of_kind in found.values())
        for name in ("pairs", "accepted", "right")
    }
    return {kind: dict(of_kind) for kind, of_kind in {"all": total, **found}.items()}


def reinforce(start: Path, folder: Path, bed: Bed, asked: argparse.Namespace) -> None:
    """Train the judge of a run by reinforcement learning with the label as the reward."""
    source = asked.out / "new-labels.jsonl"
    write_lines(source, [row | {"label": label} for row, label in new_pairs(asked.new_pairs, bed)])
    # 16: tokens before a rationale, and of its closing text and verdict.
    longest = {
        "sampling.max_prompt_length": asked.of_start.max_length + 16,
        "sampling.max_new_tokens": asked.of_start.max_rationale + 16,
    }
    settings: dict[str, Any] = {
        "run.output_dir": str(folder),
        "run.seed": asked.seed,
        "run.max_steps": asked.rl_steps,
        "policy.name_or_path": str(start),
        "data.train": str(source),
        "sampling.prompts_per_step": 4,
        "sampling.num_generations": 4,
        **longest,
        "algorithm.gradient_accumulation_steps": 4,
        "optimizer.learning_rate": asked.rl_learning_rate,
        "evaluate.eval_steps": asked.rl_steps,
        "evaluate.limit": 18,
        "checkpoint.save_steps": asked.rl_steps,
    }
    words = [word for key, x in settings.items() for word in ("--set", f"{key}={json.dumps(x)}")]
    command("rl", "smollm2-135m-rationale-rl", *words)


def command(*words: object) -> None:
    """Run a command of gram-jax. Raises SystemExit with its status if it fails."""
    if status := run_command([str(word) for word in words]):
        raise SystemExit(status)


def train_arm(arm: str, start: Path, folder: Path, bed: Bed, asked: argparse.Namespace) -> int:
    """Train the judge of an arm, if it is not finished, and return its number of steps."""
    if arm == "reward":
        reinforce(start, folder, bed, asked)
        return asked.rl_steps
    data = [bed.files["rationale"]]
    if arm == "self-training":
        accepted = sample_round(start, bed, asked)
        data += [accepted] if accepted.stat().st_size else []
    changed = {
        "model": str(start),
        "steps": asked.further_steps,
        "points": 1,
        "learning_rate": asked.further_rate,
    }
    options = argparse.Namespace(**vars(asked.of_start) | changed)
    train_judge("rationale", asked.seed, data, folder, options)
    return asked.further_steps


def compared() -> list[tuple[str, str]]:
    """The judges whose accuracies are compared: each with the start, and those that are not the control with it."""
    return [(arm, other) for arm in ARMS for other in ("start", "labeled") if arm != other]


def markdown(rows: Sequence[dict[str, Any]], accepted: dict[str, dict[str, int]]) -> str:
    """A table of the judges, one of accuracy by kind, and one of the accepted pairs."""
    table = {(r["judge"], r["kind"], r["metric"]): r for r in rows}
    judges = ["start", *ARMS]

    def cell(judge: str, kind: str, metric: str) -> str:
        if (row := table.get((judge, kind, metric))) is None:
            return ""
        form = "{value:.1f}" if metric == "tokens" else "{value:.3f} ({low:.3f} to {high:.3f})"
        return form.format_map(row)

    def line(cells: Sequence[object]) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    lines = [line(["", *judges]), "|---" * (len(judges) + 1) + "|"]
    for metric in METRICS:
        lines.append(line([metric, *(cell(judge, "all", metric) for judge in judges)]))
    for arm, other in compared():
        found = cell(f"{arm} - {other}", "all", "accuracy")
        lines += ["", f"accuracy, {arm} - {other}: {found}"]
    lines += ["", line(["accuracy", *judges]), "|---" * (len(judges) + 1) + "|"]
    lines += [line([kind, *(cell(j, kind, "accuracy") for j in judges)]) for kind in KINDS]
    lines += ["", line(["", "pairs", "accepted", "right"]), "|---" * 4 + "|"]
    lines += [line([kind, *of_kind.values()]) for kind, of_kind in accepted.items()]
    return "\n".join(lines) + "\n"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="the folder of rationales.py")
    parser.add_argument("--seed", type=int, default=0, help="seed of the judge to start from")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--new-pairs", type=int, default=20, help="new pairs of each kind")
    parser.add_argument("--votes", type=int, default=2, help="rationales of each order")
    parser.add_argument("--further-steps", type=int, default=80)
    parser.add_argument("--further-rate", type=float, default=5e-5)
    parser.add_argument("--rl-steps", type=int, default=12)
    parser.add_argument("--rl-learning-rate", type=float, default=1e-5)
    asked, others = parser.parse_known_args(words)
    asked.of_start = rationales.parse([str(asked.out), *others])
    if not (start := run_of_start(asked)).is_dir():
        parser.error(f"no judge in {start}: train it with rationales.py --seeds {asked.seed}")
    return asked


def run_of_start(asked: argparse.Namespace) -> Path:
    """The run of the judge to start from."""
    return asked.out / "runs" / f"rationale-{asked.seed}"


def main(words: Sequence[str] | None = None) -> None:
    """Train and test the judges, and write the results if all arms are asked for."""
    asked = parse(words)
    of_start = asked.of_start
    bed = make_bed(asked.out, of_start.pairs, of_start.test_pairs)
    console = Console()
    start = run_of_start(asked)
    tested = {"start": (start, of_start.steps)}
    for arm in asked.arms:
        folder = start.with_name(f"{arm}-after-{asked.seed}")
        tested[arm] = folder, train_arm(arm, start, folder, bed, asked)
    verdicts: dict[tuple[str, int], list[list[Verdict]]] = {}
    for judge, (run, step) in tested.items():
        found = test_judge("rationale", run, step, bed, asked.out, console.progress)
        verdicts[judge, 0] = [found["rationale"]]
    if tuple(asked.arms) != ARMS:
        return
    rows = figures_of(verdicts, bed.test, [asked.seed], compared())
    accepted = counts(asked.out / f"round-{asked.seed}.jsonl", bed, asked)
    settings = vars(of_start) | vars(asked) | {"out": str(asked.out)}
    del settings["of_start"]
    content = {"settings": settings, "figures": rows, "accepted": accepted}
    (asked.out / "rounds.json").write_text(json.dumps(content, indent=1) + "\n")
    text = markdown(rows, accepted)
    (asked.out / "rounds.md").write_text(text)
    console.say(text)


if __name__ == "__main__":
    main()
