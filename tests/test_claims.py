"""The grid of the paper's claims: the order of its cells, resumed runs, intervals, and verdicts by rule.

One test trains: a grid of a tiny model that is killed twice.
"""

import importlib
import json
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from forks import Fork
from quick_programs import FLAGS

from gram_jax.recipes.reading import make_recipe

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"
MODULES = tuple(sorted(path.stem for path in FOLDER.glob("*.py")))


@pytest.fixture(scope="module")
def claims():
    """The benchmark's modules, which import each other by their bare names."""
    folder = str(FOLDER)
    sys.path.insert(0, folder)
    before = set(sys.modules)
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(folder)
        for name in set(MODULES) - before:
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


def grid_of(claims, name: str) -> list:
    size = claims["sizes"].SIZES[name]
    return claims["cells"].grid(size, size.seeds)


def test_the_grid_has_every_cell_once_and_the_main_four_first(claims):
    cells, grid = claims["cells"], grid_of(claims, "full")
    assert len(set(grid)) == len(grid)
    assert grid[0] == cells.RAW
    assert {(c.kind, bool(c.unlabeled)) for c in grid[1:5]} == {
        (kind, stage) for kind in ("generative", "discriminative") for stage in (True, False)
    }
    assert {c.smoothing for c in grid if c.kind == "generative"} == set(cells.SMOOTHINGS)
    assert {c.unlabeled for c in grid} == set(cells.SHARES)


def run(claims, monkeypatch, data, out, *more: str, compute_dtype=None) -> list[str]:
    """The names of the cells that a run computes, without training."""
    computed = []

    def pretend(workshop, cell):
        computed.append(cell.name)
        if compute_dtype is not None:
            compute_dtype(len(computed))
        sets = {
            name: {
                "p": [0.6 if cell.kind == "generative" else 0.4] * len(pairs),
                "gap": [0.0] * len(pairs),
            }
            for name, pairs in workshop.sets(cell).items()
        }
        return {"sets": sets, "training": None, "test_seconds": 0.0}

    monkeypatch.setattr(claims["work"].Workshop, "compute", pretend)
    monkeypatch.setattr(claims["work"].Workshop, "clear", lambda *_: None)
    words = ["run.py", data, out, "--size", "tiny", "--model", "tiny-random", *more]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    claims["run"].main()
    return computed


def test_runs_add_up_and_resume_after_a_kill(claims, monkeypatch, data, tmp_path):
    out = tmp_path / "out"

    def killed(cell: int) -> None:
        if cell == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(claims, monkeypatch, data, out, compute_dtype=killed)
    assert not logging.getLogger("gram_jax").handlers
    assert len(list((out / "cells").glob("*.json"))) == 3
    # A partly written file is no result.
    (out / "cells" / "0123.json.77.partial").write_text('{"name": "a half')
    second = run(claims, monkeypatch, data, out, "--cells", "3")
    third = run(claims, monkeypatch, data, out)
    names = [cell.name for cell in grid_of(claims, "tiny")]
    assert second == names[3:6] and third == names[6:]
    assert run(claims, monkeypatch, data, out) == []


def test_a_cell_is_computed_again_if_its_data_changed(claims, monkeypatch, data, tmp_path):
    out = tmp_path / "out"
    run(claims, monkeypatch, data, out, "--cells", "2")
    valid = data / "preference_valid.jsonl"
    valid.write_text(valid.read_text().replace("yes 3", "yes and 3"))
    assert len(run(claims, monkeypatch, data, out, "--cells", "2")) == 2


def test_a_cell_that_fails_is_named_at_the_end_and_the_others_are_computed(
    claims, monkeypatch, data, tmp_path, capsys
):
    names = [cell.name for cell in grid_of(claims, "tiny")]
    page, error = tmp_path / "claims.md", claims["run"].GramError

    def fails(cell: int) -> None:
        if cell == 2:
            raise error("too little of everything")

    with pytest.raises(SystemExit) as end:
        more = ("--cells", "4", "--markdown", page)
        run(claims, monkeypatch, data, tmp_path / "out", *more, compute_dtype=fails)
    assert names[1] in str(end.value) and names[2] not in str(end.value)
    assert f"{names[1]}: too little of everything" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "cells").glob("*.json"))) == 3 and page.exists()


