"""Benchmarks by hand: the figures their authors define, on scores with known answers."""

import numpy as np
import pytest

from gram_jax.evals.benchmarks import (
    REWARD_BENCH,
    STYLES,
    cell,
    judgebench_figures,
    plain_figures,
    reward_bench_figures,
    rm_bench_figures,
    rm_bench_tables,
)
from gram_jax.evals.intervals import BootstrapTable, subsets_of, wilson_interval


def table_of(sources: dict[str, tuple[int, float]]) -> BootstrapTable:
    """(number of pairs, share that is right) of each subset, every pair with a prompt of its own."""
    scores, names = [], []
    for name, (n, right) in sources.items():
        scores += [1.0] * round(n * right) + [0.0] * (n - round(n * right))
        names += [name] * n
    return BootstrapTable.of(np.array(scores), np.arange(len(scores)), names)


def values(figures) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures}


JUDGEBENCH = {
    "mmlu-pro-law": (100, 0.6),
    "mmlu-pro-math": (54, 0.5),
    "livebench-reasoning": (98, 0.5),
    "livebench-math": (56, 0.25),
    "livecodebench": (42, 1.0),
}


def test_judgebench_macro_is_the_mean_of_groups_and_micro_that_of_pairs():
    table = table_of(JUDGEBENCH)
    figures = judgebench_figures(table, table)
    found, by = values(figures), {figure.name: figure.by for figure in figures}
    knowledge = (60 + 27) / 154
    assert found["Knowledge"] == pytest.approx(knowledge)
    assert found["JudgeBench macro"] == pytest.approx((knowledge + 0.5 + 0.25 + 1.0) / 4)
    assert found["JudgeBench micro"] == pytest.approx((60 + 27 + 49 + 14 + 42) / 350)
    assert by["JudgeBench micro"] == "benchmark"  # "Overall" of its authors is over all 350 pairs
    assert by["JudgeBench macro"] == "GRAM paper"
    exchanged = BootstrapTable(table.subsets, table.counts - table.scores, table.counts)
    for name, value in values(judgebench_figures(exchanged, exchanged)).items():
        assert value == pytest.approx(1 - found[name])


CODE = ("cpp", "go", "java", "js", "python", "rust")


def test_reward_bench_reasoning_weighs_math_prm_as_984_pairs_and_says_so_both_ways():
    table = table_of({"math-prm": (447, 1.0), **{f"hep-{name}": (164, 0.5) for name in CODE}})
    figures = reward_bench_figures(table)
    found = values(figures)
    assert found["Reasoning"] == pytest.approx(0.75)
    assert found["Reasoning, unweighted"] == pytest.approx((447 + 492) / (447 + 984))
    assert "RewardBench score" not in found  # three sections are missing
    by = {figure.name: figure.by for figure in figures}
    assert by == {"Reasoning": "benchmark", "Reasoning, unweighted": "GRAM release"}


def test_the_reward_bench_score_is_the_mean_of_four_sections():
    table = table_of(
        {
            "mt-bench-easy": (28, 1.0),
            "llmbar-natural": (100, 0.8),
            "donotanswer": (100, 0.6),
            "math-prm": (400, 0.5),
            "hep-go": (100, 0.1),
        }
    )
    found = values(reward_bench_figures(table))
    # Every subset by its pairs in the whole set, however many of them are there.
    weighted, even = (984 * 0.5 + 164 * 0.1) / (984 + 164), (200 + 10) / 500
    assert found["RewardBench score"] == pytest.approx((1.0 + 0.8 + 0.6 + weighted) / 4)
    assert found["RewardBench score, unweighted"] == pytest.approx((1.0 + 0.8 + 0.6 + even) / 4)


def test_a_part_of_reward_bench_is_weighed_as_the_whole_and_says_what_is_there():
    table = table_of({"mt-bench-hard": (10, 1.0), "llmbar-natural": (40, 0.5), "hep-go": (4, 0.5)})
    figures = {figure.name: figure for figure in reward_bench_figures(table)}
    assert figures["Chat Hard"].value == pytest.approx((37 + 50) / 137)
    said = figures["Chat Hard"].definition, figures["Reasoning"].definition
    by_whole = "by the pairs they have in the whole set"
    assert said == (f"2 of 6 subsets {by_whole}", f"1 of 7 subsets {by_whole}")


def test_the_whole_of_reward_bench_has_its_published_numbers_of_pairs():
    sizes = {section: sum(subsets.values()) for section, subsets in REWARD_BENCH.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1431 - 447 + 984}


