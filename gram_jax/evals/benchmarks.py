"""Official metrics of the supported benchmarks, each with the source of its definition."""

from collections.abc import Callable

from gram_jax.data.lists import STYLES
from gram_jax.evals.intervals import BootstrapTable, Metric, mean_of
from gram_jax.evals.results import BenchmarkFigure, BenchmarkTable

BENCHMARK, RELEASE, PAPER, OWN = "benchmark", "GRAM release", "GRAM paper", "gram_jax"

# JudgeBench (arXiv 2410.12784): group -> prefix of the names of its sources.
JUDGEBENCH = {
    "Knowledge": "mmlu-pro",
    "Reasoning": "livebench-reasoning",
    "Math": "livebench-math",
    "Coding": "livecodebench",
}
# RewardBench (arXiv 2403.13787): section -> subset -> weight. The weight is the number of pairs in the published set,
# except for math-prm: its 447 pairs have the same total weight as the 6 x 164 pairs of code.
REWARD_BENCH = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        **{f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
}
# RewardBench 2 (arXiv 2506.01937).
REWARD_BENCH_2 = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
# RM-Bench (arXiv 2410.16184): a 3 x 3 matrix of styles. Rows: chosen response, columns: rejected response.
RM_BENCH = ("chat", "math", "code", "safety")
LEVELS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "hard": ("the rejected response has the more elaborate style", lambda i, j: i < j),
    "normal": ("both have the same style", lambda i, j: i == j),
    "easy": ("the chosen response has the more elaborate style", lambda i, j: i > j),
}


def figure(
    table: BootstrapTable, name: str, metric: Metric, definition: str, by: str = BENCHMARK
) -> BenchmarkFigure:
    """Compute a metric of a bootstrap table and its 95 % interval."""
    value, interval = table.value(metric), table.interval(metric)
    return BenchmarkFigure(name=name, value=value, interval=interval, definition=definition, by=by)


def judgebench_figures(table: BootstrapTable, votes: BootstrapTable) -> list[BenchmarkFigure]:
    """JudgeBench accuracies: micro (all pairs), by votes, macro (mean of the groups), and of each group.

    The authors report micro, the GRAM paper reports macro. votes: the table of `PairVerdicts.right_by_votes`, which is
    how the authors combine the verdicts of both orders.
    """
    groups = {
        group: table.pooled(*found)
        for group, start in JUDGEBENCH.items()
        if (found := [name for name in table.subsets if name.startswith(start)])
    }
    macro = mean_of(list(groups.values()))
    return [
        figure(table, "JudgeBench micro", table.pooled(*macro.within), "the share of all pairs"),
        figure(
            votes,
            "JudgeBench by two verdicts",
            votes.pooled(),
            "the share of all pairs that are right in one order and not wrong in the other",
        ),
        figure(table, "JudgeBench macro", macro, f"the mean of {', '.join(groups)}", PAPER),
        *(
            figure(table, group, metric, f"all pairs of {JUDGEBENCH[group]}*")
            for group, metric in groups.items()
        ),
    ]


def reward_bench_figures(table: BootstrapTable) -> list[BenchmarkFigure]:
    """Accuracy of each section, and the RewardBench score if all four sections are present.

    Metrics follow the definition of the benchmark and, marked "unweighted", that of the GRAM release.
    """
    weighed, plain, figures = [], [], []
    for section, counts in REWARD_BENCH.items():
        there = {name: count for name, count in counts.items() if name in table.subsets}
        if not there:
            continue
        weighed.append(table.weighed(there))
        plain.append(table.pooled(*there))
        share = f"{len(there)} of {len(counts)} subsets"
        what = f"{share} by the pairs they have in the whole set"
        if "math-prm" in there:
            what += f", math-prm as {there['math-prm']}"
        figures.append(figure(table, section, weighed[-1], what))
        if section == "Reasoning":  # both definitions agree for the other sections of the full set
            name, what = f"{section}, unweighted", f"all pairs of {share} alike"
            figures.append(figure(table, name, plain[-1], what, RELEASE))
    if len(weighed) < len(REWARD_BENCH):
        return figures
    name, mean = "RewardBench score", "the mean of the four sections"
    alike = f"{mean}, each the share of its pairs"
    return [
        figure(table, name, mean_of(weighed), mean),
        figure(table, f"{name}, unweighted", mean_of(plain), alike, RELEASE),
        *figures,
    ]


def cell(domain: str, chosen: str, rejected: str) -> str:
    """The name of an RM-Bench subset: one domain, one style of each response."""
    return f"{domain}|{chosen}|{rejected}"


def _cells(table: BootstrapTable) -> dict[tuple[str, int, int], Metric]:
    """Accuracy by domain, style of the chosen and style of the rejected response; both safety domains are merged."""
    return {
        (domain, i, j): table.pooled(*found)
        for domain in RM_BENCH
        for i, chosen in enumerate(STYLES)
        for j, rejected in enumerate(STYLES)
        if (
            found := [
                name
                for name in table.subsets
                if name.startswith(domain) and name.endswith(cell("", chosen, rejected))
            ]
        )
    }


def rm_bench_figures(table: BootstrapTable) -> list[BenchmarkFigure]:
    """RM-Bench accuracies: the mean over domains and levels, the mean of each level, the mean of each domain.

    table: its subsets are named by `cell`.
    """
    cells = _cells(table)
    domains = list(dict.fromkeys(domain for domain, *_ in cells))
    levels = {
        (domain, level): mean_of(
            [metric for (of, i, j), metric in cells.items() if of == domain and holds(i, j)]
        )
        for domain in domains
        for level, (_, holds) in LEVELS.items()
    }
    mean = f"the mean of {', '.join(domains)}"
    whole = mean_of(list(levels.values()))
    found = [figure(table, "RM-Bench", whole, f"{mean} over hard, normal and easy")]
    for level, (what, _) in LEVELS.items():
        metric = mean_of([levels[domain, level] for domain in domains])
        found.append(figure(table, f"RM-Bench {level}", metric, f"{mean}: {what}"))
    for domain in domains:
        metric = mean_of([levels[domain, level] for level in LEVELS])
        found.append(figure(table, domain, metric, "the mean of its nine cells"))
    return found


def rm_bench_tables(table: BootstrapTable) -> list[BenchmarkTable]:
    """The 3 x 3 accuracy matrix of each domain. Rows: style of the chosen response, columns: of the rejected one."""
    values = {key: table.value(metric) for key, metric in _cells(table).items()}
    return [
        BenchmarkTable(
            title=f"RM-Bench, {domain}",
            columns=["chosen", *(f"rejected {style}" for style in STYLES)],
            rows=[
                [style, *(values[domain, i, j] for j in range(len(STYLES)))]
                for i, style in enumerate(STYLES)
            ],
        )
        for domain in dict.fromkeys(domain for domain, *_ in values)
    ]


def plain_figures(table: BootstrapTable) -> list[BenchmarkFigure]:
    """Accuracy on pairs of no known benchmark, and its mean over the sources if there are several."""
    pooled = table.pooled(*table.subsets)
    figures = [figure(table, "accuracy", pooled, "the share of all pairs", OWN)]
    if len(table.subsets) > 1:
        macro = mean_of([table.pooled(name) for name in table.subsets])
        figures.append(figure(table, "accuracy, macro", macro, "the mean of the sources", OWN))
    return figures