# run.py with a SIGKILL from inside, because a signal from outside does not meet a given moment.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import run, work
from gram_jax.checkpoint.orbax import Checkpoints

place, count = sys.argv.pop(1), int(sys.argv.pop(1))
save, write_whole, times = Checkpoints.save, work.write_whole, []

def die(here):
    times.append(here)
    if times.count(place) == count:
        os.kill(os.getpid(), signal.SIGKILL)

def saving(checkpoints, step, state, **more):
    save(checkpoints, step, state, **more)
    die(f"saving step {step} of {checkpoints.folder.parent.name.partition('-')[0]}")

def writing(path, text):
    write_whole(path, text)
    die(f"writing {path.parent.name}")

Checkpoints.save, work.write_whole = saving, writing
run.main()
"""


WHOLE = "import sys; sys.path.insert(0, sys.argv.pop(1)); import run; run.main()"


@pytest.fixture
def real_run(data, program_folder, tmp_path):
    """Runs the tiny grid in a process of its own; killed: (where, at which time there)."""
    env = os.environ | {"XLA_FLAGS": FLAGS, "JAX_COMPILATION_CACHE_DIR": str(program_folder)}

    def start(out: Path, cells: int, killed: tuple[str, int] | None = None) -> None:
        more = ("--size", "tiny", "--model", "tiny-random", "--cells", cells)
        words = list(map(str, (FOLDER, *(killed or ()), data, out, *more)))
        output = tmp_path / "output.txt"
        done = Fork(KILLED if killed else WHOLE, words, env, tmp_path, output).wait(600)
        assert done == (-signal.SIGKILL if killed else 0), output.read_text()

    return start


def results_of(out: Path) -> dict[str, dict]:
    """The results of the cells, without times."""
    found = {}
    for path in (out / "cells").glob("*.json"):
        found[path.name] = row = json.loads(path.read_text())
        assert row["result"].pop("test_seconds") >= 0
        if row["result"]["training"]:
            assert row["result"]["training"].pop("step_seconds") > 0
    return found


def left_in(out: Path) -> list[str]:
    """Files that are kept beside the finished cells."""
    folders = ("runs", "starts", "draws", "sets")
    return sorted(str(path.relative_to(out)) for name in folders for path in (out / name).iterdir())


def test_a_grid_that_is_killed_in_training_and_in_scoring_gives_the_same_results(
    real_run, tmp_path
):
    """Four cells: both kinds, with stage 1 and without, and the starts that are kept for later cells."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    real_run(whole, 4)
    # The second judge starts from stage 1.
    real_run(out, 4, killed=("saving step 3 of finetune", 2))
    assert len(results_of(out)) == 3
    real_run(out, 1, killed=("writing sets", 2))
    assert len(results_of(out)) == 3
    assert "resuming from step" in (out / "log.txt").read_text()
    (asked,) = (out / "sets").iterdir()
    half = json.loads(asked.read_text())
    real_run(out, 1)
    assert results_of(out) == results_of(whole) and len(results_of(out)) == 4
    assert len(half) == 2 and half.items() <= results_of(out)[asked.name]["result"]["sets"].items()
    assert left_in(out) == left_in(whole)
    assert {name.split("/")[0] for name in left_in(out)} == {"starts"}


def test_a_cell_of_the_new_domain_is_evaluated_on_pairs_without_its_labels(
    claims, monkeypatch, data, tmp_path
):
    size, work = claims["sizes"].SIZES["tiny"], claims["work"]
    pools = claims["pools"].read_pools(size, data, "tiny-random", tmp_path / "lengths.json")
    cell, _ = claims["cells"].adapted(size, 1, 6)
    asked = []

    class Reader:
        def stream(self, pairs):
            for asks in pairs:
                asked.append(asks)
                yield SimpleNamespace(first=0.75, position_bias=0.0)

    monkeypatch.setattr(work.Workshop, "_trained", lambda *_: ("a model", {}))
    monkeypatch.setattr(work.Workshop, "_reader", lambda *_: Reader())
    workshop = work.Workshop(tmp_path, pools, "tiny-random", None)
    found = workshop.compute(cell)
    drawn = {pair.prompt for pair in pools.draw("domain", size.domain_labels[-1], 1)}
    assert len(asked) == len(found["sets"]["harmless"]["p"]) > 0
    assert drawn and not drawn & {prompt for prompt, _, _ in asked}
    once = len(asked)
    assert workshop.compute(cell)["sets"] == found["sets"] and len(asked) == once  # kept answers
    estimate = claims["figures"].contrast(
        {cell: found}, pools, [(1.0, [cell])], ["harmless"], claims["figures"].brier
    )
    assert estimate.by_seed == {1: pytest.approx(1 / 16)}


