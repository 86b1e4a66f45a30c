"""A plan as tables, and as plain values for other programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from gram_jax.formatting import format_bytes, format_count, format_seconds
from gram_jax.plan.plan import MemoryFit, ProgramPlan

BOUNDS = {
    "compute": "the chips' bf16 or f32 peak",
    "memory": "state in and out, weights once a pass",
    "interconnect": "bytes of collectives over all links",
    "network": "bytes between slices",
}


class PlanTable(NamedTuple):
    """A table for a terminal."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def plan_heading(plan: ProgramPlan) -> str:
    """Program, topology and mesh in a line."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items()) or "one device"
    return f"{plan.program} on {plan.topology}: {mesh}"


def plan_tables(plan: ProgramPlan) -> Iterator[PlanTable]:
    """Memory; and of a program that fits, collectives and work."""
    yield PlanTable("memory of a device", ("", ""), memory_rows(plan))
    if not plan.fit.fits:
        return
    if plan.traffic:
        yield PlanTable(
            "",
            ("collectives of a step", "calls", "payload", "by links", "by network"),
            [
                (kind, t.count, *map(format_bytes, (t.payload, t.links, t.network)))
                for kind, t in sorted(plan.traffic.items())
            ],
        )
    yield PlanTable("work", ("", ""), work_rows(plan))


def memory_rows(plan: ProgramPlan) -> list[tuple[Any, ...]]:
    """Lines about the memory of one device."""
    fit = plan.fit
    rows = [("arguments (weights, optimizer state, batch)", format_bytes(fit.arguments))]
    if fit.temporaries is not None:
        rows.append(("temporaries", format_bytes(fit.temporaries)))
        rows.append(("results that reuse no argument", format_bytes(fit.results)))
        if fit.peak is not None:
            rows.append(("peak, estimated by the compiler", format_bytes(fit.peak)))
        rows.append(("donated", f"{format_bytes(fit.donated)}{_leaves(plan)}"))
    if fit.capacity is not None and fit.fits:
        free = fit.capacity - fit.needed
        share = f" ({free / fit.capacity:.0%} of {format_bytes(fit.capacity)})"
        rows.append(("head-room", format_bytes(free) + share))
    if not fit.fits:
        rows.append(("verdict", does_not_fit(fit)))
    return rows


def work_rows(plan: ProgramPlan) -> list[tuple[Any, ...]]:
    """Lines about FLOPs, lower bounds of the time, and compilation."""
    rows = [
        ("model FLOPs of a step", f"{plan.flops.model:.4g}"),
        ("  layers", f"{plan.flops.layers:.4g}"),
        ("  attention", f"{plan.flops.attention:.4g}"),
    ]
    if plan.flops.head:
        rows.append(("head, in addition", f"{plan.flops.head:.4g}"))
    for name, seconds in plan.seconds.items():
        rows.append((f"at least, by {name} ({BOUNDS[name]})", format_short(seconds)))
    if plan.bound and (speed := tokens_per_second(plan)) is not None:
        rows.append(("largest bound", plan.bound))
        rows.append(("tokens/s at that bound", format_count(speed)))
    return [*rows, ("compile time", format_seconds(plan.compile_seconds))]


def does_not_fit(fit: MemoryFit) -> str:
    """The answer for a program that is too large.

    The compiler stops at the first memory that overflows, so the size that it names is a lower bound.
    """
    least = "at least " if fit.temporaries is None else ""
    of = "an unknown amount" if fit.capacity is None else format_bytes(fit.capacity)
    return f"does not fit: needs {least}{format_bytes(fit.needed)} of {of}"


def tokens_per_second(plan: ProgramPlan) -> float | None:
    """Of all devices at the largest bound; padding counts as tokens."""
    return plan.tokens / plan.seconds[plan.bound] if plan.bound else None


def plan_values(plan: ProgramPlan) -> dict[str, Any]:
    """Everything but the program itself, for JSON. Bytes, seconds, FLOPs."""
    fit = asdict(plan.fit) | {"fits": plan.fit.fits}
    if plan.fit.fits and plan.fit.capacity is not None:
        fit["head_room"] = plan.fit.capacity - plan.fit.needed
    return {
        "program": plan.program,
        "topology": plan.topology,
        "mesh": dict(plan.mesh),
        "settings": dict(plan.settings),
        "tokens": plan.tokens,
        "memory": fit,
        "state": {"leaves": plan.state[0], "donated": plan.state[1]},
        "collectives": {kind: asdict(t) for kind, t in sorted(plan.traffic.items())},
        "flops": asdict(plan.flops) | {"model": plan.flops.model},
        "seconds": dict(plan.seconds),
        "bound": plan.bound,
        "tokens_per_second": tokens_per_second(plan),
        "compile_seconds": plan.compile_seconds,
    }


def format_short(seconds: float) -> str:
    """A duration below a minute, with three digits.

    >>> format_short(0.01234), format_short(2.5)
    ('12.3 ms', '2.5 s')
    """
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _leaves(plan: ProgramPlan) -> str:
    leaves, donated = plan.state
    if not leaves:
        return ""
    if donated == leaves:
        return f", all {leaves} arrays of the state"
    return f": only {donated} of the {leaves} arrays of the state"
