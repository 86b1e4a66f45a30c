"""Test the claims of the GRAM paper on a grid of trainings.

    python benchmarks/claims/run.py DATA OUT [--size small] [--seeds 3] [--time 60] [--markdown docs/claims.md]

DATA is a folder with preference_train, preference_valid, unlabeled_train and eval/. The cells of the grid (cells.py)
are computed in order, the most informative first. A finished cell is one file of OUT/cells, written atomically. An
interrupted run resumes, also in the middle of a training, so several short runs add up. If a cell fails, the others are
still computed; the failed ones are listed at the end, and the exit status is 1. The name of a file is a hash of
everything that decides the cell (data, drawn pairs, recipes, tested pairs): a cell is computed again if any of it has
changed. The hash does not cover gram_jax itself: after a change of it, use a new folder.

--time: minutes after which no new cell is started; 0 computes nothing. --seeds N --first S: the N seeds from S on
(default: all); several processes with other seeds may share a folder. --markdown docs/claims.md writes the report and
its plots from the computed cells.
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
from cells import RAW, Cell, grid
from document import write_document
from pools import read_pools, write_whole
from sizes import SIZES
from work import Workshop

from gram_jax.cli.console import Console, log_to
from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.errors import GramError, StoppedError


def main() -> None:
    """Compute missing cells within the time limit, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--time", type=float, default=60, metavar="MINUTES")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="number of seeds (default: all of the size)"
    )
    parser.add_argument("--first", type=int, default=0, help="index of the first seed")
    parser.add_argument("--cells", type=int, help="maximum number of cells to compute")
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.time
    size = SIZES[chosen.size]
    seeds = size.seeds[chosen.first :][: chosen.seeds]
    if not seeds or (chosen.seeds is not None and len(seeds) != chosen.seeds):
        parser.error(f"the size {chosen.size} has the seeds {size.seeds[0]} to {size.seeds[-1]}")
    make_folder(parser, chosen.out)
    keep_compiled_programs()
    with (chosen.out / "log.txt").open("a") as log:
        try:
            pools = read_pools(size, chosen.data, chosen.model, chosen.out / "lengths.json")
        except GramError as error:
            parser.error(str(error))
        console = Console(file=log)
        workshop = Workshop(chosen.out, pools, chosen.model, console)
        # In the order of the whole grid, so that processes with other seeds have the same.
        cells = [c for c in grid(size, size.seeds) if c == RAW or c.seed in seeds]
        log_to(console)
        try:
            failed = work_through(workshop, cells, chosen.cells, end)
        finally:
            log_to(None)
    if chosen.markdown:
        found = read_results(workshop, grid(size, size.seeds))
        write_document(chosen.markdown, chosen.size, chosen.model, pools, found)
    if failed:
        sys.exit("\n  ".join(["not computed, for the errors above:", *failed]))


def make_folder(parser: argparse.ArgumentParser, path: Path) -> None:
    """Make the folder of the results; a path that cannot be one is a usage error."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"OUT must be a folder that can be written: {error}")


def work_through(workshop: Workshop, cells: list[Cell], most: int | None, end: float) -> list[str]:
    """Compute missing cells, at most `most` and none started after `end`.

    Returns the names of those that failed.
    """
    missing, failed = [cell for cell in cells if not workshop.done(cell).exists()], []
    for at, cell in enumerate(missing[:most]):
        if time.monotonic() > end:
            break
        try:
            result = workshop.compute(cell)
        except StoppedError as stopped:
            print(f"{cell.name}: stopped; the same command resumes it", flush=True)
            sys.exit(stopped.status)
        except GramError as error:
            print(f"{cell.name}: {error}", flush=True)
            failed.append(cell.name)
            continue
        keep(workshop, cell, result)
        print(f"{cell.name}: {in_short(result)}", flush=True)
        workshop.clear(cell, missing[at + 1 :])
    return failed


def read_results(workshop: Workshop, cells: list[Cell]) -> dict[Cell, dict[str, Any]]:
    """The results of the cells with the present data and recipes."""
    files = {cell: workshop.done(cell) for cell in cells}
    return {
        cell: json.loads(path.read_text())["result"]
        for cell, path in files.items()
        if path.exists()
    }


def keep(workshop: Workshop, cell: Cell, result: dict[str, Any]) -> None:
    """Write the file of a finished cell: the cell, versions and device, its result."""
    device = jax.devices()[0]
    made = {"jax": jax.__version__, "device": device.device_kind or device.platform}
    row = {"name": cell.name, "cell": vars(cell), "made": made, "result": result}
    write_whole(workshop.done(cell), json.dumps(row))


def in_short(result: dict[str, Any]) -> str:
    """Accuracies, losses and seconds of a cell in one line."""
    shares = [
        f"{name} {sum(p > 0.5 for p in found['p']) / len(found['p']):.3f}"
        for name, found in result["sets"].items()
    ]
    training = result["training"]
    if training:
        shares.append(
            "loss {first_loss:.3f} -> {last_loss:.3f}, steps of {step_seconds:.0f} s".format(
                **training
            )
        )
    return ", ".join([*shares, f"tested in {result['test_seconds']:.0f} s"])


if __name__ == "__main__":
    main()
