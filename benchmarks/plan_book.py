"""The plan book: published models on slices of TPUs, compiled on this machine, as docs/plans.md.

    python benchmarks/plan_book.py RESULTS.jsonl [--minutes 45] [--only TEXT] [--markdown docs/plans.md]

Every cell is one `gram-jax plan ... --json` in a process of its own; its result is a line of RESULTS, so an interrupted
run resumes. A line also has a hash of the recipe with all its changes and of everything else that decides the program
(`Cell.key`): a cell whose recipe has changed is computed again. The hash does not cover gram_jax itself: after a change
of it, start a new file; to compare two versions of gram_jax, run each with a file of its own. The Markdown is made from
the lines that exist and lists the missing cells; `--minutes 0` only writes it. Needs libtpu, and no TPU.
"""

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from textwrap import fill
from typing import Any

from common import training_settings

from gram_jax.compiler import SCORING, TRAINING
from gram_jax.formatting import format_bytes, format_count
from gram_jax.model.specs import param_count, param_specs
from gram_jax.plan.cycles import HEAD, LAYOUT, NORMS, OPTIMIZER, OTHER, PRODUCTS, ROPE, SCAN
from gram_jax.plan.models import PUBLISHED
from gram_jax.plan.plan import MemoryFit
from gram_jax.plan.report import does_not_fit
from gram_jax.plan.topology import Topology, read_topology
from gram_jax.recipes.reading import read_recipe, recipe_values

ROOT = Path(__file__).parents[1]
RECIPES = {
    "pretrain": "configs/gram-qwen3-1.7b-pretrain.toml",
    "finetune": "configs/gram-qwen3-1.7b-finetune.toml",
}
LENGTH = 2048
LONG = 32768
ROWS = 4  # per device and step; fewer if the residual stream of 4 rows does not fit
ROWS_OF = {"llama3.3-70b": 2}
LONGEST = 1500  # seconds for one cell
FORM = 2  # of a result: the output of gram-jax plan --json
# Tables of a recipe that the program does not depend on.
NOT_IN_PROGRAM = ("run", "data", "evaluate", "checkpoint", "log")


