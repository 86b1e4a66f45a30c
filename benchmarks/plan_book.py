"""The plan book: published models on slices of TPUs, compiled on this machine, as docs/plans.md.

    python benchmarks/plan_book.py RESULTS.jsonl [--minutes 45] [--markdown docs/plans.md]

Every cell is one `gram-jax plan ... --json` in a process of its own; its result is a line of RESULTS, so an interrupted
run resumes. A line also has a hash of the recipe with all its changes and of everything else that decides the program
(`Cell.key`): a cell whose recipe has changed is computed again. The hash does not cover gram_jax itself: after a change
of it, start a new file. The Markdown is made from the lines that exist and lists the missing cells; `--minutes 0` only
writes it. Needs libtpu, and no TPU; for the GPUs jax-cuda13-pjrt and jax-cuda13-plugin of JAX's version, and no GPU.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_jax.formatting import format_bytes, format_count
from gram_jax.model.specs import param_count, param_specs
from gram_jax.plan.models import PUBLISHED
from gram_jax.plan.topology import Topology, read_topology
from gram_jax.recipes.reading import read_recipe, recipe_values

ROOT = Path(__file__).parents[1]
RECIPES = {
    "pretrain": "configs/gram-qwen3-1.7b-pretrain.toml",
    "finetune": "configs/gram-qwen3-1.7b-finetune.toml",
}
LENGTH = 2048
ROWS = 4  # per device and step; fewer if the residual stream of 4 rows does not fit
ROWS_OF = {"llama3.3-70b": 2}
CHUNK = 512  # rows of logits of a device
LONGEST = 900  # seconds for one cell
WIDEST_FSDP = 128  # the largest power of two that divides Qwen3's vocabulary of 151,936

# The slices that a model is planned for, the most informative first. A round takes the next slice of every model.
SLICES = {
    "qwen3-0.6b": ("v5e:2x2", "v6e:2x2"),
    "qwen3-1.7b": ("v5e:4x4", "v5e:2x2", "v6e:4x4"),
    "qwen3-4b": ("v5e:4x4", "v6e:2x2", "v5e:2x2"),
    "qwen3-8b": ("v6e:4x4", "v5e:4x4", "v6e:16x16", "v5p:2x2x1", "v5e:16x16"),
    "qwen3-14b": ("v6e:4x4", "v5p:4x4x4", "v5e:4x4"),
    "qwen3-32b": ("v5p:4x4x4", "v6e:4x4", "v5e:16x16"),
    "llama3.2-3b": ("v5e:4x4", "v6e:2x2"),
    "llama3.1-8b": ("v6e:4x4", "v5p:2x2x1"),
    "llama3.3-70b": ("v5p:4x4x4", "v6e:16x16"),
}
# Too small for the training state alone: computed first, because nothing is compiled.
TOO_SMALL = {
    "qwen3-8b": "v5e:2x2",
    "qwen3-14b": "v6e:2x2",
    "qwen3-32b": "v5p:2x2x1",
    "llama3.1-8b": "v5e:2x2",
    "llama3.3-70b": "v6e:4x4",
}
# Recipes for one GPU, planned as they are.
FOR_GPUS = {
    "configs/qwen3-1.7b-finetune-24gb.toml": ("qwen3-1.7b", "rtx4090"),
    "configs/qwen3-8b-finetune-141gb.toml": ("qwen3-8b", "h200"),
}
PROGRAMS = ("pretrain", "score", "finetune")
# Large slices that are planned after the first round.
LARGE = (("qwen3-8b", "2xv6e:4x4"), ("qwen3-8b", "v5e:16x16"))
# Tables of a recipe that the program does not depend on.
NOT_IN_PROGRAM = ("run", "data", "evaluate", "checkpoint", "log")


@dataclass(frozen=True)
class Cell:
    """One program of one model on one slice; program: of PROGRAMS, or a recipe of FOR_GPUS."""

    model: str
    topology: str
    program: str

    @property
    def place(self) -> Topology:
        """The parsed topology."""
        return read_topology(self.topology)

    @property
    def devices(self) -> int:
        """Of all slices, as JAX counts them."""
        place = self.place
        return place.slices * place.chip.devices * math.prod(place.shape)

    @property
    def replicated(self) -> bool:
        """Scoring keeps whole weights on every device if they take at most half of its memory."""
        chip = self.place.chip
        weights = 2 * param_count(param_specs(PUBLISHED[self.model]))
        return self.program == "score" and weights <= 0.5 * chip.memory / chip.devices

    @property
    def recipe(self) -> str:
        """The recipe's file."""
        if self.program in FOR_GPUS:
            return self.program
        return RECIPES["finetune" if self.program == "score" else self.program]

    @property
    def changes(self) -> dict[str, Any]:
        """Keys of the recipe that are set for this cell."""
        if self.program in FOR_GPUS:
            return {}
        devices, slices = self.devices, self.place.slices
        inside = devices // slices
        fsdp = 1 if self.replicated else min(inside, WIDEST_FSDP)
        changes: dict[str, Any] = {
            "mesh.fsdp": fsdp,
            "mesh.data": inside // fsdp,
            "execution.attention": "auto",
            "batch.gradient_accumulation_steps": 1,
            "batch.max_length": LENGTH,
            "judge.max_length": LENGTH,
            "batch.batch_size": ROWS_OF.get(self.model, ROWS) * devices,
        }
        if slices > 1:
            changes["mesh.dcn.data"] = slices
        if self.program == "pretrain":
            changes["loss.loss_chunk_size"] = CHUNK * devices
        return changes

    def arguments(self) -> list[str]:
        """Of `gram-jax plan`."""
        sets = [part for change in self._sets() for part in ("--set", change)]
        how = ["--score"] if self.program == "score" else ["--no-advice"]
        shape = [] if self.program in FOR_GPUS else ["--model-config", self.model]
        return ["plan", self.recipe, *shape, "--topology", self.topology, *sets, *how, "--json"]

    def key(self) -> str:
        """A hash of what decides the program: the recipe with its changes, the model, the slice."""
        values = recipe_values(read_recipe(ROOT / self.recipe, self._sets()))
        decides = {name: part for name, part in values.items() if name not in NOT_IN_PROGRAM}
        # The number of examples of a row depends on the orders (plan/programs.py).
        text = json.dumps(
            [decides, values["data"].get("position_augmentation"), vars(self)], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _sets(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.changes.items()]


def cells() -> list[Cell]:
    """All cells, in the order in which they are computed."""
    return list(dict.fromkeys(_in_order()))


def _in_order() -> Iterator[Cell]:
    for program in ("finetune", "pretrain"):
        yield from (Cell(model, topology, program) for model, topology in TOO_SMALL.items())
    yield from (Cell(*where, recipe) for recipe, where in FOR_GPUS.items())
    for turn in range(max(map(len, SLICES.values()))):
        for program in PROGRAMS:
            for model, slices in SLICES.items():
                if turn < len(slices):
                    yield Cell(model, slices[turn], program)
        if turn == 0:
            yield from (Cell(*where, program) for where in LARGE for program in PROGRAMS)


def main() -> None:
    """Compute missing cells within the time, and write the markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--runner", default="", help='before each command, such as "nice -n 10"')
    chosen = parser.parse_args()
    done = run_cells(cells(), chosen.results, chosen.minutes, chosen.runner.split())
    if chosen.markdown:
        chosen.markdown.parent.mkdir(exist_ok=True)
        chosen.markdown.write_text(book(done))


def run_cells(
    wanted: Sequence[Cell], results: Path, minutes: float, runner: Sequence[str]
) -> dict[Cell, dict[str, Any]]:
    """Results by cell, those of the file included; cells that are missing are computed within the time."""
    done = read_results(results)
    end = time.monotonic() + 60 * minutes
    for cell in wanted:
        if cell in done:
            continue
        if time.monotonic() > end:
            break
        result = compute(cell, runner)
        print(cell, verdict(result), file=sys.stderr, flush=True)
        if "refused" in result:  # no result: something is missing on this machine
            continue
        done[cell] = result
        with results.open("a") as file:
            row = {"cell": vars(cell), "key": cell.key(), "result": result}
            file.write(json.dumps(row) + "\n")
    return done


def read_results(path: Path) -> dict[Cell, dict[str, Any]]:
    """Results of earlier runs for the present recipes; a partial line is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        cell = Cell(**row["cell"])
        if row["key"] == cell.key():
            found[cell] = row["result"]
    return found


def compute(cell: Cell, runner: Sequence[str]) -> dict[str, Any]:
    """The plan as plain values, or {"error": ...}, or {"refused": ...} if the command failed."""
    code = "from gram_jax.cli import main; main()"
    try:
        done = subprocess.run(
            [*runner, sys.executable, "-c", code, *cell.arguments()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"compiling took more than {LONGEST} s"}
    if done.returncode in (0, 1) and done.stdout.strip():
        return json.loads(done.stdout)
    return {"refused": next(iter(reversed(done.stderr.strip().splitlines())), "no output")}


def verdict(result: dict[str, Any]) -> str:
    """One cell in a few words."""
    for failure in ("error", "refused"):
        if failure in result:
            return result[failure]
    memory = result["memory"]
    if memory["fits"]:
        return f"fits, {format_bytes(memory['head_room'])} left, {result['compile_seconds']:.0f} s"
    return f"does not fit: {format_bytes(memory['needed'])} of {format_bytes(memory['capacity'])}"


def book(done: dict[Cell, dict[str, Any]]) -> str:
    """The whole document."""
    planned = cells()
    missing = [cell for cell in planned if cell not in done]
    seconds = sum(result.get("compile_seconds", 0) for result in done.values())
    titles = {
        "pretrain": "Training, stage 1 (pretraining)",
        "finetune": "Training, stage 2 (fine-tuning)",
        "score": "Scoring",
    }
    parts = [INTRODUCTION.format(seconds=seconds / 60, count=len(done))]
    for program, title in titles.items():
        rows = [
            table_row(c, done[c]) for c in ordered(planned) if c.program == program and c in done
        ]
        parts += [f"## {title}", NOTES[program], table(rows)]
    rows = [table_row(c, done[c]) for c in planned if c.program in FOR_GPUS and c in done]
    if rows:
        recipes = ", ".join(f"`{recipe}`" for recipe in FOR_GPUS)
        parts += ["## One GPU", NOTES["gpu"].format(recipes=recipes), table(rows)]
    if missing:
        lines = []
        for program in dict.fromkeys(cell.program for cell in missing):
            names = ", ".join(f"{c.model} on {c.topology}" for c in missing if c.program == program)
            lines.append(f"- {titles.get(program, program)}: {names}")
        parts += ["## Not computed", "These plans have not been computed:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def ordered(planned: Sequence[Cell]) -> list[Cell]:
    """By model as listed, then by memory of the whole slice."""
    models = list(SLICES)

    def key(cell: Cell) -> tuple[int, float]:
        return models.index(cell.model), cell.place.chip.memory * cell.devices

    return sorted(planned, key=key)


COLUMNS = (
    "model",
    "slice",
    "mesh",
    "arguments",
    "temporaries",
    "free",
    "collectives: calls, GiB received",
    "lower bounds, ms: compute / memory / links (/ network)",
    "bound",
    "tokens/s/chip",
    "compile",
)


def table_row(cell: Cell, result: dict[str, Any]) -> list[str]:
    """A line of the table of its program."""
    if "error" in result:
        return [cell.model, cell.topology, "", *[""] * 6, result["error"], ""]
    memory, mesh = result["memory"], result["mesh"]
    start = [
        cell.model,
        cell.topology,
        " x ".join(f"{name} {size}" for name, size in mesh.items()) or "1",
        format_bytes(memory["arguments"]),
    ]
    took = f"{result['compile_seconds']:.0f} s" if result["compile_seconds"] >= 1 else "-"
    if not memory["fits"]:
        least = "at least " if memory["temporaries"] is None else ""
        capacity = format_bytes(memory["capacity"])
        needed = f"**does not fit**: {least}{format_bytes(memory['needed'])} of {capacity}"
        return [*start, needed, "", "", "", "", "", took]
    traffic, seconds = result["collectives"].values(), result["seconds"]
    calls = sum(t["count"] for t in traffic)
    moved = sum(t["links"] + t["network"] for t in traffic) / 2**30
    bounds = ("compute", "memory", "interconnect", "network")
    times = [seconds.get(name) for name in bounds[: 4 if cell.place.slices > 1 else 3]]
    chips = cell.devices / cell.place.chip.devices
    return [
        *start,
        format_bytes(memory["temporaries"]),
        f"{format_bytes(memory['head_room'])} of {format_bytes(memory['capacity'])}",
        f"{calls:,}, {moved:.2f}" if calls else "none",
        " / ".join("-" if t is None else f"{t * 1e3:,.{0 if t >= 0.1 else 1}f}" for t in times),
        result["bound"],
        format_count(result["tokens_per_second"] / chips),
        took,
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """The book's columns as Markdown."""
    return markdown(COLUMNS, rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


INTRODUCTION = """\
# Plans: what fits where

Look up whether a model fits on a TPU slice or GPU, and what bounds its step time. For the smallest slice per model see
[the sizing table](planning.md#sizing-table); `gram-jax plan` makes such a plan for any recipe.

Written by `python benchmarks/plan_book.py RESULTS.jsonl --markdown docs/plans.md`: {count} programs compiled ahead of
time with JAX 0.10.2 and libtpu 0.0.42.1 on a CPU-only machine with 2 shared cores, in {seconds:.0f} minutes. Nothing here
was run on a TPU.

All figures are per device (v5e, v5p and v6e: per chip). In every training plan that fits, the whole state is donated.

| column | meaning |
| --- | --- |
| slice | 2xv6e:4x4 stands for two slices of v6e:4x4; `[mesh.dcn] data` is the number of slices |
| arguments | weights, optimizer state and batch |
| temporaries | all other memory in use at the same time |
| free | memory of the device minus both (or minus the peak that the compiler reports, if that is larger) |
| collectives | number of calls per step, iterations of loops counted, and the minimum GiB received by a device |
| lower bounds | compute: FLOPs / bf16 peak, recomputation not counted. memory: bytes of state and weights / memory bandwidth. links: bytes of collectives / all links of a chip. network, for several slices: bytes / a chip's share of the network between slices. A real step takes longer than the largest of them |
| bound | the largest lower bound |
| tokens/s/chip | throughput at that bound: an upper limit, not a forecast. It leaves out recomputation: with full recomputation at most 75 % of it can be reached |

A program that does not fit is listed with the memory that it needs: at least the arguments and the temporaries that the
compiler reported, if the compiler stopped. If the arguments alone exceed the memory, nothing was compiled."""  # noqa: E501

NOTES = {
    "pretrain": f"""\
{ROWS} rows of {LENGTH:,} tokens per device ({ROWS_OF["llama3.3-70b"]} for the 70B model), one gradient accumulation step, f32
weights and AdamW, bf16 products, full recomputation, splash attention, logits in chunks of {CHUNK} positions per device.""",  # noqa: E501
    "finetune": "The same batch and settings; stage 2 has no product with the vocabulary.",
    "gpu": """\
The recipes {recipes}
without changes, compiled for a description of the GPU. They use `attention = "blocked"` instead of cuDNN's, which needs
a real GPU at compilation. *free* is relative to the memory that CUDA reports minus 0.6 GiB. JAX takes three quarters of
the memory by default; these recipes need XLA_PYTHON_CLIENT_MEM_FRACTION=0.97.""",
    "score": f"""\
Pairs in both orders, padded to {LENGTH:,} tokens, 32,768 tokens per device and call, bf16 weights. Every device holds all
weights if they take at most half of its memory; otherwise they are sharded over fsdp and gathered layer by layer.""",  # noqa: E501
}


if __name__ == "__main__":
    main()
