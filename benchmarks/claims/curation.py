"""What curation gains when labels are wrong: judges find flipped labels, and a new judge learns from what remains.

    python benchmarks/claims/curation.py DATA OUT [--size faults] [--seeds 0 1 2] [--shares 0.1 0.2 0.3]

DATA is the folder of faults.py. For each seed and share, this share of the labels is flipped. One judge learns from
each half of the labels, in two epochs (one has 58 steps, after which the loss of the grid's judges is still near ln 2),
and scores the other half, so that no judge has seen the labels that it scores. The rules of `gram-jax curate` then
suspect labels, which are dropped or flipped back. A judge is trained on the flipped labels, on both curated sets, and
on the true labels, and tested on the sets of the grid. OUT gets curation.json and curation.md. Judges are cells of
run.py, kept in OUT/cells: the same command resumes.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bed import flips
from cells import Cell
from figures import accuracy
from intervals import Estimate, estimate, mean_over_pairs
from pools import Pools, read_pools, write_whole
from run import keep, make_folder
from sizes import SIZES
from work import Workshop

from gram_jax.cli.console import Console
from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.data.records import Comparison
from gram_jax.errors import GramError, StoppedError
from gram_jax.evals.curation import CurationConfig, JudgedPair, curate
from gram_jax.evals.pairwise import side

OTHER = "other half"
FLIPPED = "the flipped labels"
FIGURES = ("share", "seed", "wrong", "suspected", "found")


def with_flips(pairs: Sequence[Comparison], share: float, seed: int) -> list[Comparison]:
    """The pairs with this share of the labels exchanged."""
    wrong = flips(len(pairs), share, seed)
    return [_exchanged(pair) if at in wrong else pair for at, pair in enumerate(pairs)]


def _exchanged(pair: Comparison) -> Comparison:
    return replace(pair, label=0 if pair.label == 1 else 1)


class Curator:
    """Trains judges on given labels, each a cell of run.py."""

    def __init__(self, out: Path, pools: Pools, model: str, console: Console):
        self.out, self.pools, self.model, self.console = out, pools, model, console

    def result(self, pools: Pools, seed: int, count: int) -> dict[str, Any]:
        """The result of a generative judge without stage 1 that learns from `count` labels of the pools."""
        workshop = Workshop(self.out, pools, self.model, self.console)
        cell = Cell("generative", seed, 0.0, count)
        if not workshop.done(cell).exists():
            keep(workshop, cell, workshop.compute(cell))
            workshop.clear(cell, [])
        return json.loads(workshop.done(cell).read_text())["result"]

    def judged(self, pairs: Sequence[Comparison], seed: int) -> list[JudgedPair]:
        """Every pair with the verdict of a judge that learned from the other half."""
        found: dict[str, JudgedPair] = {}
        for at in (0, 1):
            learned, scored = list(pairs[at::2]), list(pairs[1 - at :: 2])
            epochs = 2 * self.pools.size.epochs  # the steps of a judge of all labels
            size = replace(self.pools.size, epochs=epochs)
            pools = replace(self.pools, size=size, labels=learned, tests={OTHER: scored}, long={})
            (one,) = self.result(pools, seed, len(learned))["sets"].values()
            for pair, p, gap in zip(scored, one["p"], one["gap"], strict=True):
                sides = side(np.array([[p + gap / 2, p - gap / 2]]))
                found[pair.id] = JudgedPair(pair, True, np.array([p]), sides)
        return [found[pair.id] for pair in pairs]

    def row(self, share: float, seed: int) -> dict[str, Any]:
        """The figures of one share and seed."""
        true = self.pools.draw("labels", self.pools.size.base, seed)
        flipped = with_flips(true, share, seed)
        judged = self.judged(flipped, seed)
        wrong = {pair.id for pair, right in zip(flipped, true, strict=True) if pair != right}
        suspected = {j.pair.id for j in judged if j.verdict(CurationConfig()) == "suspected"}
        sets = {
            FLIPPED: flipped,
            "suspected dropped": curate(judged, CurationConfig(suspected="drop")),
            "suspected flipped back": curate(judged, CurationConfig(suspected="flip")),
        }
        pools = {name: replace(self.pools, labels=labels) for name, labels in sets.items()}
        results = {name: self.result(of, seed, len(of.labels)) for name, of in pools.items()}
        results["true labels"] = self.result(self.pools, seed, len(true))  # a cell of the grid
        return {
            "share": share,
            "seed": seed,
            "wrong": len(wrong),
            "suspected": len(suspected),
            "found": len(wrong & suspected),
            "p": {
                name: {of: result["sets"][of]["p"] for of in self.pools.tests}
                for name, result in results.items()
            },
        }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """What was found, accuracies, and their gains with 95 % intervals; means over seeds."""
    shares = sorted({row["share"] for row in rows})
    lines = ["| flipped | seeds | wrong labels | suspected | of these wrong |", "|---" * 5 + "|"]
    for share in shares:
        of = [row for row in rows if row["share"] == share]
        wrong, suspected, found = (
            sum(row[key] for row in of) for key in ("wrong", "suspected", "found")
        )
        lines.append(f"| {share:.0%} | {len(of)} | {wrong} | {suspected} | {found} |")
    sets = list(rows[0]["p"][FLIPPED])
    for title, minus in (("accuracy", None), (f"accuracy minus that of {FLIPPED}", FLIPPED)):
        lines += ["", f"| flipped | {title} | {' | '.join(sets)} |", "|---" * (2 + len(sets)) + "|"]
        for share in shares:
            of = [row for row in rows if row["share"] == share]
            for name in (name for name in of[0]["p"] if name != minus):
                cells = (_estimate(of, name, minus, one).text(sign=bool(minus)) for one in sets)
                lines.append(f"| {share:.0%} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _estimate(rows: Sequence[dict[str, Any]], name: str, minus: str | None, one: str) -> Estimate:
    """Mean accuracy on a set over seeds, or its difference from that of other labels."""
    right = np.array([accuracy(np.array(row["p"][name][one])) for row in rows])
    if minus:
        right -= [accuracy(np.array(row["p"][minus][one])) for row in rows]
    pairs = right.shape[1]
    found = mean_over_pairs(right, np.ones(pairs), np.arange(pairs))
    return estimate([found], [row["seed"] for row in rows], (-1.0 if minus else 0.0, 1.0))


def main() -> None:
    """Compute the missing judges within the time limit, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--size", choices=SIZES, default="faults")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--time", type=float, default=60, metavar="MINUTES")
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.time
    if not all(0 < share < 1 for share in chosen.shares):
        parser.error("expected shares between 0 and 1, such as 0.2")
    make_folder(parser, chosen.out)
    keep_compiled_programs()
    try:
        cache = chosen.out / "lengths.json"
        pools = read_pools(SIZES[chosen.size], chosen.data, chosen.model, cache)
    except GramError as error:
        parser.error(str(error))
    rows = []
    with (chosen.out / "log.txt").open("a") as log:
        curator = Curator(chosen.out, pools, chosen.model, Console(file=log))
        for seed in chosen.seeds:
            for share in chosen.shares:
                if time.monotonic() > end:
                    continue
                try:
                    rows.append(curator.row(share, seed))
                except StoppedError as stopped:
                    print("stopped; the same command resumes", flush=True)
                    sys.exit(stopped.status)
                print({name: rows[-1][name] for name in FIGURES}, flush=True)
    if rows:
        write_whole(chosen.out / "curation.json", json.dumps(rows) + "\n")
        write_whole(chosen.out / "curation.md", markdown(rows))
        print(markdown(rows))


if __name__ == "__main__":
    main()