@dataclass(frozen=True)
class Cell:
    """One program of one model on one slice.

    program: "pretrain", "finetune" or "score"; mesh: as "fsdp 16 x tensor 4", by default the book's; length: of a row;
    options: changes of compiler options, as `name=value other=""`, separated by spaces.
    """

    model: str
    topology: str
    program: str
    mesh: str = ""
    length: int = LENGTH
    options: str = ""

    @property
    def place(self) -> Topology:
        """The parsed topology."""
        return read_topology(self.topology)

    @property
    def chips(self) -> int:
        """Of all slices; v5e, v5p and v6e are one device of JAX each."""
        return self.place.slices * math.prod(self.place.shape)

    @property
    def sizes(self) -> dict[str, int]:
        """Axes of the mesh inside a slice: fsdp, or data if scoring keeps whole weights on every chip."""
        if self.mesh:
            parts = (part.split() for part in self.mesh.split(" x "))
            return {axis: int(size) for axis, size in parts}
        weights = 2 * param_count(param_specs(PUBLISHED[self.model]))
        whole = self.program == "score" and weights <= 0.5 * self.memory
        return {"data" if whole else "fsdp": math.prod(self.place.shape)}

    @property
    def memory(self) -> int:
        """Bytes of a chip."""
        chip = self.place.chip
        assert chip is not None  # every cell names one
        return chip.memory

    @property
    def recipe(self) -> str:
        """The recipe's file."""
        return RECIPES["finetune" if self.program == "score" else self.program]

    @property
    def changes(self) -> dict[str, Any]:
        """Keys of the recipe that are set for this cell."""
        rows = ROWS_OF.get(self.model, ROWS) * LENGTH * self.chips // self.length
        shards = self.sizes.get("data", 1) * self.sizes.get("fsdp", 1) * self.place.slices
        changes: dict[str, Any] = {
            **{f"mesh.{axis}": n for axis, n in ({"data": 1, "fsdp": 1} | self.sizes).items()},
            "execution.attention": "auto",
            **training_settings(self.program, max(rows, shards), self.length, self.chips),
        }
        if self.place.slices > 1:
            changes["mesh.dcn.data"] = self.place.slices
        for option in self.options.split():
            name, _, value = option.partition("=")
            changes[f"execution.compiler_options.{name}"] = value
        return changes

    def arguments(self) -> list[str]:
        """Of `gram-jax plan`."""
        sets = [part for change in self._sets() for part in ("--set", change)]
        how = ["--score"] if self.program == "score" else ["--no-advice"]
        return [
            *("plan", self.recipe, "--model-config", self.model, "--topology", self.topology),
            *(*sets, *how, "--json"),
        ]

    def key(self) -> str:
        """A hash of what decides the program: the recipe with its changes, the model, the slice."""
        values = recipe_values(read_recipe(ROOT / self.recipe, self._sets()))
        decides = {name: part for name, part in values.items() if name not in NOT_IN_PROGRAM}
        # The number of examples of a row depends on the orders (plan/programs.py).
        orders = values["data"].get("position_augmentation")
        options = [dict(table) for table in (TRAINING, SCORING)]
        text = json.dumps([FORM, decides, orders, vars(self), options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _sets(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.changes.items()]


# The programs whose time is shown by kind of work, of a small, a middle and a large model.
PARTS_OF = [
    Cell(model, topology, program)
    for program, slices in {
        "pretrain": ("v5e:2x2", "v5e:4x4", "v6e:4x4"),
        "finetune": ("v5e:2x2", "v5e:4x4", "v6e:4x4"),
        "score": ("v5e:1x1", "v5e:2x2", "v6e:4x4"),
    }.items()
    for model, topology in zip(("qwen3-0.6b", "qwen3-1.7b", "qwen3-8b"), slices, strict=True)
]
# Models between these, stage 1 on a slice that it nearly fills, and scoring with the fewest chips that one would use.
MORE = [
    Cell("qwen3-8b", "v5e:4x4", "pretrain"),
    Cell("qwen3-32b", "v6e:2x4", "score"),
    Cell("llama3.3-70b", "v5p:2x2x1", "score"),
    Cell("qwen3-4b", "v5e:4x4", "pretrain"),
]
# Meshes of the two largest models; `gram-jax plan --search-mesh` makes the same comparison.
LARGE = {
    ("llama3.3-70b", "v5p:4x4x4", LENGTH): ("", "fsdp 32 x tensor 2", "fsdp 16 x tensor 4"),
    ("qwen3-32b", "v6e:8x8", LENGTH): ("", "fsdp 32 x tensor 2", "fsdp 16 x tensor 4"),
    ("llama3.3-70b", "v5p:4x4x4", LONG): ("", "fsdp 32 x sequence 2", "fsdp 16 x tensor 4"),
    ("qwen3-32b", "v6e:8x8", LONG): ("fsdp 16 x tensor 4",),
}
OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload"
FUSION = "xla_tpu_enable_async_collective_fusion"
# Programs that are compiled with other compiler options than those of gram_jax/compiler.py, and the changes.
OPTIONS_OF = {
    Cell("qwen3-1.7b", "v5e:4x4", "finetune"): (
        "synchronous",
        "reductions",
        "windows",
        "unscheduled",
    ),
    Cell("llama3.3-70b", "v5p:4x4x4", "finetune", "fsdp 16 x tensor 4"): (
        "gathers",
        "sparse",
        "windows",
    ),
    Cell("qwen3-8b", "v6e:4x4", "finetune"): ("gathers", "sparse", "narrow"),
}
OPTIONS = {
    "narrow": ("default limit of scoped VMEM", 'xla_tpu_scoped_vmem_limit_kib=""'),
    "synchronous": ("synchronous gathers", "xla_enable_async_all_gather=false"),
    "gathers": (
        "gathers as libtpu's default",
        f'xla_enable_async_all_gather="" {FUSION}="" {FUSION}_fuse_all_gather=""',
    ),
    "sparse": (
        "collectives on SparseCores",
        f"{OFFLOAD}_all_gather=true {OFFLOAD}_reduce_scatter=true {OFFLOAD}_all_reduce=true",
    ),
    "reductions": (
        "asynchronous reductions requested",
        f"xla_enable_async_all_reduce=true xla_enable_async_reduce_scatter_fusion=true {FUSION}_fuse_all_reduce=true "
        f"{FUSION}_fuse_reduce_scatter=true",
    ),
    "windows": (
        "windowed einsum off",
        "xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",
    ),
    "unscheduled": (
        "latency hiding scheduler off",
        "xla_tpu_enable_latency_hiding_scheduler=false",
    ),
}

CHANGES = {options: label for label, options in OPTIONS.values()}


def cells() -> list[Cell]:
    """All cells, in the order in which they are computed."""
    return [*mesh_cells(), *PARTS_OF, *MORE, *(cell for _, cell in option_cells() if cell.options)]


def mesh_cells() -> list[Cell]:
    """Stage 2 of the largest models on every mesh of their slice that is compared."""
    return [
        Cell(model, topology, "finetune", mesh, length)
        for (model, topology, length), meshes in LARGE.items()
        for mesh in meshes
    ]


def option_cells() -> list[tuple[str, Cell]]:
    """(what is changed, program), each program first with the options of gram_jax/compiler.py."""
    found = []
    for cell, own in OPTIONS_OF.items():
        found.append(("", cell))
        for name in own:
            label, options = OPTIONS[name]
            found.append((label, replace(cell, options=options)))
    return found


def main() -> None:
    """Compute missing cells within the time, and write the markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--only", default="", help="cells whose name has this text")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--runner", default="", help='before each command, such as "nice -n 10"')
    chosen = parser.parse_args()
    wanted = [cell for cell in cells() if chosen.only in " ".join(map(str, vars(cell).values()))]
    done = run_cells(wanted, chosen.results, chosen.minutes, chosen.runner.split())
    text = book(done)
    if chosen.markdown:
        chosen.markdown.parent.mkdir(exist_ok=True)
        chosen.markdown.write_text(text)
    else:
        print(text)


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
    names = {field.name for field in fields(MemoryFit)}
    return does_not_fit(MemoryFit(**{k: v for k, v in memory.items() if k in names}))


def book(done: dict[Cell, dict[str, Any]]) -> str:
    """The whole document."""
    planned = cells()
    seconds = sum(result.get("compile_seconds", 0) for result in done.values())
    text = INTRODUCTION.format(seconds=seconds / 60, count=len(done), example=example(done))
    parts = [text]
    meshes = mesh_cells()
    for program, title in TITLES.items():
        own = [c for c in planned if c not in meshes and not c.options]
        rows = [c for c in ordered(own) if c.program == program]
        parts += [f"## {title}", NOTES[program], table(rows, done)]
    if any(cell in done for cell in meshes):
        parts += ["## Meshes for the largest models", NOTES["meshes"]]
    for where in LARGE:
        of = [c for c in meshes if (c.model, c.topology, c.length) == where and c in done]
        if of:
            model, topology, length = where
            of = sorted(of, key=lambda cell: seconds_per_token(done[cell]))
            parts += [f"{model} on {topology}, rows of {length:,} tokens:", table(of, done)]
    parts += ["## The compiler's time by kind of work", NOTES["parts"], parts_table(done)]
    if rows := options_rows(done):
        parts += ["## Compiler options", NOTES["options"], markdown(OPTION_COLUMNS, rows)]
    if missing := [cell for cell in planned if cell not in done]:
        parts += ["## Not in the tables", "\n".join(missing_lines(missing))]
    return "\n\n".join(parts) + "\n"


def seconds_per_token(result: dict[str, Any]) -> float:
    """Of the whole slice, by the longer forecast; infinite if it does not fit."""
    if "error" in result or not result["memory"]["fits"]:
        return math.inf
    return result["estimate"]["forecast"][1] / result["tokens"]


def missing_lines(missing: Sequence[Cell]) -> list[str]:
    """A line for each program."""
    names: dict[str, list[str]] = {}
    for cell in missing:
        rows = f", rows of {cell.length:,}" if cell.length != LENGTH else ""
        change = f" ({CHANGES[cell.options]})" if cell.options else ""
        name = f"{cell.model} on {cell.topology} {cell.mesh}".rstrip() + rows + change
        names.setdefault(TITLES[cell.program], []).append(name)
    return [f"- {title}: {'; '.join(of)}" for title, of in names.items()]


def ordered(planned: Sequence[Cell]) -> list[Cell]:
    """By number of weights, then by memory of the whole slice."""

    def key(cell: Cell) -> tuple[int, float]:
        return param_count(param_specs(PUBLISHED[cell.model])), cell.memory * cell.chips

    return sorted(planned, key=key)


COLUMNS = (
    *("model", "slice", "mesh", "state + temporaries", "free", "step, ms", "tokens/s/chip"),
    *("compiler", "attention", "links", "least", "collectives"),
)


def table(rows: Sequence[Cell], done: dict[Cell, dict[str, Any]]) -> str:
    """The book's columns of the cells that have a result."""
    return markdown(COLUMNS, [table_row(cell, done[cell]) for cell in rows if cell in done])


def table_row(cell: Cell, result: dict[str, Any]) -> list[str]:
    """A line of the table of its program."""
    start = [cell.model, cell.topology]
    if "error" in result:
        return [*start, cell.mesh, result["error"], *[""] * (len(COLUMNS) - 4)]
    memory = result["memory"]
    start.append(" x ".join(f"{name} {size}" for name, size in result["mesh"].items()) or "1")
    if memory["temporaries"] is None:
        needed = f"at least {_gib(memory['needed'])}"
        return [*start, needed, "**does not fit**", *[""] * (len(COLUMNS) - 5)]
    times, traffic = result["estimate"], result["collectives"].values()
    moved = sum(t["links"] + t["network"] for t in traffic)
    parts = times["compiled"], times["kernels"], times["links"], result["seconds"]["compute"]
    return [
        *start,
        f"{_gib(memory['arguments'])} + {_gib(memory['temporaries'])}",
        _gib(memory["head_room"]) if memory["fits"] else "**does not fit**",
        _range(times["forecast"]),
        format_count(result["tokens"] / times["forecast"][1] / cell.chips),
        *(_ms(part) for part in parts),
        _gib(moved),
    ]


KINDS = {
    "products": (PRODUCTS,),
    "rope": (ROPE,),
    "attention layout": (LAYOUT,),
    "norms": (NORMS,),
    "head": (HEAD,),
    "optimizer": (OPTIMIZER,),
    "other": (SCAN, OTHER),
}


def parts_table(done: dict[Cell, dict[str, Any]]) -> str:
    """Time by kind of work and efficiency."""
    names = {"pretrain": "stage 1", "finetune": "stage 2", "score": "score"}
    rows = []
    for cell in PARTS_OF:
        if (times := done.get(cell, {}).get("estimate")) is None:
            continue
        parts = (sum(times["by_kind"].get(one, 0) for one in kinds) for kinds in KINDS.values())
        rows.append(
            [
                f"{names[cell.program]}, {cell.model}, {cell.topology}",
                _ms(times["compiled"]),
                *(_ms(part) for part in parts),
                f"{times['products_efficiency']:.0%}",
                f"{times['efficiency']:.0%}",
            ]
        )
    return markdown(("program", "sum, ms", *KINDS, "products at", "all at"), rows)


OPTION_COLUMNS = (
    *("program", "change", "compiler, ms", "temporaries, GiB", "links, ms", "asynchronous links"),
    "step, ms",
)


def options_rows(done: dict[Cell, dict[str, Any]]) -> list[list[str]]:
    """The effect of compiler options; programs that do not compile have the reason."""
    rows = []
    for label, cell in option_cells():
        if cell not in done:
            continue
        result = done[cell]
        program = f"{cell.model}, {cell.topology}, {cell.mesh}".rstrip(", ")
        start = ["" if label else program, label or "none"]
        if (times := result.get("estimate")) is None:
            rows.append([*start, verdict(result), *[""] * (len(OPTION_COLUMNS) - 3)])
            continue
        asynchronous = 1 - times["synchronous"] / times["links"] if times["links"] else 0.0
        rows.append(
            [
                *(*start, _ms(times["compiled"]), _gib(result["memory"]["temporaries"])),
                *(_ms(times["links"]), f"{asynchronous:.1%}", _range(times["forecast"])),
            ]
        )
    return rows


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _range(seconds: Sequence[float]) -> str:
    return "-".join(dict.fromkeys(map(_ms, seconds)))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


TITLES = {
    "pretrain": "Training, stage 1",
    "finetune": "Training, stage 2",
    "score": "Scoring",
}

INTRODUCTION = """\
# Plans: what fits where, and how fast it might be

Look up a model, a slice of TPUs and a stage: whether it fits, and how long a step takes by the compiler's estimate.
`gram-jax plan` makes such a plan for any recipe and slice ([planning](planning.md)). [The sizing
table](planning.md#sizing-table) has the memory of more slices.

**Nothing was run on a TPU**, and the compiler's estimates have never been compared with a run: compare rows with each
other, and do not rely on the absolute times. Written by `python benchmarks/plan_book.py RESULTS.jsonl --markdown
docs/plans.md`: {count} programs compiled ahead of time with JAX 0.10.2 and libtpu 0.0.42.1 on 2 shared CPU cores, in
{seconds:.0f} minutes, on 29 November 2026.

## How to read a row

A slice v6e:4x4 has 16 chips; Google calls it v6e-16. A slice v5p:4x4x4 has 64 chips and is called v5p-128, because the
names of v5p count TensorCores. A chip has 15.8 (v5e), 31.2 (v6e) or 95.7 GiB (v5p) of memory. Stage 1 pretrains on
pairs with a loss over the vocabulary, stage 2 fine-tunes the verdict; in scoring, a step is one call.

| column | meaning |
| --- | --- |
| mesh | axes of [the mesh](meshes.md) with their sizes: `fsdp 32 x tensor 2` is `fsdp = 32`, `tensor = 2` in `[mesh]` |
| state + temporaries | GiB of a chip for weights, optimizer state and batch, and for everything else at the same time |
| free | GiB of a chip that remain; less than the rest of the sum if the compiler's own peak is larger |
| step | ms, *compiler* + *attention* + *links*; in the lower value without the *links* that are asynchronous |
| tokens/s/chip | tokens of a step / the longer time / chips; padding counts as tokens |
| compiler | ms, sum of the compiler's estimates of all operations but collectives and attention's kernels |
| attention | ms of attention's kernels, taken at 50 % of the chip's peak |
| links | ms of collectives, at the full speed of all links of a chip; asynchronous ones have separate start and done \
instructions, so that other work can run in between |
| least | ms that the model's FLOPs take at the chip's peak, recomputation not counted: no step can be faster |
| collectives | GiB that reach each chip in a step |

{example}A larger batch needs more temporaries and hardly more state. If *links* is a large part of a step, try another
mesh or more rows per chip. If *compiler* is much larger than *least*, the rest is recomputation and work other than
matrix products ([by kind of work](#the-compilers-time-by-kind-of-work)). [The time of a run](planning.md#time-of-a-run)
follows from tokens/s/chip."""

EXAMPLE = Cell("qwen3-8b", "v6e:4x4", "finetune")
EXAMPLE_TEXT = (
    "Example: stage 2 of {model} on {slice}. A chip uses {state} + {temporaries} GiB, and {free} GiB remain: it fits. "
    "A step has {rows} rows of {length:,} tokens and takes {least} to {most} ms; at the longer time the slice "
    "processes {tokens} tokens/s."
)


def example(done: dict[Cell, dict[str, Any]]) -> str:
    """One line in words; nothing without its result."""
    if EXAMPLE not in done:
        return ""
    result = done[EXAMPLE]
    memory, times = result["memory"], result["estimate"]
    text = EXAMPLE_TEXT.format(
        model=EXAMPLE.model,
        slice=EXAMPLE.topology,
        length=EXAMPLE.length,
        rows=ROWS * EXAMPLE.chips,
        state=_gib(memory["arguments"]),
        temporaries=_gib(memory["temporaries"]),
        free=_gib(memory["head_room"]),
        least=_ms(times["forecast"][0]),
        most=_ms(times["forecast"][1]),
        tokens=format_count(result["tokens"] / times["forecast"][1]),
    )
    return fill(text, 120) + "\n\n"


OPTIONS_TEXT = (
    """\
Stage 2 of three programs, each first with the options of `gram_jax/compiler.py`, then with one change.
`execution.compiler_options` makes such changes in a recipe:

"""
    + "\n".join(
        fill(
            f"- {label}: " + ", ".join(f"`{one}`" for one in options.split()),
            120,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, options in OPTIONS.values()
    )
    + """

On v5e weights are gathered asynchronously by default, on v5p and v6e by three options. Requested asynchronous
reductions change nothing on v5e; for the 70B program on v5p libtpu runs out of VMEM. SparseCores carry out reductions
too, beside other work; the longer time is about the same, and it is not known how much they slow the products' reads of
memory ([TPU programs](meshes.md#tpu-programs))."""
)

NOTES = {
    "pretrain": f"""\
{ROWS} rows of {LENGTH:,} tokens per chip, no gradient accumulation, f32 weights and AdamW, bf16 products, full
recomputation, splash attention, logits in pieces of 512 positions per chip.""",
    "finetune": "The same batch and settings; stage 2 has no product with the vocabulary.",
    "score": f"""\
Pairs in both orders, padded to {LENGTH:,} tokens, bf16 weights, 32,768 tokens per chip and call. Every chip has all
weights (mesh `data`) if they take at most half of its memory, else they are sharded and gathered layer by layer.""",
    "meshes": f"""\
Stage 2 on several meshes of one slice, {ROWS} x {LENGTH:,} tokens per chip (2 x for the 70B model), or as many rows of
{LONG:,} tokens as `fsdp`; the fastest mesh that fits first. With `tensor`, a layer's weights are gathered by fewer
devices, so *links* fall; activations are gathered in addition, so `tensor` 4 has more *links* than `tensor` 2. The
residual stream and its norms are divided among the devices of a tensor group
([meshes](meshes.md#sequence-parallelism)), so *temporaries* change by 11 % at most. By the longer time, a step with
`tensor` 2 takes 11 % less than with `fsdp` alone for the 70B model on v5p, and 8 % less for the 32B model on v6e.
`tensor` 4 takes as long as `tensor` 2 for 70B and 6 % longer for 32B.

Rows of {LONG:,} tokens: the smallest step has as many rows as `fsdp`. For the 70B model these are 16 rows with `tensor`
4, 32 with `sequence` 2 and 64 with `fsdp` alone, at the same tokens/s/chip. `tensor` 4 takes 42 GiB, `sequence` 2 takes
78: its step has twice the tokens per chip, and `sequence` does not shard the state. Two meshes do not fit (compiled
before the gathers of weights became asynchronous): `sequence` 4 for 70B on v5p, 101.7 of 95.7 GiB, and `sequence` 2 for
32B on v6e, at least 43.5 of 31.2 GiB.

`--search-mesh` compiles the step for `tensor` 1, 2, 4 and 8 and sorts the meshes. This took 17 minutes on two shared
CPU cores, before the gathers of weights became asynchronous:

<!-- needs: minutes -->

    gram-jax plan gram-qwen3-1.7b-finetune --model-config qwen3-32b --topology v6e:8x8 --set execution.attention=auto \\
        --set batch.batch_size=256 --set batch.gradient_accumulation_steps=1 --search-mesh tensor""",
    "options": OPTIONS_TEXT,
    "parts": """\
Milliseconds of the column *compiler*. *products*: matrix products of the layers; *rope*: rotary positions; *attention
layout*: copies and transpositions around attention's kernels; *head*: logits and loss; *other*: loops over layers and
the rest. *products at*: share of the peak that the products reach, recomputed ones counted. *all at*: the layers' model
FLOPs over the peak and over all time but the head's.""",
}


if __name__ == "__main__":
    main()