def test_first_stages_are_runs_of_their_own_with_recipes_that_can_be_read(claims, data, tmp_path):
    cells, work = claims["cells"], claims["work"]
    size = replace(claims["sizes"].SIZES["tiny"], first_stages=cells.FIRST_STAGES)
    pools = claims["pools"].read_pools(size, data, "tiny-random", tmp_path / "lengths.json")
    workshop = work.Workshop(tmp_path, pools, "tiny-random", None)
    arms = {cell.first: cell for cell in cells.by_first(size, 0)}
    assert len({workshop.key(cell) for cell in arms.values()}) == 4
    assert arms["pretrain"] == cells.generative(size, 0)
    stages = {}
    for first, cell in arms.items():
        last = work.run_of(cell, pools)
        for run in filter(None, (last, last.start)):
            recipe = make_recipe(workshop._values(run, "tiny-random", "out", "pairs.jsonl"))
            stages.setdefault(first, []).append(recipe.stage)
        assert bool(recipe.loss.order_consistency) == (first == "consistency")
        assert len(recipe.data.train) == (2 if first == "consistency" else 1)
    assert stages == {
        "pretrain": ["finetune", "pretrain"],
        "gram": ["finetune", "pretrain"],
        "corruptions": ["finetune", "finetune"],
        "consistency": ["finetune"],
    }
    first = work.run_of(arms["corruptions"], pools).start
    made = workshop._drawn(first)
    assert len(made) == first.count and {pair.label for pair in made} == {0}


def test_the_table_of_first_stages_compares_each_with_none(claims, monkeypatch, data, tmp_path):
    sizes = claims["sizes"].SIZES
    monkeypatch.setitem(
        sizes, "tiny", replace(sizes["tiny"], first_stages=claims["cells"].FIRST_STAGES)
    )
    page = tmp_path / "claims.md"
    run(claims, monkeypatch, data, tmp_path / "out", "--markdown", page)
    text = page.read_text().partition("## First stages")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == [
        f"| {name}" for name in ("none", *claims["cells"].FIRST_STAGES)
    ]
    shown = [[cell.removesuffix(" |")[:6] for cell in row[-2:]] for row in rows[1:]]
    same = ["+0.000"] * 2
    assert shown == [["-", "+0.000"], same, ["+0.000", "-"], same, same]


def test_the_seconds_of_a_resumed_run_include_all_steps(claims):
    rows = [
        {"num_tokens": 100, "tokens_per_second": 50.0},
        {"valid_loss": 1.0},
        {"num_tokens": 250, "tokens_per_second": 75.0},
    ]
    assert claims["work"].step_seconds(rows) == pytest.approx(2 + 2)


def test_the_report_states_what_holds_and_what_has_not_been_run(
    claims, monkeypatch, data, tmp_path
):
    page = tmp_path / "claims.md"
    run(claims, monkeypatch, data, tmp_path / "out", "--cells", "5", "--markdown", page)
    text = page.read_text()
    assert "5 of " in text and "**not run yet**" in text
    row = next(line for line in text.splitlines() if "both with stage 1" in line)
    assert "+1.000 (+1.000 to +1.000)" in row and "**one seed only**" in row
    run(claims, monkeypatch, data, tmp_path / "out", "--markdown", page)
    text = page.read_text()
    assert "**not run yet**" not in text and "**one seed only**" not in text.split("### How")[0]
    row = next(line for line in text.splitlines() if "both with stage 1" in line)
    assert "| **holds** |" in row
    assert (tmp_path / "claims-smoothing.svg").exists()


def test_the_rule_of_the_longer_response_guesses_between_equal_lengths(claims):
    size, longer = claims["sizes"].SIZES["tiny"], np.array([1, 1, -1, 0])
    pools = SimpleNamespace(
        longer={"x": longer}, prompts={"x": np.arange(4)}, size=size, outside=["x"]
    )
    report = claims["document"]._Report(Path("claims.md"), "tiny", "tiny-random", pools, {})
    (found,) = report._longest(["x"])
    assert found.value == 0.625


