"""A plan as tables, and as plain values for other programs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from gram_jax.errors import RecipeError
from gram_jax.formatting import format_bytes, format_count, format_seconds
from gram_jax.plan.cycles import KINDS
from gram_jax.plan.plan import KERNEL_EFFICIENCY, MemoryFit, ProgramPlan
from gram_jax.plan.topology import PlanTarget

BOUNDS = {
    "compute": "the chips' bf16 or f32 peak",
    "memory": "state in and out, weights once a pass",
    "interconnect": "bytes of collectives over all links",
    "network": "bytes between slices",
}
# Title, columns and rows.
PlanTable = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]


def plan_heading(plan: ProgramPlan) -> str:
    """Program, topology and mesh in a line."""
    mesh = " x ".join(f"{name} {size}" for name, size in mesh_sizes(plan.target).items())
    return f"{plan.program.name} on {plan.target.topology.name}: {mesh or 'one device'}"


def mesh_sizes(target: PlanTarget) -> dict[str, int]:
    """Axes of the mesh that are larger than 1."""
    return {name: size for name, size in target.placement.mesh.shape.items() if size > 1}


def mesh_line(plan: ProgramPlan) -> str:
    """Mesh, time, memory and collectives of one plan, for a list of several."""
    name = " x ".join(f"{axis} {size}" for axis, size in mesh_sizes(plan.target).items())
    if not plan.fit.fits:
        return f"  {name}: {does_not_fit(plan.fit)}"
    moved = format_bytes(sum(t.links + t.network for t in plan.traffic.values()))
    parts = [f"{format_bytes(plan.fit.needed)} of memory", f"{moved} by collectives"]
    if plan.estimate is not None:
        least, most = plan.estimate.forecast
        parts.insert(0, f"{_ms(least)} to {_ms(most)} by the compiler's estimate")
    elif plan.bound:
        parts.insert(0, f"at least {_ms(plan.seconds[plan.bound])} ({plan.bound})")
    return f"  {name}: {', '.join(parts)}"


def plan_tables(plan: ProgramPlan, *, operations: int = 0) -> Iterator[PlanTable]:
    """Memory; for a program that fits also collectives, work and the compiler's estimate.

    operations: number of the most expensive operations to list.
    """
    yield "memory of a device", ("", ""), memory_rows(plan)
    if not plan.fit.fits:
        return
    if plan.traffic:
        columns = (
            *("collectives of a step", "calls", "payload", "by links", "by network"),
            "asynchronous",
        )
        rows = [
            (
                *(kind, t.count, format_bytes(t.payload), format_bytes(t.links)),
                *(
                    format_bytes(t.network),
                    format_bytes(t.asynchronous_links + t.asynchronous_network),
                ),
            )
            for kind, t in sorted(plan.traffic.items())
        ]
        yield "", columns, rows
    yield "work", ("", ""), work_rows(plan)
    if plan.estimate is None:
        return
    yield "time by the compiler's estimate, nothing was run", ("", "", ""), estimate_rows(plan)
    if operations:
        columns = ("most expensive operations", "runs", "kind", "line", "result")
        rows = [
            (_ms(one.cycles / clock_of(plan)), one.runs, one.kind, one.place, one.type[:40])
            for one in plan.estimate.operations[:operations]
        ]
        yield "", columns, rows


def clock_of(plan: ProgramPlan) -> float:
    """Cycles a second of the estimate."""
    assert plan.target.chip is not None and plan.target.chip.clock is not None
    return plan.target.chip.clock


def estimate_rows(plan: ProgramPlan) -> list[tuple[Any, ...]]:
    """Time by kind of work, efficiency, and a forecast with what it assumes."""
    found = plan.estimate
    if found is None:
        return []
    rows = [
        (kind, _ms(found.by_kind[kind]), f"{found.by_kind[kind] / found.compiled:.0%}")
        for kind in KINDS
        if kind in found.by_kind
    ]
    least, most = found.forecast
    return [
        *rows,
        ("sum, without collectives and attention's kernels", _ms(found.compiled), ""),
        ("efficiency of the layers' products", "", f"{found.products_efficiency:.0%}"),
        ("efficiency of all but the head (model FLOPs)", "", f"{found.efficiency:.0%}"),
        (f"attention's kernels, at {KERNEL_EFFICIENCY:.0%} of the peak", _ms(found.kernels), ""),
        ("collectives, at full link speed", _ms(found.links), ""),
        ("  of these, synchronous", _ms(found.synchronous), ""),
        ("forecast, if asynchronous collectives overlap with other work", _ms(least), ""),
        ("forecast, if no collective overlaps", _ms(most), ""),
    ]


def compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> PlanTable:
    """Memory, collectives and times of two plans (plan_values), with the change.

    Raises RecipeError if one of them has another form.
    """
    try:
        rows = [
            (label, show(a), show(b), f"{b / a - 1:+.1%}" if a else "")
            for (label, show, a), (_, _, b) in zip(_figures(old), _figures(new), strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"--against: expected the output of this version's gram-jax plan --json, of a program that fits; "
            f"missing: {error}"
        ) from error
    return "compared", ("", "before", "now", "change"), rows


def _figures(plan: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[float], str], float]]:
    memory, traffic = plan["memory"], plan["collectives"].values()
    for name in ("arguments", "temporaries", "needed"):
        yield name, format_bytes, memory[name] or 0
    yield "collectives, calls", "{:,.0f}".format, sum(t["count"] for t in traffic)
    moved = sum(t["links"] + t["network"] for t in traffic)
    yield "collectives, received", format_bytes, moved
    times = plan["estimate"] or {"by_kind": {}, "forecast": (0, 0), "synchronous": 0}
    for kind in KINDS:
        yield kind, _ms, times["by_kind"].get(kind, 0)
    yield "sum of these", _ms, sum(times["by_kind"].values())
    yield "synchronous collectives", _ms, times["synchronous"]
    yield "forecast, asynchronous collectives overlap", _ms, times["forecast"][0]
    yield "forecast, no collective overlaps", _ms, times["forecast"][1]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def memory_rows(plan: ProgramPlan) -> list[tuple[Any, ...]]:
    """Rows about the memory of one device."""
    fit, leaves = plan.fit, plan.program.state_leaves
    rows = [("arguments (weights, optimizer state, batch)", format_bytes(fit.arguments))]
    if fit.temporaries is not None:
        rows.append(("temporaries", format_bytes(fit.temporaries)))
        rows.append(("results that reuse no argument", format_bytes(fit.results)))
        if fit.peak is not None:
            rows.append(("peak, estimated by the compiler", format_bytes(fit.peak)))
        part = "all" if plan.donated == leaves else f"only {plan.donated} of the"
        state = f", {part} {leaves} arrays of the state" if leaves else ""
        rows.append(("donated", format_bytes(fit.donated) + state))
    if not fit.fits:
        rows.append(("verdict", does_not_fit(fit)))
    elif fit.capacity is not None:
        free = fit.capacity - fit.needed
        share = f" ({free / fit.capacity:.0%} of {format_bytes(fit.capacity)})"
        rows.append(("headroom", format_bytes(free) + share))
    return rows


def work_rows(plan: ProgramPlan) -> list[tuple[Any, ...]]:
    """Rows about FLOPs, lower bounds of the time, and compilation."""
    flops = plan.program.flops
    rows = [
        ("model FLOPs of a step", f"{flops.model:.4g}"),
        ("  layers", f"{flops.layers:.4g}"),
        ("  attention", f"{flops.attention:.4g}"),
    ]
    if flops.head:
        rows.append(("head, in addition", f"{flops.head:.4g}"))
    for name, seconds in plan.seconds.items():
        shown = f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
        rows.append((f"at least, by {name} ({BOUNDS[name]})", shown))
    if plan.bound and plan.tokens_per_second is not None:
        rows.append(("largest bound", plan.bound))
        rows.append(("tokens/s at that bound", format_count(plan.tokens_per_second)))
    return [*rows, ("compile time", format_seconds(plan.compile_seconds))]


def does_not_fit(fit: MemoryFit) -> str:
    """The verdict about a program that is too large.

    The compiler stops at the first memory that overflows, so the size that it names is a lower bound.
    """
    if fit.temporaries is None and fit.needed <= (fit.capacity or 0):
        return "does not fit: the compiler ran out of memory and does not say how much the program needs"
    least = "at least " if fit.temporaries is None else ""
    of = "an unknown amount" if fit.capacity is None else format_bytes(fit.capacity)
    return f"does not fit: needs {least}{format_bytes(fit.needed)} of {of}"


def plan_values(plan: ProgramPlan) -> dict[str, Any]:
    """Everything but the program itself, for JSON. Bytes, seconds, FLOPs."""
    fit, program = asdict(plan.fit) | {"fits": plan.fit.fits}, plan.program
    if plan.fit.fits and plan.fit.capacity is not None:
        fit["head_room"] = plan.fit.capacity - plan.fit.needed
    return {
        "program": program.name,
        "topology": plan.target.topology.name,
        "mesh": mesh_sizes(plan.target),
        "settings": dict(program.settings),
        "tokens": program.tokens,
        "memory": fit,
        "state": {"leaves": program.state_leaves, "donated": plan.donated},
        "collectives": {kind: asdict(t) for kind, t in sorted(plan.traffic.items())},
        "flops": asdict(program.flops) | {"model": program.flops.model},
        "seconds": dict(plan.seconds),
        "bound": plan.bound,
        "estimate": estimate_values(plan),
        "tokens_per_second": plan.tokens_per_second,
        "compile_seconds": plan.compile_seconds,
    }


def estimate_values(plan: ProgramPlan) -> dict[str, Any] | None:
    """The estimate for JSON: seconds, and the operations that take 99 % of them."""
    found = plan.estimate
    if found is None:
        return None
    shown, left = [], 0.99 * sum(one.cycles for one in found.operations)
    for one in found.operations:
        if left <= 0:
            break
        shown.append(asdict(one))
        left -= one.cycles
    return {
        "by_kind": dict(found.by_kind),
        "compiled": found.compiled,
        "kernels": found.kernels,
        "links": found.links,
        "synchronous": found.synchronous,
        "forecast": list(found.forecast),
        "products_efficiency": found.products_efficiency,
        "efficiency": found.efficiency,
        "operations": shown,
    }
