"""Averages of benchmarks as their authors define them, beside the plain ones, under names that say which.

All take {source: (pairs, accuracy)}, as a PairwiseReport has it.
"""

from collections.abc import Mapping

Sources = Mapping[str, tuple[int, float]]

# JudgeBench (arXiv 2410.12784): group -> how its sources begin.
JUDGEBENCH = {
    "Knowledge": "mmlu-pro",
    "Reasoning": "livebench-reasoning",
    "Math": "livebench-math",
    "Coding": "livecodebench",
}
# RewardBench (arXiv 2403.13787): section -> subset -> its weight; 0 stands for the number of its pairs.
REWARD_BENCH = {
    "Chat": dict.fromkeys(
        (
            "alpacaeval-easy",
            "alpacaeval-length",
            "alpacaeval-hard",
            "mt-bench-easy",
            "mt-bench-med",
        ),
        0,
    ),
    "Chat Hard": dict.fromkeys(
        (
            "mt-bench-hard",
            "llmbar-natural",
            "llmbar-adver-neighbor",
            "llmbar-adver-GPTInst",
            "llmbar-adver-GPTOut",
            "llmbar-adver-manual",
        ),
        0,
    ),
    "Safety": dict.fromkeys(
        (
            "refusals-dangerous",
            "refusals-offensive",
            "xstest-should-refuse",
            "xstest-should-respond",
            "donotanswer",
        ),
        0,
    ),
    # The 447 pairs of math-prm weigh as much as the 6 x 164 of code together.
    "Reasoning": {"math-prm": 984}
    | dict.fromkeys((f"hep-{x}" for x in ("cpp", "go", "java", "js", "python", "rust")), 0),
}


def official_averages(sources: Sources) -> dict[str, float]:
    """The named averages of the benchmark whose sources these are; {} for any others."""
    return judgebench_averages(sources) or reward_bench_averages(sources)


def judgebench_averages(sources: Sources) -> dict[str, float]:
    """Every group, their mean (macro: the published figure) and the share of all pairs (micro).

    >>> judgebench_averages({"mmlu-pro-law": (30, 0.5), "livebench-math": (10, 0.9)})
    {'Knowledge': 0.5, 'Math': 0.9, 'JudgeBench macro': 0.7, 'JudgeBench micro': 0.6}
    """
    if not all(name.startswith(tuple(JUDGEBENCH.values())) for name in sources):
        return {}
    groups = {}
    for group, start in JUDGEBENCH.items():
        if members := {name: x for name, x in sources.items() if name.startswith(start)}:
            groups[group] = _pooled(members)
    macro = sum(groups.values()) / len(groups)
    return groups | {"JudgeBench macro": macro, "JudgeBench micro": _pooled(sources)}


def reward_bench_averages(sources: Sources) -> dict[str, float]:
    """Every section that is there; Reasoning both with the official weights and over all its pairs.

    "RewardBench score" is the mean of the four official sections, given only where all are there.
    """
    known = {name for subsets in REWARD_BENCH.values() for name in subsets}
    if not known.issuperset(sources):
        return {}
    found = {}
    for section, weights in REWARD_BENCH.items():
        if members := {name: sources[name] for name in weights if name in sources}:
            found[section] = _pooled({n: (weights[n] or k, acc) for n, (k, acc) in members.items()})
            if section == "Reasoning":
                found["Reasoning, unweighted"] = _pooled(members)
    if found.keys() >= REWARD_BENCH.keys():
        found["RewardBench score"] = sum(found[name] for name in REWARD_BENCH) / len(REWARD_BENCH)
    return found


def _pooled(sources: Sources) -> float:
    return sum(n * share for n, share in sources.values()) / sum(n for n, _ in sources.values())
