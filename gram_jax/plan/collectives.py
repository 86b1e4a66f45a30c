"""Collectives of a compiled program, read from its HLO text: how many, and how many bytes travel.

A scanned layer is written once and runs many times, so what a loop holds counts by the loop's trips;
of a conditional the branch counts that moves most. A start and its done are one collective.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|branch_computations|true_computation|"
                     r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"\b(replica_groups|source_target_pairs)=(\{(?:\{[0-9,]*\},?)*\}|\[[^ ]*)")
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
        """The same, so many times."""
        return Traffic(
            self.count * trips, self.payload * trips, self.links * trips, self.network * trips
        )


@dataclass
class Instruction:
    """A line of HLO. called: (role, computation) of everything that it runs."""

    opcode: str
    type: str
    operands: str
    text: str
    called: list[tuple[str, str]] = field(default_factory=list)


def collectives(hlo: str, slices: Sequence[int] = ()) -> dict[str, Traffic]:
    """Traffic of one run of a program by kind of collective. slices: slice of every device, in the program's order."""
    computations, entry = parse_hlo(hlo)
    found: dict[str, dict[str, Traffic]] = {}

    def of(name: str) -> dict[str, Traffic]:
        if name not in found:
            found[name] = _add(
                part
                for instruction in computations[name].values()
                for part in of_instruction(instruction, computations[name])
            )
        return found[name]

    def of_instruction(this: Instruction, here: Mapping[str, Instruction]):
        kind = this.opcode.removesuffix("-start")
        if kind in KINDS:
            yield {kind: _traffic(kind, this, here, slices)}
        elif this.opcode == "while":
            for role, name in this.called:
                yield (
                    {k: t.times(_trips(this, computations)) for k, t in of(name).items()}
                    if (role == "body")
                    else {}
                )
        elif this.opcode == "conditional":
            branches = [of(name) for _, name in this.called]
            yield max(branches, key=lambda b: sum(t.links + t.network for t in b.values()))
        elif not this.opcode.endswith(("-update", "-done")):
            for role, name in this.called:
                if role in ("calls", "called_computations") or this.opcode == "call":
                    yield of(name)

    return of(entry)


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
    """How often a loop runs: XLA notes it; else the only constant of its condition is the limit."""
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
    kind: str, this: Instruction, here: Mapping[str, Instruction], slices: Sequence[int]
) -> Traffic:
    """What one call moves, however clever the algorithm.

    With op the operand's bytes, g devices in a group, s slices that it spans and p = g / s: an
    all-gather brings op (g - 1) to every device; a reduce-scatter op (g - 1) / g; an all-reduce is
    both, one after the other. Between slices the p devices of a slice share the work.
    """
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
    """Device numbers of every group, of `{{0,1},{2,3}}` or `[2,2]<=[4]` (an iota, maybe transposed)."""
    found = _GROUPS.search(text)
    if not found:
        return []
    if iota := _IOTA.match(found[2]):
        shape, dims = ([int(n) for n in part.split(",")] for part in iota.groups()[:2])
        numbers = np.arange(np.prod(dims)).reshape(dims)
        if iota[3]:
            numbers = numbers.transpose([int(n) for n in iota[3].split(",")])
        return numbers.reshape(shape).tolist()
    return [[int(n) for n in part.split(",")] for part in re.findall(r"\{([0-9,]+)\}", found[2])]


def type_bytes(text: str) -> float:
    """Bytes of a type such as bf16[8,128]{1,0} or of a tuple of them, without a layout's padding."""
    total = 0.0
    for name, dims in _ARRAY.findall(text):
        size = _BYTES.get(name)
        if size is None:
            size = max(int(re.search(r"\d+", name)[0]), 8) / 8
        total += size * np.prod([int(n) for n in dims.split(",") if n], dtype=float)
    return total


def _add(parts) -> dict[str, Traffic]:
    total: dict[str, Traffic] = {}
    for part in parts:
        for kind, traffic in part.items():
            total[kind] = total.get(kind, Traffic()) + traffic
    return total
