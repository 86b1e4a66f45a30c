"""Effect of the format of weights and products on the verdicts of a judge on real pairs.

    python benchmarks/weights.py JUDGE SOURCE... [--pairs 100] [--formats int8,int8_dynamic] [--compute-dtype bfloat16]

SOURCE: files of labeled pairs, of any schema, from each of which --pairs are drawn. All formats score the same pairs
and are compared with float32 weights and products. With --compute-dtype float32, the default, only the format differs.
"""

import argparse
import warnings
from pathlib import Path

import jax
import numpy as np

from gram_jax.data.reading import read_records
from gram_jax.formatting import format_bytes
from gram_jax.scoring.scorer import Scorer

FORMATS = "bfloat16,int8,int8_dynamic,float8_dynamic"
HEAD = (
    "| pairs | weights | layers and embedding | accuracy | other verdicts | change of P(better): mean | largest "
    "| of the log-odds: mean | largest |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judge")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--compute-dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    drawn = {source: draw(source, options.pairs) for source in options.sources}
    reference: dict[str, np.ndarray] = {}
    rows = {source: [] for source in drawn}
    for weights in ("float32", *options.formats.split(",")):
        compute_dtype = "float32" if weights == "float32" else options.compute_dtype
        judge = Scorer.load(options.judge, compute_dtype=compute_dtype, weights=weights)
        size = format_bytes(sum(leaf.nbytes for leaf in jax.tree.leaves(judge.params)))
        for source, pairs in drawn.items():
            scores = judge.score_many((r.prompt, r.first, r.second) for r in pairs)
            found = np.array([(score.first, score.margin) for score in scores])
            before = reference.setdefault(source, found)
            first = found[:, 0] > 0.5
            right = np.mean(first == [r.label == 0 for r in pairs])
            other = int((first != (before[:, 0] > 0.5)).sum())
            name = f"{len(pairs)} of {Path(source).name}"
            moved = np.abs(found - before)
            parts = (f"{moved[:, of].mean():.4f} | {moved[:, of].max():.4f}" for of in (0, 1))
            changes = " | ".join([str(other), *parts])
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
