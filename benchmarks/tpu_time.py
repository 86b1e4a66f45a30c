"""The compiler's time of nine programs for TPUs, by kind of work: python benchmarks/tpu_time.py RESULTS.jsonl

Scoring and both stages of training of three published shapes, compiled on this machine; nothing is run on a TPU.
Every program is a cell of benchmarks/plan_book.py (its settings), and RESULTS is its file of results, so an interrupted
run resumes. To compare two versions of gram_jax, run each with a file of its own.

The table leaves out the kernels of Pallas and collectives, which the compiler does not estimate; "with both" adds
attention at half of the peak, and collectives as if none were hidden (`gram-jax plan`).
"""

import argparse
from pathlib import Path

from plan_book import Cell, markdown, run_cells

from gram_jax.plan.cycles import HEAD, LAYOUT, NORMS, OPTIMIZER, OTHER, PRODUCTS, ROPE, SCAN

SLICES = {
    "score": {"qwen3-0.6b": "v5e:1x1", "qwen3-1.7b": "v5e:2x2", "qwen3-8b": "v6e:4x4"},
    "finetune": {"qwen3-0.6b": "v5e:2x2", "qwen3-1.7b": "v5e:4x4", "qwen3-8b": "v6e:4x4"},
    "pretrain": {"qwen3-0.6b": "v5e:2x2", "qwen3-1.7b": "v5e:4x4", "qwen3-8b": "v6e:4x4"},
}
PARTS = (
    (PRODUCTS,),
    (ROPE,),
    (LAYOUT,),
    (NORMS,),
    (HEAD,),
    (OPTIMIZER,),
    (SCAN, OTHER),
)
COLUMNS = (
    *("program", "ms", "products", "rope", "attention layout", "norms", "head", "optimizer"),
    *("other", "efficiency", "with both, ms", "temporaries, GiB", "collectives, GiB"),
)


def main() -> None:
    """Compile what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--runner", default="", help='before each command, such as "nice -n 10"')
    chosen = parser.parse_args()
    cells = [
        Cell(model, topology, program)
        for program, slices in SLICES.items()
        for model, topology in slices.items()
    ]
    done = run_cells(cells, chosen.results, chosen.minutes, chosen.runner.split())
    rows = []
    for cell in cells:
        name = f"{cell.program} {cell.model} {cell.topology}"
        if cell not in done or not done[cell].get("estimate"):
            rows.append([name, "not compiled", *[""] * (len(COLUMNS) - 2)])
            continue
        plan = done[cell]
        times, traffic = plan["estimate"], plan["collectives"].values()
        parts = [1e3 * sum(times["by_kind"].get(kind, 0) for kind in kinds) for kinds in PARTS]
        moved = sum(t["links"] + t["network"] for t in traffic) / 2**30
        rows.append(
            [
                name,
                f"{1e3 * times['compiled']:,.0f}",
                *(f"{part:,.0f}" for part in parts),
                f"{times['efficiency']:.0%}",
                f"{1e3 * times['forecast'][1]:,.0f}",
                f"{plan['memory']['temporaries'] / 2**30:.2f}",
                f"{moved:.2f}",
            ]
        )
    print(markdown(COLUMNS, rows))


if __name__ == "__main__":
    main()
