"""Weights with NaN, infinity or an overflow."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from product_attacks.commands import Words
from product_attacks.processes import Child
from product_attacks.results import LOCKS
from product_attacks.trials import Trials, told
from product_attacks.world import World

SECONDS = 60.0  # of a command
# Of finite weights whose activations overflow these compute no score; training skips such batches and stops.
WITHOUT_SCORES = ("convert", "bench", "train")


def non_finite(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """A bad number in the weights: every command refuses the model and writes no number."""
    judge = world.base / f"bad-judge-{os.getpid()}"
    for number in numbers:
        what = spoil(world, judge, draw)
        for use, words in uses(world).items():
            if what == "overflow" and use in WITHOUT_SCORES:
                continue
            place = world.new_place()
            done = Child(words(judge, place), world.log).end(SECONDS)
            written = [p.name for p in place.rglob("*") if p.is_file() and is_result(p)]
            problem = f"wrote {written}" if written else None
            if done.status != 2 or done.is_bug:
                problem = told(done)
            trials.judge(f"{use}: {what} ({number})", place, problem, "refused")


def spoil(world: World, judge: Path, draw: random.Random) -> str:
    """Copy the judge, with a bad number at a random place; returns what was done."""
    shutil.rmtree(judge, ignore_errors=True)
    shutil.copytree(world.inputs.judge, judge)
    weights = judge / "model.safetensors"
    tensors = load_file(weights)
    name, what = draw.choice(sorted(tensors)), draw.choice(("nan", "inf", "-inf", "overflow"))
    if what == "overflow":
        tensors["model.norm.weight"] *= np.float32(1e38)
        tensors["model.embed_tokens.weight"] *= np.float32(1e3)
    else:
        flat = tensors[name].reshape(-1)
        flat[draw.randrange(flat.size)] = float(what)
        what = f"{what} in {name}"
    save_file(tensors, weights, metadata={"format": "pt"})
    world.must(["verify", judge, "--accept"])
    return what


def uses(world: World) -> dict[str, Callable[[Path, Path], Words]]:
    """Commands that use a model, with the model's folder and a place for results."""
    inputs, good = world.inputs, world.inputs.judge
    pairs, lists, many = inputs.pairs, inputs.candidates, inputs.many
    few = ["--n", 2, "--limit", 2, "--max-new-tokens", 4]
    train, rl = world.commands["train"].words, world.commands["rl"].words
    return {
        "score": lambda j, p: ["score", pairs, p / "x.jsonl", "-m", j],
        "rank": lambda j, p: ["rank", lists, p / "x.jsonl", "-m", j],
        "bf16": lambda j, p: ["score", pairs, p / "x.jsonl", "-m", j, "--weights", "bfloat16"],
        "int8": lambda j, p: ["score", pairs, p / "x.jsonl", "-m", j, "--weights", "int8"],
        "evaluate": lambda j, p: ["evaluate", j, pairs, "--out", p / "x"],
        "attack": lambda j, p: [
            *("attack", j, pairs, "--out", p / "x", "--pairs", 4, "--only", "hostile"),
        ],
        "bon, judge": lambda j, p: ["bon", "tiny-random", j, lists, "--out", p / "x", *few],
        "bon, policy": lambda j, p: ["bon", j, good, lists, "--out", p / "x", *few],
        "convert": lambda j, p: ["convert", j, p / "x"],
        "adapt": lambda j, p: ["adapt", j, many, "--out", p / "x"],
        "train": lambda j, p: [*train(p), "--set", f"model.name_or_path={j}"],
        "rl, judge": lambda j, p: [*rl(p), "--set", f"reward.judge={j}"],
        "rl, policy": lambda j, p: [*rl(p), "--set", f"policy.name_or_path={j}"],
        "serve": lambda j, p: ["serve", j, "--port", 18123],
        "bench": lambda j, p: ["bench", "-m", j, "--pairs", 2, "--rounds", 1, "--length", "64"],
    }


def is_result(path: Path) -> bool:
    """Whether a file holds figures of a judge, not the inputs or settings of a command."""
    if path.name in ("samples.jsonl", "run.json") or path.name.endswith((".meta.json", *LOCKS)):
        return False
    if "data" in path.parts or "model" in path.parts or not path.stat().st_size:
        return False
    return path.suffix in (".json", ".jsonl", ".safetensors")
