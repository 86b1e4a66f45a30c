"""Quality and cost of each ranking method: python benchmarks/ranking.py [RUNS] [--plot FILE.png]

The methods are those of ranking/tournament.py; the judge is simulated. Responses have qualities from N(0, 1). The
judge's log-odds of (i, j) are SCALE x (q_i - q_j) + an error of the pair + an error of the order + PREFERENCE for the
response shown first. The errors of a pair are fixed, as those of a model are. Their size follows from the share of
pairs that both orders together get right.
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any

# For matrices of 64 x 64 two threads are slower than one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, spearmanr

from gram_jax.ranking.tournament import tournament

SCALE, PREFERENCE = 1.5, 0.5
OWN = 0.3  # share of the error's variance that is the order's and not the pair's
ACCURACIES = (0.7, 0.8, 0.9)
METHODS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("linear", "linear search", {}),
    ("knockout", "knockout", {}),
    ("reference", "1 reference", {"references": range(1)}),
    ("reference", "4 references", {"references": range(4)}),
    ("groups", "groups of 4", {}),
    ("round_robin", "round robin", {}),
    ("bradley_terry", "Bradley-Terry", {}),
)


def noise_for(accuracy: float) -> float:
    """Standard deviation of the error of a pair's log-odds (both orders) of a judge with this accuracy."""

    def right(noise: float) -> float:
        # P(sign(d + e) = sign(d)) for normal d, e
        return 0.5 + np.arctan(SCALE * np.sqrt(2) / noise) / np.pi

    return brentq(lambda noise: right(noise) - accuracy, 1e-3, 1e3)


def judge(random: np.random.Generator, count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Qualities [n] and log-odds that i, shown first, is better than j, [n, n]."""
    quality = random.normal(size=count)
    pair, own = random.normal(size=(2, count, count))
    pair = (pair - pair.T) / np.sqrt(2)
    # In the mean of both orders the order's error has half its variance; `noise` is of that mean.
    part = noise / np.sqrt(1 - OWN / 2)
    error = part * (np.sqrt(1 - OWN) * pair + np.sqrt(OWN) * own)
    return quality, SCALE * (quality[:, None] - quality[None]) + error + PREFERENCE


def play(logit_diffs: np.ndarray, method: str, **options: Any) -> Any:
    """The ranking of a method."""
    game = tournament(len(logit_diffs), method, **options)
    try:
        matches = next(game)
        while True:
            matches = game.send([logit_diffs[match] for match in matches])
    except StopIteration as over:
        return over.value


def measure(count: int, accuracy: float, runs: int) -> Iterator[dict[str, Any]]:
    """A row for each method and each choice of orders."""
    noise = noise_for(accuracy)
    for orders in ("both", "one"):
        for method, name, options in METHODS:
            if max(options.get("references", [0])) >= count:
                continue
            random = np.random.default_rng(0)  # the same judges for all
            best, quality, oracle, order, cost, rounds = ([] for _ in range(6))
            for _ in range(runs):
                truth, logit_diffs = judge(random, count, noise)
                found = play(logit_diffs, method, order_mode=orders, **options)
                best.append(found.order[0] == truth.argmax())
                quality.append(truth[found.order[0]])
                oracle.append(truth.max())
                order.append(spearmanr(found.strengths, truth).statistic)
                cost.append(found.comparisons)
                rounds.append(found.rounds)
            yield {
                "method": name,
                "orders": orders,
                "forwards": np.mean(cost),
                "rounds": np.mean(rounds),
                "best": np.mean(best),
                "quality": np.mean(quality) / np.mean(oracle),
                "error": norm.ppf(0.975) * np.std(quality) / np.sqrt(runs) / np.mean(oracle),
                "order": np.mean(order),
            }


def table(count: int, accuracy: float, rows: list[dict[str, Any]]) -> str:
    """Markdown; the last columns are relative to the round robin in both orders."""
    whole = next(r for r in rows if r["method"] == "round robin" and r["orders"] == "both")
    lines = [
        f"| n = {count}, {accuracy:.0%} of pairs right | orders | comparisons | rounds | finds the best | quality | "
        "rank correlation | quality / round robin | comparisons / round robin |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['method']} | {r['orders']} | {r['forwards']:.0f} | {r['rounds']:.0f} | {r['best']:.2f} "
            f"| {r['quality']:.3f} ± {r['error']:.3f} | {r['order']:.2f} "
            f"| {r['quality'] / whole['quality']:.3f} | {r['forwards'] / whole['forwards']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def plot(found: dict[int, list[dict[str, Any]]], path: str) -> None:
    """Quality against cost, one panel for each n."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, fields = plt.subplots(1, len(found), figsize=(4.6 * len(found), 4.4), sharey=True)
    colours = {name: f"C{at}" for at, (_, name, _) in enumerate(METHODS)}
    for field, (count, rows) in zip(np.atleast_1d(fields), found.items(), strict=True):
        for r in rows:
            filled = {"color": colours[r["method"]]}
            if r["orders"] == "one":
                filled["markerfacecolor"] = "none"
            label = r["method"] if r["orders"] == "both" else None
            field.errorbar(
                r["forwards"], r["quality"], r["error"], fmt="o", ms=8, label=label, **filled
            )
        field.set_xscale("log", base=2)
        field.xaxis.set_major_formatter(ScalarFormatter())
        field.set(xlabel="comparisons (sequences scored)", title=f"best of {count}")
        field.grid(alpha=0.3)
    np.atleast_1d(fields)[0].set_ylabel("quality of the chosen / quality of the best")
    np.atleast_1d(fields)[-1].legend(fontsize=8, loc="lower right", title="filled: both orders")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=2000)
    parser.add_argument("--plot", help="a .png of the judge that is right on 80 % of pairs")
    options = parser.parse_args()
    drawn = {}
    for count in (4, 8, 16, 64):
        for accuracy in ACCURACIES if count == 16 else ACCURACIES[1:2]:
            runs = options.runs if count < 64 else max(1, options.runs // 5)
            rows = list(measure(count, accuracy, runs))
            print(table(count, accuracy, rows), flush=True)
            if accuracy == ACCURACIES[1] and count in (8, 16, 64):
                drawn[count] = rows
    if options.plot:
        plot(drawn, options.plot)


if __name__ == "__main__":
    main()
