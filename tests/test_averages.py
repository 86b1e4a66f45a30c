"""The averages that JudgeBench and RewardBench publish, by hand."""

import pytest

from gram_jax.evals.averages import official_averages

JUDGEBENCH = {
    "mmlu-pro-law": (100, 0.6),
    "mmlu-pro-math": (54, 0.5),
    "livebench-reasoning": (98, 0.7),
    "livebench-math": (56, 0.4),
    "livecodebench": (42, 0.9),
}


def test_judgebench_macro_is_the_mean_of_groups_and_micro_that_of_pairs():
    found = official_averages(JUDGEBENCH)
    knowledge = (60 + 27) / 154
    assert found["Knowledge"] == pytest.approx(knowledge)
    assert found["JudgeBench macro"] == pytest.approx((knowledge + 0.7 + 0.4 + 0.9) / 4)
    right = 60 + 27 + 68.6 + 22.4 + 37.8
    assert found["JudgeBench micro"] == pytest.approx(right / 350)


def test_reward_bench_reasoning_weighs_math_prm_as_984_pairs_and_says_so_both_ways():
    code = {f"hep-{name}": (164, 0.5) for name in ("cpp", "go", "java", "js", "python", "rust")}
    found = official_averages({"math-prm": (447, 1.0), **code})
    assert found["Reasoning"] == pytest.approx(0.75)
    assert found["Reasoning, unweighted"] == pytest.approx((447 + 492) / (447 + 984))
    assert "RewardBench score" not in found  # three sections are missing


def test_the_reward_bench_score_is_the_mean_of_four_sections():
    found = official_averages(
        {
            "mt-bench-easy": (28, 1.0),
            "llmbar-natural": (100, 0.8),
            "donotanswer": (136, 0.6),
            "math-prm": (447, 0.5),
            "hep-go": (164, 0.1),
        }
    )
    reasoning = (984 * 0.5 + 164 * 0.1) / (984 + 164)
    assert found["RewardBench score"] == pytest.approx((1.0 + 0.8 + 0.6 + reasoning) / 4)


def test_sources_of_no_known_benchmark_have_no_official_average():
    assert official_averages({"mine": (3, 1.0), "math-prm": (3, 1.0)}) == {}
