"""Runs on two hosts whose network is slow, lossy and cut: python benchmarks/hosts.py [--repeats N]

The hosts are network namespaces of this machine, each with its own view of the file system, joined by a link of
tests/hosts.py. A run of training and one of reinforcement learning are delayed by 200 ms in each direction, lose 5 % of
their frames, and are cut; then the same command is run again and has to finish with the results of one process. Exit
status 1 if a process does not end with the status that asks for a restart, or the results differ.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jax
import tomli_w
from hosts import disturbed_run, missing, two_hosts
from test_jobs import check_close
from tiny_runs import tiny_rl_values, tiny_values, write_pairs

from gram_jax.errors import LOST
from gram_jax.recipes.reading import make_recipe, make_rl_recipe
from gram_jax.rl.loop import run_rl
from gram_jax.sharding import make_placement
from gram_jax.training.loop import train

STEPS = {"train": 20, "rl": 10}


def values_of(command: str, folder: Path, data: Path) -> dict:
    """A recipe's values for a run in `folder`, with the data at `data`."""
    common = {"run__max_steps": STEPS[command], "checkpoint__save_steps": 1}
    if command == "train":
        more = {"data__train": [str(data)], "batch__batch_size": 8, "log__logging_steps": 1}
        return tiny_values("finetune", folder, **common | more)
    more = {"data__train": str(data), "optimizer__learning_rate": 1e-3, "mesh__data": -1}
    return tiny_rl_values(folder, "grpo", **common | more)


def run_alone(command: str, values: dict) -> None:
    """The same run on one device of this process."""
    one = make_placement({}, devices=jax.devices()[:1])
    if command == "train":
        train(make_recipe(values), placement=one)
    else:
        run_rl(make_rl_recipe(values), placement=one)


def trial(command: str, base: Path, lost_after: int) -> tuple[str, bool]:
    """(A line of the table, whether all is as it should be.)"""
    with two_hosts(base / "hosts") as hosts:
        write_pairs(hosts.outside / "train.jsonl", 16)
        values = values_of(command, hosts.work / "run", hosts.work / "train.jsonl")
        (hosts.outside / "run.toml").write_text(tomli_w.dumps(values))
        recipe = hosts.work / "run.toml"
        found = disturbed_run(hosts, recipe, "run", command=command, lost_after=lost_after)
        alone = base / "alone" / "run"
        alone.parent.mkdir()
        run_alone(command, values_of(command, alone, hosts.outside / "train.jsonl"))
        try:
            check_close(alone, hosts.outside / "run")
            same = True
        except AssertionError as error:
            same = False
            print(error, file=sys.stderr)
    good = same and found.statuses == [LOST, LOST]
    line = (
        f"| {command} | {found.delayed} | {found.lossy} | {found.statuses} | {found.seconds:.1f} | {found.resumed} | "
        f"{'yes' if same else 'NO'} |"
    )
    return line, good


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--lost-after", type=int, default=5)
    options.add_argument("--commands", nargs="+", default=list(STEPS), choices=list(STEPS))
    chosen = options.parse_args()
    if problem := missing():
        sys.exit(problem)
    print(
        "| run | steps while delayed | while lossy | statuses | seconds from the cut | resumed from | same results |"
    )
    print("|---|---|---|---|---|---|---|")
    all_good = True
    for command in chosen.commands:
        for _ in range(chosen.repeats):
            with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
                line, good = trial(command, Path(folder), chosen.lost_after)
            print(line, flush=True)
            all_good &= good
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
