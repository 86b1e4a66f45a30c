"""The grid of the paper's claims: the order of its cells, runs that add up, and verdicts by rule. No training."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOMS = ("sizes", "cells", "pools", "work", "figures", "document", "run")


@pytest.fixture(scope="module")
def claims():
    """The benchmark's modules, which import each other by their bare names."""
    folder = str(Path(__file__).parents[1] / "benchmarks" / "claims")
    sys.path.insert(0, folder)
    before = set(sys.modules)
    try:
        yield {name: importlib.import_module(name) for name in ROOMS}
    finally:
        sys.path.remove(folder)
        for name in set(ROOMS) - before:
            sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of short made-up pairs."""
    folder = tmp_path / "data"
    (folder / "eval").mkdir(parents=True)

    def write(name: str, count: int, labeled: bool = True) -> None:
        both = ("chosen", "rejected") if labeled else ("response_a", "response_b")
        rows = [
            {"prompt": f"{name} {at}?", both[0]: f"yes {at}", both[1]: f"no {at} no"}
            for at in range(count)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("preference_train", 30)
    write("preference_valid", 8)
    write("unlabeled_train", 12, labeled=False)
    write("eval/harmless", 12)
    write("eval/other", 8)
    return folder


def test_the_grid_has_every_cell_once_and_the_main_four_first(claims):
    size, cells = claims["sizes"].SIZES["full"], claims["cells"]
    grid = cells.grid(size, size.seeds)
    assert len(set(grid)) == len(grid)
    assert grid[0] == cells.RAW
    assert {(c.kind, bool(c.unlabeled)) for c in grid[1:5]} == {
        (kind, stage) for kind in ("generative", "discriminative") for stage in (True, False)
    }
    assert {c.smoothing for c in grid if c.kind == "generative"} == set(cells.SMOOTHINGS)
    assert {c.unlabeled for c in grid} == set(cells.SHARES)


def run(claims, monkeypatch, data, out, *more: str, compute=None) -> list[str]:
    """The names of the cells that a run computes; training is left out."""
    computed = []

    def pretend(workshop, cell):
        computed.append(cell.name)
        if compute is not None:
            compute(len(computed))
        sets = {
            name: {"p": [0.6 if cell.kind == "generative" else 0.4] * len(pairs), "gap": []}
            for name, pairs in workshop.sets(cell).items()
        }
        return {"sets": sets, "training": None, "test_seconds": 0.0}

    monkeypatch.setattr(claims["work"].Workshop, "compute", pretend)
    monkeypatch.setattr(claims["work"].Workshop, "clear", lambda *_: None)
    words = ["run.py", data, out, "--size", "tiny", "--model", "tiny-random", *more]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    claims["run"].main()
    return computed


def test_runs_add_up_and_go_on_after_a_kill(claims, monkeypatch, data, tmp_path):
    out = tmp_path / "out"

    def killed(cell: int) -> None:
        if cell == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(claims, monkeypatch, data, out, compute=killed)
    assert len(list((out / "cells").glob("*.json"))) == 3
    # What a kill leaves of a file that was being written is no result.
    (out / "cells" / "0123.json.77.partial").write_text('{"name": "a half')
    second = run(claims, monkeypatch, data, out, "--cells", "3")
    third = run(claims, monkeypatch, data, out)
    size, cells = claims["sizes"].SIZES["tiny"], claims["cells"]
    names = [cell.name for cell in cells.grid(size, size.seeds)]
    assert second == names[3:6] and third == names[6:]
    assert run(claims, monkeypatch, data, out) == []


def test_what_a_cell_was_made_of_decides_whether_it_is_computed_again(
    claims, monkeypatch, data, tmp_path
):
    out = tmp_path / "out"
    run(claims, monkeypatch, data, out, "--cells", "2")
    valid = data / "preference_valid.jsonl"
    valid.write_text(valid.read_text().replace("yes 3", "yes and 3"))
    assert len(run(claims, monkeypatch, data, out, "--cells", "2")) == 2


def test_the_report_states_what_holds_and_what_has_not_been_run(
    claims, monkeypatch, data, tmp_path
):
    page = tmp_path / "claims.md"
    run(claims, monkeypatch, data, tmp_path / "out", "--cells", "5", "--markdown", page)
    text = page.read_text()
    assert "5 of " in text and "**not run yet**" in text
    row = next(line for line in text.splitlines() if "both with stage 1" in line)
    assert "+1.000 (+1.000 to +1.000)" in row and "**holds** (one seed only)" in row
    run(claims, monkeypatch, data, tmp_path / "out", "--markdown", page)
    assert "**not run yet**" not in page.read_text()
    assert (tmp_path / "claims-smoothing.svg").exists()


@pytest.mark.parametrize(
    ("right", "sharp", "own", "words"),
    [
        ((0.01, 0.2), (-0.1, -0.01), 0.6, "**holds**"),
        (
            (0.01, 0.2),
            (-0.1, -0.01),
            0.4,
            "**holds partly**: more accurate, but not to be told from a coin",
        ),
        ((0.01, 0.2), (0.01, 0.1), 0.6, "**holds partly**: more accurate, worse calibrated"),
        (
            (-0.1, 0.1),
            (-0.1, -0.01),
            0.6,
            "**holds partly**: better calibrated, accuracy cannot be told",
        ),
        (
            (-0.1, 0.1),
            (-0.1, -0.01),
            0.4,
            "**not enough evidence**: less sure than the other, but not to be told from a coin",
        ),
        ((-0.1, 0.1), (-0.1, 0.1), 0.6, "**not enough evidence**"),
        ((-0.01, 0.015), (-0.1, 0.1), 0.6, "**no difference** of more than 0.02 of accuracy"),
        ((-0.2, -0.1), (-0.1, 0.1), 0.6, "**does not hold**"),
        ((-0.2, -0.1), (-0.1, -0.05), 0.4, "**does not hold**"),
    ],
)
def test_verdicts_follow_from_intervals(claims, right, sharp, own, words):
    """own: the lower end of the better judge's accuracy."""
    estimates = [
        claims["figures"].Estimate(float(np.mean(bounds)), *bounds, (0.0, 0.0))
        for bounds in (right, sharp, (own, 0.9))
    ]
    assert claims["figures"].verdict(*estimates) == words


def test_balanced_weights_count_both_lengths_alike(claims):
    figures = claims["figures"]
    longer = np.array([1, 1, 1, -1, 0])
    weights = figures.length_balanced(longer)
    assert weights[longer == 1].sum() == weights[longer == -1].sum() == pytest.approx(1)
    assert weights[longer == 0].sum() == 0


def test_how_often_the_longer_response_is_preferred(claims):
    figures, cells = claims["figures"], claims["cells"]
    pools = SimpleNamespace(longer={"x": np.array([1, -1, -1, 0])}, prompts={"x": np.arange(4)})
    results = {cells.RAW: {"sets": {"x": {"p": [0.9, 0.9, 0.2, 0.9]}}}}
    longer = figures.of_the_longer(results, pools)
    assert longer[cells.RAW]["sets"]["x"]["p"][:3] == pytest.approx([0.9, 0.1, 0.8])
    terms = [(1.0, [cells.RAW])]
    found = figures.contrast(longer, pools, terms, ["x"], figures.accuracy)
    assert found.value == pytest.approx(2 / 3)  # the pair of equal lengths counts nothing
    shown = figures.contrast(results, pools, terms, ["x"], figures.accuracy)
    assert shown.value == pytest.approx(3 / 4)