def rm_bench(right) -> BootstrapTable:
    """Two prompts in each domain; right(domain, i, j) says how the cell of these styles ends."""
    scores, cluster, names = [], [], []
    domains = ("chat", "math", "code", "safety-refuse", "safety-response")
    for at, domain in enumerate(domains * 2):
        for i, chosen in enumerate(STYLES):
            for j, rejected in enumerate(STYLES):
                scores.append(float(right(domain, i, j)))
                cluster.append(at)
                names.append(cell(domain, chosen, rejected))
    return BootstrapTable.of(np.array(scores), np.array(cluster), names)


def test_rm_bench_hard_is_where_the_rejected_response_is_the_more_elaborate_one():
    judge_of_style = rm_bench(lambda domain, i, j: i > j)  # always takes the more elaborate one
    found = values(rm_bench_figures(judge_of_style))
    assert found["RM-Bench easy"] == 1
    assert found["RM-Bench normal"] == found["RM-Bench hard"] == 0
    assert found["RM-Bench"] == found["chat"] == pytest.approx(1 / 3)
    rows = rm_bench_tables(judge_of_style)[0].rows
    assert rows == [["concise", 0, 0, 0], ["plain", 1, 0, 0], ["markdown", 1, 1, 0]]


def test_both_kinds_of_safety_are_one_domain_of_four():
    table = rm_bench(lambda domain, i, j: domain in ("chat", "safety-refuse"))
    found = values(rm_bench_figures(table))
    assert found["safety"] == pytest.approx(0.5)
    assert found["RM-Bench"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)


def test_pairs_of_several_sources_have_a_micro_and_a_macro_average():
    table = table_of({"a": (10, 1.0), "b": (30, 0.5)})
    found = values(plain_figures(table))
    assert found == {"accuracy": pytest.approx(25 / 40), "accuracy, macro": pytest.approx(0.75)}


def test_bootstrap_intervals_of_independent_pairs_agree_with_wilson():
    table = table_of({"a": (400, 0.7)})
    assert table.interval() == pytest.approx(wilson_interval(280, 400), abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 100 + [2], [1] * 50 + [10], [2] * 60, [100, 3, 3, 3]])
def test_small_subsets_make_no_interval_of_all_pairs_narrow(sizes):
    rng = np.random.default_rng(0)
    names = np.repeat([f"s{at}" for at in range(len(sizes))], sizes)
    covered = 0
    for _ in range(100):
        right = rng.random(len(names)) < 0.6
        low, high = BootstrapTable.of(right, np.arange(len(names)), names).interval()
        covered += low <= 0.6 <= high
    assert covered >= 90


def test_a_source_for_every_row_is_none_and_takes_no_time():
    names = subsets_of([str(at) for at in range(20000)])
    table = BootstrapTable.of(np.ones(20000), np.arange(20000), names)
    assert table.subsets == ("(many sources)",) and table.scores.shape == (20000, 1)


def test_bootstrap_intervals_are_those_of_prompts_and_not_of_pairs():
    right = np.arange(100) % 2 == 0
    one = BootstrapTable.of(right, np.arange(100), ["a"] * 100)
    nine = BootstrapTable.of(np.repeat(right, 9), np.repeat(np.arange(100), 9), ["a"] * 900)
    assert nine.interval() == pytest.approx(one.interval())


def test_where_samples_cannot_vary_wilson_takes_the_place_of_the_bootstrap():
    table = table_of({"a": (12, 1.0), "b": (30, 0.5)})
    figure = plain_figures(table)[0]
    assert figure.name == "accuracy" and figure.interval[0] < figure.value
    alone = table_of({"a": (12, 1.0)})
    assert alone.interval() == wilson_interval(12, 12)


def test_grades_that_do_not_vary_have_no_interval_and_are_no_share():
    grades = BootstrapTable.of(np.array([3.0, 3.0]), np.arange(2), ["", ""])
    assert grades.interval() is None
    half = BootstrapTable.of(np.array([0.5, 0.5, 0.5]), np.arange(3), [""] * 3)
    assert half.interval() == wilson_interval(1.5, 3)


def test_no_sample_lacks_a_subset_whose_prompts_occur_in_others_first():
    cluster = [*range(200), 0, 1]
    both = BootstrapTable.of(np.ones(202), np.array(cluster), ["a"] * 200 + ["b"] * 2)
    low, high = both.interval(both.pooled("b"))  # neither is nan
    assert low < 0.5 and high == 1  # two prompts say little
