"""Collectives of a compiled program, read from its HLO text: their number and bytes.

A scanned layer is written once and runs many times, so collectives in a loop count by its trips; of a conditional, the
branch with the most traffic counts. A start and its done are one collective, also if a loop runs in between.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from gram_jax.plan.hlo import HloModule, Instruction

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
CALLS = ("call", "call-start")

_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+([0-9]+)[a-z0-9]*)\[([0-9,]*)\]")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_GROUPS = re.compile(r"\b(?:replica_groups|source_target_pairs)=(\{(?:\{[0-9,]*\},?)*\}|\[[^ ]*)")
_IOTA = re.compile(r"\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?(:\(\d+\)\d+)?")


@dataclass(frozen=True)
class Traffic:
    """count: calls; payload: bytes of the array that the devices of a group put together, summed over the calls;
    links, network: bytes that reach each device at least, inside its slice and from other slices;
    asynchronous_links, asynchronous_network: part of these whose collectives have separate start and done instructions,
    so that other work can run in between.
    """

    count: int = 0
    payload: float = 0.0
    links: float = 0.0
    network: float = 0.0
    asynchronous_links: float = 0.0
    asynchronous_network: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, trips: float) -> "Traffic":
        """The traffic of `trips` runs."""
        return Traffic(*(value * trips for value in astuple(self)))

    def as_asynchronous(self) -> "Traffic":
        """This traffic, all of it asynchronous."""
        return replace(self, asynchronous_links=self.links, asynchronous_network=self.network)


def collectives(module: HloModule, slices: Sequence[int] = ()) -> dict[str, Traffic]:
    """Traffic of one run of a program by kind of collective.

    slices: the slice of every device, in the order in which the program numbers them; () for one.
    """
    computations = module.computations

    @cache
    def of(name: str) -> dict[Any, tuple[str, Traffic]]:
        """(kind, traffic) of every collective that a computation runs, each under a key of its own."""
        found: dict[Any, tuple[str, Traffic]] = {}
        for label, this in computations[name].items():
            kind = this.opcode.removesuffix("-start")
            if kind in KINDS:
                shown = "reduce-scatter" if name.startswith(SCATTERED) else kind
                traffic = _traffic(shown, this, computations[name], slices)
                key = _key(label, kind, this)
                if this.opcode.endswith("-start") or kind == "send" or key[0] == PIECE:
                    traffic = traffic.as_asynchronous()
                found[key] = shown, traffic
            elif this.opcode == "while":
                trips = module.trips(this)
                for key, (kind, traffic) in of(dict(this.called)["body"]).items():
                    # A collective started before the loop runs once, even if several iterations hold parts of it.
                    if key not in found:
                        found[label, key] = kind, traffic.times(trips)
            elif this.opcode == "conditional":
                branches = [of(called) for _, called in this.called]
                most = max(branches, key=lambda b: sum(t.links + t.network for _, t in b.values()))
                found |= {(label, key): part for key, part in most.items()}
            elif not this.opcode.endswith(("-update", "-done")):
                apart = this.opcode.endswith("-start")  # such as a call on a SparseCore
                for role, called in this.called:
                    if role in ("calls", "called_computations") or this.opcode in CALLS:
                        for key, (kind, traffic) in of(called).items():
                            own = key if key[0] == PIECE else (label, key)
                            found[own] = kind, traffic.as_asynchronous() if apart else traffic
        return found

    total: dict[str, Traffic] = {}
    for kind, traffic in of(module.entry).values():
        total[kind] = total.get(kind, Traffic()) + traffic
    return total


def _key(label: str, kind: str, this: Instruction) -> tuple[Any, ...]:
    """Identifies a collective of a computation.

    A TPU's compiler splits an asynchronous collective into pieces and fuses them with concurrent products. Every piece
    repeats the whole instruction, and all of them have the same chain_id.
    """
    chain = re.search(r'chain_id="\d+"', this.attributes)
    if chain is None:
        return ("", label)
    channel = re.search(r"channel_id=\d+", this.attributes)
    shape = tuple(_ARRAY.findall(this.type))  # without its layout, which differs between pieces
    return (PIECE, kind, shape, channel and channel[0], chain[0])


def _traffic(
    kind: str, this: Instruction, here: Mapping[str, Instruction], slices: Sequence[int]
) -> Traffic:
    """Lower bound of what one call moves, for any algorithm.

    With op the operand's bytes, g devices in a group, s slices that it spans and p = g / s: an
    all-gather brings op (g - 1) to every device; a reduce-scatter op (g - 1) / g; an all-reduce is
    both, one after the other. Between slices the p devices of a slice share the work.
    """
    names = re.findall(r"%([\w.\-]+)", this.operands)
    op = sum(type_bytes(here[name].type) for name in names if name in here)
    groups = _groups(this.attributes)
    if kind == "send":
        return Traffic(1, op, 0, op)
    if kind == "collective-permute":
        crosses = any(slices and slices[a] != slices[b] for a, b in groups)
        return Traffic(1, op, 0 if crosses else op, op if crosses else 0)
    group = groups[0] if groups else range(len(slices) or 1)
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


def _groups(attributes: str) -> list[list[int]]:
    """Device numbers of every group; [] if no groups are written, which means all devices.

    Written as `{{0,1},{2,3}}`, as an iota `[2,2]<=[4]` that may be transposed, or as axes of a mesh,
    `mesh['a'=2,'b'=2] {'b'}`. Raises ValueError for anything else.
    """
    if mesh := _MESH.search(attributes):
        sizes = {name: int(size) for name, size, _ in _AXIS.findall(mesh[1])}
        named = _AXIS.findall(mesh[2])
        if "device_ids" in mesh[1] or any(part for *_, part in named):
            raise ValueError(f"unknown form of replica groups: {mesh[0]}")
        axes = [list(sizes).index(name) for name, *_ in named]
        rest = [at for at in range(len(sizes)) if at not in axes]
        numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        members = math.prod(numbers.shape[at] for at in axes)
        return numbers.transpose(rest + axes).reshape(-1, members).tolist()
    found = _GROUPS.search(attributes)
    if not found:
        return []
    if iota := _IOTA.match(found[1]):
        shape, dims = _integers(iota[1]), _integers(iota[2])
        order = _integers(iota[3]) if iota[3] else range(len(dims))
        return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
    if found[1].startswith("["):
        raise ValueError(f"unknown form of replica groups: {found[0]}")
    return [_integers(part) for part in re.findall(r"\{([0-9,]+)\}", found[1])]


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def type_bytes(text: str) -> float:
    """Bytes of a type such as bf16[8,128]{1,0} or of a tuple of them, without a layout's padding."""
    return sum(
        _BYTES.get(name, max(int(bits or 8), 8) / 8) * math.prod(_integers(dims))
        for name, bits, dims in _ARRAY.findall(text)
    )
