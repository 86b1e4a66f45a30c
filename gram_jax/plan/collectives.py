"""Collectives of a compiled program, read from its HLO text: their number and bytes.

A scanned layer is written once and runs many times, so collectives in a loop count by its trips; of a conditional, the
branch with the most traffic counts. A start and its done are one collective.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)

# A TPU's compiler writes a reduce-scatter as a fusion: an all-reduce of which each device cuts out its part.
SCATTERED = "all-reduce-scatter"
PIECE = "piece"

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|branch_computations|true_computation|"
                     r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"\b(replica_groups|source_target_pairs)=(\{(?:\{[0-9,]*\},?)*\}|\[[^ ]*)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?(:\(\d+\)\d+)?")
_IOTA = re.compile(r"\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")


@dataclass(frozen=True)
class Traffic:
    """count: calls; payload: bytes of the array that the devices of a group put together, summed over the calls;
    links, network: bytes that reach each device at least, inside its slice and from other slices.
    """

    count: int = 0
    payload: float = 0.0
    links: float = 0.0
    network: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.count + other.count,
            self.payload + other.payload,
            self.links + other.links,
            self.network + other.network,
        )

    def times(self, trips: int) -> "Traffic":
        """The traffic of `trips` runs."""
        return Traffic(
            self.count * trips, self.payload * trips, self.links * trips, self.network * trips
        )


@dataclass
class Instruction:
    """A line of HLO. called: (role, computation) of every computation that it runs."""

    opcode: str
    type: str
    operands: str
    text: str
    called: list[tuple[str, str]] = field(default_factory=list)


def collectives(hlo: str, slices: Sequence[int] = ()) -> dict[str, Traffic]:
    """Traffic of one run of a program by kind of collective.

    slices: the slice of every device, in the order in which the program numbers them; () for one.
    """
    computations, entry = parse_hlo(hlo)

    @cache
    def of(name: str) -> dict[Any, tuple[str, Traffic]]:
        """(kind, traffic) of every collective that a computation runs, each under a key of its own."""
        found: dict[Any, tuple[str, Traffic]] = {}
        for label, this in computations[name].items():
            kind = this.opcode.removesuffix("-start")
            if kind in KINDS:
                found[_key(label, kind, this)] = (
                    "reduce-scatter" if name.startswith(SCATTERED) else kind,
                    _traffic(name, kind, this, computations[name], slices),
                )
            elif this.opcode == "while":
                trips = _trips(this, computations)
                for key, (kind, traffic) in of(dict(this.called)["body"]).items():
                    found[label, key] = kind, traffic.times(trips)
            elif this.opcode == "conditional":
                branches = [of(called) for role, called in this.called]
                most = max(branches, key=lambda b: sum(t.links + t.network for _, t in b.values()))
                found |= {(label, key): part for key, part in most.items()}
            elif not this.opcode.endswith(("-update", "-done")):
                for role, called in this.called:
                    if role in ("calls", "called_computations") or this.opcode == "call":
                        for key, part in of(called).items():
                            found[key if key[0] == PIECE else (label, key)] = part
        return found

    total: dict[str, Traffic] = {}
    for kind, traffic in of(entry).values():
        total[kind] = total.get(kind, Traffic()) + traffic
    return total


def _key(label: str, kind: str, this: Instruction) -> tuple[Any, ...]:
    """Identifies a collective of a computation.

    A TPU's compiler cuts an asynchronous collective into pieces that it fuses with concurrent products. Every piece
    repeats the whole instruction, and all of them carry one chain_id.
    """
    chain = re.search(r'chain_id="\d+"', this.text)
    if chain is None:
        return ("", label)
    channel = re.search(r"channel_id=\d+", this.text)
    shape = tuple(_ARRAY.findall(this.type))  # without its layout, which differs between pieces
    return (PIECE, kind, shape, channel and channel[0], chain[0])


def parse_hlo(hlo: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """(computations by name, each with its instructions by name; the entry's name)."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, here = "", None
    for raw in hlo.splitlines():
        line = raw.strip()
        if here is None or not raw.startswith(" "):
            head = _COMPUTATION.match(line)
            if head and "->" in line:
                here = computations.setdefault(head[1], {})
                entry = head[1] if line.startswith("ENTRY") else entry
            continue
        if name := _NAME.match(line):
            here[name[1]] = _instruction(line[name.end() :])
    return computations, entry


def _instruction(text: str) -> Instruction:
    """Of `TYPE opcode(OPERANDS), attributes`; a tuple's type holds brackets and spaces."""
    text = re.sub(r"/\*[^*]*\*/", "", text)
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    called = [
        (role, name.strip().lstrip("%"))
        for role, names in _CALLED.findall(text, closing)
        for name in names.strip("{}").split(",")
    ]
    return Instruction(
        text[end:opening].strip(), text[:end], text[opening + 1 : closing - 1], text, called
    )


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at + 1
    raise ValueError(f"brackets do not close in {text[:200]}")


def _trips(loop: Instruction, computations: Mapping[str, Mapping[str, Instruction]]) -> int:
    """Number of trips of a loop: noted by XLA, else the only constant of its condition."""
    if noted := _TRIPS.search(loop.text):
        return int(noted[1])
    condition = dict(loop.called)["condition"]
    limits = [
        int(i.operands)
        for i in computations[condition].values()
        if i.opcode == "constant" and re.fullmatch(r"[su]\d+\[\]\S*", i.type)
    ]
    return limits[0] if len(limits) == 1 else 1


def _traffic(
    computation: str,
    kind: str,
    this: Instruction,
    here: Mapping[str, Instruction],
    slices: Sequence[int],
) -> Traffic:
    """Lower bound of what one call moves, for any algorithm.

    With op the operand's bytes, g devices in a group, s slices that it spans and p = g / s: an
    all-gather brings op (g - 1) to every device; a reduce-scatter op (g - 1) / g; an all-reduce is
    both, one after the other. Between slices the p devices of a slice share the work.
    """
    if computation.startswith(SCATTERED):
        kind = "reduce-scatter"
    names = re.findall(r"%([\w.\-]+)", this.operands)
    op = sum(type_bytes(here[name].type) for name in names if name in here)
    groups = _groups(this.text)
    if kind == "send":
        return Traffic(1, op, 0, op)
    if kind == "collective-permute":
        crosses = any(slices and slices[a] != slices[b] for a, b in groups)
        return Traffic(1, op, 0 if crosses else op, op if crosses else 0)
    group = groups[0] if len(groups) else list(range(len(slices) or 1))
    g = len(group)
    s = len({slices[i] for i in group}) if slices else 1
    p = g / s
    within, between = {
        "all-gather": (op * (g - s), op * (s - 1)),
        "reduce-scatter": (op * (p - 1) / p, op / p * (s - 1) / s),
        "all-reduce": (2 * op * (p - 1) / p, 2 * op / p * (s - 1) / s),
        "all-to-all": (op * (p - 1) / g, op * (g - p) / g),
        "ragged-all-to-all": (op * (p - 1) / g, op * (g - p) / g),
        "collective-broadcast": (op, 0 if s == 1 else op),
    }[kind]
    return Traffic(1, op * g if kind == "all-gather" else op, within, between)


def _groups(text: str) -> list[list[int]]:
    """Device numbers of every group.

    Written as `{{0,1},{2,3}}`, as an iota `[2,2]<=[4]` that may be transposed, or as axes of a mesh,
    `mesh['a'=2,'b'=2] {'b'}`. [] if there are none: all devices.
    """
    if mesh := _MESH.search(text):
        sizes = {name: int(size) for name, size, _ in _AXIS.findall(mesh[1])}
        named = _AXIS.findall(mesh[2])
        if "device_ids" in mesh[1] or any(part for *_, part in named):
            raise ValueError(f"replica groups of a kind that is not known here: {mesh[0]}")
        axes = [list(sizes).index(name) for name, *_ in named]
        rest = [at for at in range(len(sizes)) if at not in axes]
        numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        members = math.prod(numbers.shape[at] for at in axes)
        return numbers.transpose(rest + axes).reshape(-1, members).tolist()
    found = _GROUPS.search(text)
    if not found:
        return []
    if iota := _IOTA.match(found[2]):
        shape, dims = ([int(n) for n in part.split(",")] for part in iota.groups()[:2])
        numbers = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            numbers = numbers.transpose([int(n) for n in iota[3].split(",")])
        return numbers.reshape(shape).tolist()
    if found[2].startswith("["):
        raise ValueError(f"replica groups of a kind that is not known here: {found[0]}")
    return [[int(n) for n in part.split(",")] for part in re.findall(r"\{([0-9,]+)\}", found[2])]


def type_bytes(text: str) -> float:
    """Bytes of a type such as bf16[8,128]{1,0} or of a tuple of them, without a layout's padding."""
    total = 0.0
    for name, dims in _ARRAY.findall(text):
        size = _BYTES.get(name)
        if size is None:
            bits = re.search(r"\d+", name)
            size = max(int(bits[0]) if bits else 8, 8) / 8
        total += size * math.prod(int(n) for n in dims.split(",") if n)
    return total
