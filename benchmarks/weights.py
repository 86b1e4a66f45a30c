"""Effect of bfloat16 and int8 weights on the verdicts of a judge on real pairs.

    python benchmarks/weights.py JUDGE SOURCE... [--pairs 100]

SOURCE: files of labeled pairs, of any schema, from each of which --pairs are drawn. All formats score the same pairs
with products in float32, so that only the weights differ.
"""

import argparse
import warnings
from pathlib import Path

import jax
import numpy as np

from gram_jax.data.reading import read_records
from gram_jax.formatting import format_bytes
from gram_jax.scoring.scorer import Scorer

FORMATS = ("float32", "bfloat16", "int8")
HEAD = "| pairs | weights | layers and embedding | accuracy | other verdicts | change of P(better): mean | largest |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judge")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    drawn = {source: draw(source, options.pairs) for source in options.sources}
    reference: dict[str, np.ndarray] = {}
    rows = {source: [] for source in drawn}
    for weights in FORMATS:
        judge = Scorer.load(options.judge, compute_dtype="float32", weights=weights)
        size = format_bytes(sum(leaf.nbytes for leaf in jax.tree.leaves(judge.params)))
        for source, pairs in drawn.items():
            scores = judge.score_many((r.prompt, r.first, r.second) for r in pairs)
            found = np.array([score.first for score in scores])
            before = reference.setdefault(source, found)
            right = np.mean((found > 0.5) == [r.label == 0 for r in pairs])
            moved = np.abs(found - before)
            other = int(((found > 0.5) != (before > 0.5)).sum())
            name = f"{len(pairs)} of {Path(source).name}"
            changes = f"{other} | {moved.mean():.4f} | {moved.max():.4f}"
            rows[source].append(f"| {name} | {weights} | {size} | {right:.3f} | {changes} |")
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|")
    print("\n".join(row for of_source in rows.values() for row in of_source))


def draw(source: str, count: int) -> list:
    """At most `count` labeled pairs of a file."""
    records, _ = read_records(source)
    labeled = [record for record in records if record.has_preference]
    chosen = np.random.default_rng(0).permutation(len(labeled))[:count]
    return [labeled[at] for at in chosen]


if __name__ == "__main__":
    main()
