"""The claims of the GRAM paper, tried.

    python benchmarks/claims/run.py RESULTS --data DATA [--size small] [--minutes 60] [--markdown docs/claims.md]

RESULTS is a folder, DATA one with preference_train, preference_valid, unlabeled_train and eval/. The cells of the grid
(cells.py) are worked through, the most informative first; each is a line of RESULTS/results.jsonl when it is done. A
run that was interrupted goes on where it stopped, in the middle of a cell too, and several short runs add up. A line
also holds a hash of what decides the cell: data, drawn pairs, recipes, tested pairs; a cell of which any has changed is
computed again. Of a change in gram_jax itself nothing is known: begin a new folder.

--minutes: no cell is begun after that; 0 computes nothing. --seeds splits the grid: several processes with other
seeds may work in one folder side by side. --markdown docs/claims.md writes the report of what is there, its plots
beside it, and names what is missing.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

import jax
from cells import Cell, grid
from document import write_document
from pools import read_pools
from sizes import SIZES
from work import Workshop

from gram_jax.console import Console
from gram_jax.errors import GramError, StoppedError
from gram_jax.programs import keep_compiled_programs


def main() -> None:
    """Compute what is missing, as far as the time goes, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--cells", type=int, help="compute at most so many")
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.minutes
    size = SIZES[chosen.size]
    chosen.folder.mkdir(parents=True, exist_ok=True)
    keep_compiled_programs()
    with (chosen.folder / "log.txt").open("a") as log:
        pools = read_pools(size, chosen.data, chosen.model, chosen.folder / "lengths.json")
        workshop = Workshop(chosen.folder, pools, chosen.model, Console(file=log))
        results = chosen.folder / "results.jsonl"
        done = read_results(results, workshop)
        missing = [c for c in grid(size, chosen.seeds or size.seeds) if c not in done]
        for at, cell in enumerate(missing[: chosen.cells]):
            if time.monotonic() > end:
                break
            try:
                result = workshop.compute(cell)
            except StoppedError:
                raise
            except GramError as error:
                print(f"{cell.name}: {error}", flush=True)
                continue
            done[cell] = result
            append(results, {"cell": vars(cell), "key": workshop.key(cell), "result": result})
            print(f"{cell.name}: {in_short(result)}", flush=True)
            workshop.clear(cell, missing[at + 1 :])
    if chosen.markdown:
        write_document(chosen.markdown, chosen.size, chosen.model, pools, done)


def read_results(path: Path, workshop: Workshop) -> dict[Cell, dict[str, Any]]:
    """What earlier runs found of the cells as they are now; a line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        cell = Cell(**row["cell"])
        if row["key"] == workshop.key(cell):
            found[cell] = row["result"]
    return found


def append(path: Path, row: dict[str, Any]) -> None:
    """One line, in one write: processes side by side do not mix theirs. What a kill cut off stays a line of its own."""
    device = jax.devices()[0]
    row["made"] = {"jax": jax.__version__, "device": device.device_kind or device.platform}
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("ab", buffering=0) as file:
        file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")


def in_short(result: dict[str, Any]) -> str:
    """Accuracies, losses and seconds of a cell in a line."""
    shares = [
        f"{name} {sum(p > 0.5 for p in found['p']) / len(found['p']):.3f}"
        for name, found in result["sets"].items()
    ]
    training = result["training"]
    if training:
        shares.append(
            "loss {first_loss:.3f} -> {last_loss:.3f}, {seconds:.0f} s".format(**training)
        )
    return ", ".join([*shares, f"tested in {result['test_seconds']:.0f} s"])


if __name__ == "__main__":
    main()
