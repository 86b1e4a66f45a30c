"""The commands that are attacked, on tiny models and a few rows."""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w
from tiny_runs import tiny_values

Words = list[object]


class Inputs:
    """Data of all commands in one folder, and the places of the judge and of its specification with rationales.

    pairs: 48 pairs; many: four times as many, of other prompts; candidates: 12 lists of 3 responses.
    """

    def __init__(self, base: Path):
        self.base, self.judge, self.thinking = base, base / "judge", base / "thinking.json"
        self.pairs, self.candidates = base / "pairs.jsonl", base / "candidates.jsonl"
        self.many = base / "many.jsonl"
        draw = random.Random(0)

        def text(mark: str) -> str:
            return (
                " ".join(draw.choices(("ash", "elm", "fir", "oak", "yew", "bay", "fig"), k=3))
                + mark
            )

        prompts = [f"{number} + 1?" for number in range(48)]
        pairs = [{"prompt": p, "chosen": text(" zzz"), "rejected": text("")} for p in prompts]
        more = [row | {"prompt": f"{k}: {row['prompt']}"} for k in range(3) for row in pairs]
        lists = [{"prompt": p, "responses": [text(str(k)) for k in range(3)]} for p in prompts[:12]]
        for path, rows in ((self.pairs, pairs), (self.many, more), (self.candidates, lists)):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Command:
    """A command that writes. words(place): with its outputs below `place`; reads: those that read them.

    run: the folder in `place` of a run that it writes. given: commands that write, to the same place, what this command
    reads.
    """

    name: str
    words: Callable[[Path], Words]
    reads: Callable[[Path], list[Words]] = field(default=lambda place: [])
    given: Callable[[Path], Iterable[Words]] | None = None
    run: str | None = None


def writing_commands(inputs: Inputs) -> Iterator[Command]:
    """Every command that writes."""
    judge, pairs, lists = inputs.judge, inputs.pairs, inputs.candidates

    def recipe(place: Path, stage: str) -> Path:
        values = tiny_values(
            stage,
            inputs.base / "run",
            run__output_dir=str(place / "run"),
            run__max_steps=6,
            checkpoint__save_steps=2,
            data__train=[str(pairs)],
        )
        path = inputs.base / f"{stage}-{place.name}.toml"
        path.write_text(tomli_w.dumps(values))
        return path

    def rl(place: Path) -> Words:
        changes = {
            "run.output_dir": place / "run",
            "run.max_steps": 3,
            "policy.name_or_path": "tiny-random",
            "reward.judge": judge,
            "data.train": lists,
            "data.limit": 8,
            "sampling.prompts_per_step": 2,
            "sampling.num_generations": 2,
            "sampling.max_prompt_length": 64,
            "sampling.max_new_tokens": 4,
            "algorithm.num_mini_batches": 1,
            "algorithm.num_epochs": 1,
            "algorithm.gradient_accumulation_steps": 1,
            "evaluate.eval_steps": 2,
            "evaluate.limit": 2,
            "checkpoint.save_steps": 1,
            "optimizer.warmup_steps": 0,
            "log.tensorboard": "false",
        }
        sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        return ["rl", "smollm2-135m-rl", *sets]

    def report_of(folder: Path, place: Path) -> Words:
        return ["report", folder, "--out", place / "page.html", "--markdown", place / "page.md"]

    def verify(place: Path) -> list[Words]:
        return [["verify", place / "run"]]

    def edited_export(place: Path) -> Iterator[Words]:
        yield ["convert", judge, place / "edited"]
        with (place / "edited" / "config.json").open("a") as config:
            config.write("\n")

    thinking = ["--spec", inputs.thinking, "--votes", 1, "--limit", 12]

    yield Command("train", lambda place: ["train", recipe(place, "finetune")], verify, run="run")
    yield Command(
        "prepare",
        lambda place: [
            *("data", "prepare", recipe(place, "finetune")),
            *("--set", f"data.cache_dir={place / 'cache'}"),
        ],
    )
    yield Command("rl", rl, verify, run="run")
    yield Command(
        "adapt",
        lambda place: [
            *("adapt", judge, inputs.many, "--out", place / "out", "--accept"),
            *("--num-train-epochs", 1, "--batch-size", 4, "--max-length", 256),
        ],
        lambda place: [["verify", place / "out" / "run"], ["verify", place / "out" / "judge"]],
        run="out/run",
    )
    yield Command("score", lambda place: ["score", pairs, place / "scores.jsonl", "-m", judge])
    yield Command("rank", lambda place: ["rank", lists, place / "ranks.jsonl", "-m", judge])
    yield Command(
        "evaluate",
        lambda place: ["evaluate", judge, pairs, "--out", place / "out"],
        lambda place: [report_of(place / "out", place)],
    )
    yield Command(
        "attack",
        lambda place: [
            *("attack", judge, pairs, "--out", place / "out", "--pairs", 6),
            *("--only", "hostile"),
        ],
        lambda place: [report_of(place / "out", place)],
    )
    yield Command(
        "bon",
        lambda place: [
            *("bon", "tiny-random", judge, lists, "--out", place / "out", "--n", 2),
            *("--limit", 4, "--max-new-tokens", 4),
        ],
    )
    yield Command(
        "convert",
        lambda place: ["convert", judge, place / "out"],
        lambda place: [
            ["score", pairs, place / "of.jsonl", "-m", place / "out", "--overwrite"],
            ["verify", place / "out"],
        ],
    )
    yield Command("spec", lambda place: ["spec", place / "judge.json", "-m", judge, "--overwrite"])
    yield Command(
        "merge",
        lambda place: ["merge", place / "scores.jsonl"],
        lambda place: [["verify", place / "scores.jsonl"]],
        given=lambda place: [
            [
                *("score", pairs, place / "scores.jsonl", "-m", judge),
                *("--shard", f"{shard}/2", "--part-rows", 10),
            ]
            for shard in range(2)
        ],
    )
    yield Command(
        "report",
        lambda place: report_of(place / "evaluated", place),
        given=lambda place: [["evaluate", judge, pairs, "--out", place / "evaluated"]],
    )
    yield Command(
        "card",
        lambda place: ["card", place / "exported"],
        given=lambda place: [["convert", judge, place / "exported"]],
    )
    yield Command(
        "curate",
        lambda place: ["curate", pairs, place / "curated.jsonl", "--scores", place / "of.jsonl"],
        lambda place: [["verify", place / "of.jsonl"]],
        given=lambda place: [["score", pairs, place / "of.jsonl", "-m", judge]],
    )
    yield Command(
        "rationales",
        lambda place: ["rationales", judge, pairs, place / "reasons.jsonl", *thinking],
        lambda place: [["verify", place / "reasons.votes.jsonl"]],
    )
    yield Command(
        "think",
        lambda place: ["think", judge, pairs, "--budget", 8, "--out", place / "out", *thinking],
        lambda place: [["verify", place / "out" / "votes.jsonl"]],
    )
    yield Command(
        "pairs",
        lambda place: [
            *("data", "pairs", pairs, place / "corrupted.jsonl", "--method", "corruptions"),
        ],
    )
    yield Command(
        "accept",
        lambda place: ["verify", place / "edited", "--accept"],
        lambda place: [["verify", place / "edited"]],
        given=edited_export,
    )