def test_every_row_of_the_report_names_its_seeds(claims, monkeypatch, data, tmp_path):
    page = tmp_path / "claims.md"
    run(claims, monkeypatch, data, tmp_path / "out", "--seeds", "1")
    run(claims, monkeypatch, data, tmp_path / "out", "--cells", "2", "--markdown", page)
    lines = page.read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    seeds = [row[["seeds" in name for name in head].index(True)] for head, row in _with_heads(rows)]
    assert set(seeds) == {"0", "0, 1", "not trained"}


def _with_heads(rows: list[list[str]]):
    """Each row of a table with seeds, and the first row of that table."""
    head: list[str] = []
    for row in rows:
        if "seeds" in row:
            head = row
        elif len(row) == len(head):
            yield head, row


def points(claims, seeds: dict[float, tuple[int, ...]]):
    """(results, series): judges of these smoothings and seeds, more confident the higher their seed."""
    size, cells = claims["sizes"].SIZES["tiny"], claims["cells"]
    found, values = {}, {}
    for value, there in seeds.items():
        values[f"{value:g}"] = [cells.by_smoothing(size, s, (value,))[0] for s in range(3)]
        for cell in values[f"{value:g}"]:
            if cell.seed in there:
                found[cell] = {"sets": {"x": {"p": [0.6 + 0.1 * cell.seed] * 4}}}
    return found, {"both stages": values}


