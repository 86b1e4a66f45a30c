"""The TPU compiler's estimate of the time of each operation of a program, by kind of work and by source line.

libtpu annotates the operations of a scheduled program with `estimated_cycles`, from its own cost model. The estimate
leaves out collectives, asynchronous copies and Pallas kernels, and assumes that no operation waits for another. A loop
counts once per iteration; a conditional counts as its most expensive branch.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gram_jax.plan.hlo import Frame, HloModule, Instruction

PRODUCTS = "products of the layers"
ROPE = "rotary positions"
LAYOUT = "attention, without its kernels"
NORMS = "norms"
HEAD = "head and loss"
OPTIMIZER = "optimizer and clipping"
SCAN = "stacks of the layers' scan"
OTHER = "other"
KINDS = (PRODUCTS, ROPE, LAYOUT, NORMS, HEAD, OPTIMIZER, SCAN, OTHER)

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_PACKAGE = "gram_jax/"
# By file in gram_jax; the innermost call that is in this table decides.
_OF_FILES = {
    "model/rope.py": ROPE,
    "losses.py": HEAD,
    "model/heads.py": HEAD,
    "training/optimizer.py": OPTIMIZER,
    "training/compact_adam.py": OPTIMIZER,
}


@dataclass(frozen=True)
class Operation:
    """An operation of a program.

    kind: one of KINDS. place: its line in gram_jax, such as "losses.py:120 _piece_nll", else its name in the program.
    type: type of its result. runs: number of its executions in one run of the program. cycles: estimate for all of
    them together.
    """

    name: str
    kind: str
    place: str
    type: str
    cycles: int
    runs: int


def operations(module: HloModule) -> list[Operation]:
    """Operations with an estimate, the most expensive first; [] for compilers other than libtpu."""
    found = [one for one in _of(module, module.entry) if one.cycles]
    return sorted(found, key=lambda one: -one.cycles)


def pallas_calls(module: HloModule) -> int:
    """Number of Pallas kernels in the program's text, which have no estimate."""
    return sum(
        "tpu_custom_call" in this.attributes
        for computation in module.computations.values()
        for this in computation.values()
    )


def _of(module: HloModule, name: str) -> Iterator[Operation]:
    for label, this in module.computations.get(name, {}).items():
        called = dict(this.called)
        if this.opcode == "while":
            trips = module.trips(this)
            for one in _of(module, called["body"]):
                yield replace(one, cycles=one.cycles * trips, runs=one.runs * trips)
        elif this.opcode == "conditional":
            branches = [list(_of(module, branch)) for _, branch in this.called]
            yield from max(branches, key=lambda b: sum(one.cycles for one in b), default=[])
        elif this.opcode in ("call", "async-start"):
            for _, part in this.called:
                yield from _of(module, part)
        elif noted := _CYCLES.search(this.attributes):
            frames = [frame for frame in module.stack(this) if _PACKAGE in frame.file]
            kind = _kind(this, frames)
            yield Operation(label, kind, _place(this, frames), this.type, int(noted[1]), 1)


def _kind(this: Instruction, frames: Sequence[Frame]) -> str:
    files = [_file(frame) for frame in frames]
    innermost = {"model/matmul.py": PRODUCTS, "training/step.py": OPTIMIZER}
    if files and files[0] in innermost:
        return innermost[files[0]]
    for file, frame in zip(files, frames, strict=True):
        if frame.function == "rms_norm":
            return NORMS
        if file.startswith("model/attention/"):
            return LAYOUT
        if file in _OF_FILES:
            return _OF_FILES[file]
    name = _OP_NAME.search(this.attributes)
    if name and re.search(r"while/body/(closed_call/)?dynamic_(update_)?slice$", name[1]):
        return SCAN
    return OTHER


def _place(this: Instruction, frames: Sequence[Frame]) -> str:
    if frames:
        return f"{_file(frames[0])}:{frames[0].line} {frames[0].function}"
    name = _OP_NAME.search(this.attributes)
    return name[1] if name else this.opcode


def _file(frame: Frame) -> str:
    """Path of a source file inside the package."""
    return Path(frame.file).as_posix().rpartition(_PACKAGE)[2]
