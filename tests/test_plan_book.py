"""benchmarks/plan_book.py without compiling: its cells are valid recipes, and a line shows what a plan holds."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from gram_jax.plan.cycles import HEAD, PRODUCTS

GIB = 2**30


@pytest.fixture
def plan_book(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("plan_book")


def test_every_cell_is_a_valid_recipe_and_has_a_key_of_its_own(plan_book):
    cells = plan_book.cells()
    assert len({cell.key() for cell in cells}) == len(set(cells)) == len(cells)


def plan(**estimate: float) -> dict[str, Any]:
    """The JSON of a plan."""
    return {
        "mesh": {"fsdp": 4},
        "memory": {
            "fits": True,
            "arguments": 2 * GIB,
            "temporaries": 3 * GIB,
            "head_room": 10.75 * GIB,
            "capacity": 15.75 * GIB,
        },
        "collectives": {"all-gather": {"count": 7, "links": GIB, "network": GIB}},
        "estimate": {
            "by_kind": {PRODUCTS: 0.3, HEAD: 0.1},
            "compiled": 0.4,
            "kernels": 0.05,
            "links": 0.05,
            "synchronous": 0.02,
            "forecast": [0.47, 0.5],
            "products_efficiency": 0.9,
            "efficiency": 0.6,
            **estimate,
        },
        "seconds": {"compute": 0.2},
        "tokens": 4 * 4096,
        "compile_seconds": 60,
    }


def test_a_line_has_the_parts_of_a_plan_and_what_is_missing_is_listed(plan_book):
    cell, other, *_ = plan_book.PARTS_OF
    lines = plan_book.book({cell: plan()}).splitlines()
    of_cell = "| 2.0 + 3.0 | 10.8 | 470-500 | 8.2k | 400 | 50 | 50 | 200 | 2.0 |"
    assert f"| {cell.model} | {cell.topology} | fsdp 4 {of_cell}" in lines
    parts = next(line for line in lines if line.startswith(f"| stage 1, {cell.model}"))
    assert "| 400 | 300 | 0 | 0 | 0 | 100 | 0 | 0 | 90% | 60% |" in parts
    missing = [line for line in lines if line.startswith("- ")]
    for line in missing:
        names = line.partition(": ")[2].split("; ")
        assert len(names) == len(set(names))
    assert any(f"{other.model} on {other.topology}" in line for line in missing)


def test_compiler_options_are_compared_with_those_of_the_chip(plan_book):
    (_, own), (label, changed), (_, failed), *_ = plan_book.option_cells()
    no_memory = {"fits": False, "arguments": 5, "needed": 5, "capacity": 10, "temporaries": None}
    done = {own: plan(), changed: plan(links=0.0, synchronous=0.0, forecast=[0.45, 0.45])}
    done[failed] = {"memory": no_memory, "estimate": None, "compile_seconds": 1}
    first, second, third = plan_book.options_rows(done)
    assert first[1:] == ["none", "400", "3.0", "50", "60.0%", "470-500"]
    assert second == ["", label, "400", "3.0", "0", "0.0%", "450"]
    assert "ran out of memory" in third[2] and len(third) == len(first)