def test_a_curve_compares_its_points_with_the_seeds_that_all_have(claims, tmp_path):
    curves = claims["curves"]
    pools = SimpleNamespace(longer={"x": np.zeros(4)}, prompts={"x": np.arange(4)})
    found, series = points(claims, {0.0: (0, 1), 0.1: (0, 1, 2), 0.2: ()})
    curve = curves.make_curve("smoothing", series, {"all": ["x"]}, found, pools)
    assert curve.seeds == (0, 1) and curve.comparable
    first, second = (curve.found["both stages", at, "all", "brier"] for at in ("0", "0.1"))
    assert first == second and set(first.by_seed) == {0, 1}
    assert curve.found["both stages", "0.2", "all", "brier"] is None
    curves.draw(curve, tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").exists()
    found, series = points(claims, {0.0: (0,), 0.1: (1, 2)})
    curve = curves.make_curve("smoothing", series, {"all": ["x"]}, found, pools)
    assert not curve.comparable
    own = curve.found["both stages", "0.1", "all", "brier"]
    assert set(own.by_seed) == {1, 2}


def share_missed(claims, seeds: int, apart: float) -> float:
    """Share of intervals of a zero difference that exclude 0: 4 x 210 prompts, seeds differing by `apart`."""
    intervals, random = claims["intervals"], np.random.default_rng(0)
    times, missed = 800, 0
    for _ in range(times):
        shift, sets = random.normal(0, apart, (seeds, 1)), []
        for _ in range(4):
            leaning = random.normal(0, 0.5, 210) + random.normal(0, 0.4, (seeds, 210)) + shift
            values = np.clip(np.round(leaning), -1, 1)  # which of two judges is right
            sets.append(intervals.mean_over_pairs(values, np.ones(210), np.arange(210)))
        found = intervals.estimate(sets, range(seeds), (-1.0, 1.0))
        missed += not found.low <= 0 <= found.high
    return missed / times


@pytest.mark.parametrize(
    ("seeds", "apart", "least", "most"),
    # A bootstrap that draws prompts and seeds at once excludes 0 in 3, 12, 8 and 13 % of these.
    [(3, 0.0, 0.02, 0.06), (3, 0.05, 0.04, 0.085), (5, 0.05, 0.03, 0.06), (5, 0.2, 0.03, 0.07)],
)
def test_an_interval_excludes_the_truth_in_one_case_of_twenty(claims, seeds, apart, least, most):
    """With three seeds slightly more often (intervals.py), without noise of seeds slightly less."""
    assert least < share_missed(claims, seeds, apart) < most


def test_pairs_of_one_prompt_count_together_and_one_seed_has_the_variance_of_prompts_only(claims):
    intervals = claims["intervals"]
    values = np.array([[0.0, 1.0, 1.0, 0.0, 1.0]])
    alone = intervals.mean_over_pairs(values, np.ones(5), np.arange(5))
    doubled = intervals.mean_over_pairs(
        np.repeat(values, 2, axis=1), np.ones(10), np.repeat(np.arange(5), 2)
    )
    assert doubled.variance == pytest.approx(alone.variance)
    assert alone.variance == pytest.approx(np.var(values, ddof=1) / 5)
    found = intervals.estimate([alone], [7], (-1.0, 1.0))
    # Student's t of four degrees of freedom
    assert found.low == pytest.approx(0.6 - 2.7764 * alone.variance**0.5, abs=1e-4)
    assert found.high == 1 and found.by_seed == {7: 0.6}
    # One prompt has no variance.
    single = intervals.mean_over_pairs(values, np.ones(5), np.zeros(5, int))
    assert intervals.estimate([single], [7], (0.0, 1.0)).text() == "0.600 (0.000 to 1.000)"


def test_a_jackknifed_mean_has_the_variance_of_a_mean(claims):
    intervals = claims["intervals"]
    values, cluster = np.random.default_rng(0).random((2, 30)), np.arange(30) % 10
    mean = intervals.mean_over_pairs(values, np.ones(30), cluster)
    again = intervals.jackknifed(values, cluster, np.mean)
    assert again.variance == pytest.approx(mean.variance)
    assert again.by_seed == pytest.approx(mean.by_seed) and again.prompts == mean.prompts == 10


BETTER, WORSE, UNKNOWN = (0.01, 0.2), (-0.2, -0.1), (-0.1, 0.1)
SHARPER, DULLER = (-0.1, -0.01), (0.01, 0.1)


@pytest.mark.parametrize(
    ("right", "sharp", "own", "words"),
    [
        (BETTER, SHARPER, 0.6, "**holds**"),
        (BETTER, SHARPER, 0.4, "**holds partly** | at chance"),
        (BETTER, DULLER, 0.6, "**holds partly** | worse Brier score"),
        (BETTER, DULLER, 0.4, "**holds partly** | at chance | worse Brier score"),
        (UNKNOWN, SHARPER, 0.6, "**holds partly** | better Brier score"),
        (UNKNOWN, SHARPER, 0.4, "**not enough evidence** | at chance"),
        (UNKNOWN, UNKNOWN, 0.6, "**not enough evidence**"),
        ((-0.01, 0.015), UNKNOWN, 0.6, "**no difference** | 0.02"),
        (WORSE, UNKNOWN, 0.6, "**does not hold**"),
        (WORSE, SHARPER, 0.4, "**does not hold**"),
    ],
)
def test_verdicts_follow_from_intervals(claims, right, sharp, own, words):
    """own: the lower end of the better judge's accuracy."""
    estimates = [
        claims["figures"].Estimate(float(np.mean(bounds)), *bounds, {0: 0.0, 1: 0.0})
        for bounds in (right, sharp, (own, 0.9))
    ]
    verdict = claims["figures"].verdict(*estimates)
    assert all(word in verdict for word in words.split(" | "))


def test_order_consistency_and_selective_accuracy_of_cells(claims):
    figures, cells = claims["figures"], claims["cells"]
    pools = SimpleNamespace(longer={"x": np.zeros(4)}, prompts={"x": np.arange(4)})
    cell = cells.RAW
    results = {cell: {"sets": {"x": {"p": [0.9, 0.6, 0.4, 0.2], "gap": [0.1, 0.4, 0.1, 0.9]}}}}
    terms = [(1.0, [cell])]
    same = figures.contrast(figures.consistent(results), pools, terms, ["x"], figures.accuracy)
    assert same.value == pytest.approx(2 / 4)  # 0.6 +- 0.2 and 0.2 +- 0.45 cross one half
    alone = figures.contrast(figures.in_one_order(results), pools, terms, ["x"], np.asarray)
    assert alone.value == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    half = figures.over_pairs(results, pools, [cell, cell], "x", figures.confident_half)
    assert half.value == pytest.approx(1 / 2) and half.by_seed == {}
    assert figures.consistent({cell: {"sets": {"x": {"p": [0.9], "gap": []}}}}) == {}


def test_balanced_weights_count_both_lengths_alike(claims):
    figures = claims["figures"]
    longer = np.array([1, 1, 1, -1, 0])
    weights = figures.length_balanced(longer)
    assert weights[longer == 1].sum() == weights[longer == -1].sum() == pytest.approx(1)
    assert weights[longer == 0].sum() == 0


def test_the_share_of_preferred_longer_responses(claims):
    figures, cells = claims["figures"], claims["cells"]
    pools = SimpleNamespace(longer={"x": np.array([1, -1, -1, 0])}, prompts={"x": np.arange(4)})
    results = {cells.RAW: {"sets": {"x": {"p": [0.9, 0.9, 0.2, 0.9]}}}}
    longer = figures.of_the_longer(results, pools)
    assert longer[cells.RAW]["sets"]["x"]["p"][:3] == pytest.approx([0.9, 0.1, 0.8])
    terms = [(1.0, [cells.RAW])]
    found = figures.contrast(longer, pools, terms, ["x"], figures.accuracy)
    assert found.value == pytest.approx(2 / 3)  # the pair of equal lengths is not counted
    shown = figures.contrast(results, pools, terms, ["x"], figures.accuracy)
    assert shown.value == pytest.approx(3 / 4)


def test_the_p_value_of_a_figure_agrees_with_its_interval(claims):
    """p is 0.05 if and only if the 95 % interval ends at 0."""
    intervals = claims["intervals"]
    cluster = np.arange(40)
    values = np.random.default_rng(0).normal(0.1, 0.5, (5, 40))
    one = intervals.mean_over_pairs(values, np.ones(40), cluster)
    found = intervals.estimate([one], range(5), (-np.inf, np.inf))
    moved = replace(one, by_seed=one.by_seed - found.low)
    assert intervals.estimate([moved], range(5), (-np.inf, np.inf)).p == pytest.approx(0.05)


def test_p_values_are_corrected_by_holms_method(claims):
    holm = claims["intervals"].holm
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_the_report_corrects_the_claims_for_their_number(claims):
    make = claims["intervals"].Estimate
    main = {"1. a": make(0.1, 0.0, 0.2, {}, 0.01), "2. b": make(0.1, 0.0, 0.2, {}, 0.04)}
    unknown = {"3. c": make(0.0, 0.0, 0.0, {}), "4. d": None}
    lines = claims["document"]._corrected(main | unknown)
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| 1. a | 0.010 | 0.040 |",
        "| 2. b | 0.040 | 0.120 |",
    ]
    assert claims["document"]._corrected(unknown) == []


def test_curation_drops_or_flips_back_what_the_judge_of_the_other_half_contradicts(
    claims, monkeypatch, data, tmp_path
):
    """A judge that is always right: the flipped labels are found, all of them and no others."""
    learned = []

    def pretend(workshop, cell):
        learned.append([pair.chosen for pair in workshop.pools.labels])
        sets = {
            name: {
                "p": [0.9 if pair.chosen.startswith("yes") else 0.1 for pair in pairs],
                "gap": [0.0] * len(pairs),
            }
            for name, pairs in workshop.sets(cell).items()
        }
        return {"sets": sets, "training": None, "test_seconds": 0.0}

    monkeypatch.setattr(claims["work"].Workshop, "compute", pretend)
    monkeypatch.setattr(claims["work"].Workshop, "clear", lambda *_: None)
    words = ["curation.py", data, tmp_path / "out", "--size", "tiny", "--model", "tiny-random"]
    words += ["--seeds", 1, "--shares", 0.25]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    claims["curation"].main()
    (row,) = json.loads((tmp_path / "out" / "curation.json").read_text())
    assert row["wrong"] == row["suspected"] == row["found"] == 4
    first, second, flipped, dropped, back, pool = learned
    assert sorted(first + second) == sorted(flipped) and len(first) == len(second) == 8
    right = [text for text in flipped if text.startswith("yes")]
    assert dropped == right and len(right) == 12
    assert all(text.startswith("yes") for text in back) and len(back) == 16
    assert set(back) <= set(pool)  # the judge of the true labels is the one of the grid
    claims["curation"].main()
    assert len(learned) == 6  # the judges are kept
    assert "| 25% | 1 | 4 | 4 | 4 |" in (tmp_path / "out" / "curation.md").read_text()
