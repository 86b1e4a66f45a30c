"""The report of the grid: a Markdown file and its plots, from the cells that have been computed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cells import (
    RAW,
    Cell,
    adapted,
    by_first,
    by_labels,
    by_rate,
    by_share,
    by_smoothing,
    count_text,
    discriminative,
    generative,
    grid,
)
from comparisons import comparisons
from curves import Curve, Series, draw, make_curve
from figures import (
    Measure,
    Results,
    accuracy,
    alike,
    brier,
    confident_half,
    consistent,
    contrast,
    in_one_order,
    length_balanced,
    of_the_longer,
    over_pairs,
    rules,
    undecided,
    verdict,
)
from intervals import Estimate, holm
from pools import VALID, Pools

from gram_jax.evals.calibration import expected_calibration_error

SHARE_FORMAT = "{:.0%}"
LEARNED = "learned-{size}.md"  # in the folder of this module: title, answer, what was learned
DATA = "data-{size}.md"  # the same: what the data folder of this size was
POWER = 1.43  # (1.96 + 0.84) / 1.96: the difference found with a power of 80 %, in half widths of a 95 % interval
INTERVALS = """\
Intervals are 95 % intervals of Student's t (`intervals.py`). Their variance is the sum of two parts: the variance
over prompts of the mean over seeds, with pairs clustered by prompt, and the variance between seeds. The degrees of
freedom are Satterthwaite's. The interaction of seeds and prompts is in both parts, which widens the intervals. Few
seeds estimate the variance between seeds poorly, which can make them too narrow. In simulations at least 95 % of the
intervals contain the true value if the variance between seeds is small; if it dominates, 87 % (two seeds), 92 %
(three) and 94 % (five). A row of one seed has the prompts' part only and says nothing about other seeds.

Compare only rows with the same seeds; each row lists its seeds. A row that compares two judges uses the seeds that both
have, and a curve uses those that all of its points have."""
NOT_TESTED = """\
Not tested here: best of n and PPO against the baseline, the published benchmarks in full, and the effect of larger
models and data."""


def write_document(path: Path, size: str, model: str, pools: Pools, found: Results) -> None:
    """Write the report of the computed cells; it lists the missing ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = _Report(path, size, model, pools, found)
    path.write_text("\n".join(report.lines()) + "\n", encoding="utf-8")


class _Report:
    def __init__(self, path: Path, size: str, model: str, pools: Pools, found: Results):
        self.path, self.name, self.model = path, size, model
        self.pools, self.found, self.size = pools, found, pools.size
        self.inside = [VALID]
        self.outside = pools.outside

    def lines(self) -> list[str]:
        """The document."""
        whole = grid(self.size, self.size.seeds)
        done = [cell for cell in whole if cell in self.found]
        seeds = ", ".join(map(str, sorted({cell.seed for cell in done if cell != RAW}))) or "none"
        command = f"python benchmarks/claims/run.py DATA OUT --size {self.name}"
        page = f"docs/{self.path.name}"
        title, answer, learned = (*self._written(LEARNED).split("\n\n", 2), "", "", "")[:3]
        return [
            title or "# The paper's claims, tested",
            "",
            *([*answer.splitlines(), ""] if answer else []),
            *(
                ["Details are at the end, under [What was learned](#what-was-learned)."]
                if learned
                else []
            ),
            "How this differs from the paper is in [concepts](concepts.md#differences-from-the-paper-and-its-release).",
            "",
            "<!-- needs: minutes -->",
            "",
            f"    {command}                                     # trains missing cells: hours",
            f"    {command} --time 0 --markdown {page}      # writes this page only",
            "",
            f'{len(done)} of {len(whole)} cells of the grid "{self.name}" have been run; seeds: {seeds}.',
            "The first command computes the most informative cells first and resumes, so several short runs add up.",
            *self._stored(),
            "",
            *self._claims(),
            *self._setting(),
            *self._four(),
            *self._length(),
            *self._consistency(),
            *self._calibration(),
            *self._selective(),
            *self._smoothing(),
            *self._unlabeled(),
            *self._first_stages(),
            *self._labels(),
            *self._adaptation(),
            *self._rates(),
            *(["## What was learned", "", learned] if learned else []),
        ]

    def _stored(self) -> list[str]:
        if not Path(__file__).with_name(self.name).is_dir():
            return []
        return [
            f"The computed cells are in `benchmarks/claims/{self.name}`: with a copy of this folder as OUT the second",
            "command writes this page in at most two minutes.",
        ]

    def _setting(self) -> list[str]:
        size, pools = self.size, self.pools
        tests = ", ".join(f"{name} {len(pairs)}" for name, pairs in pools.tests.items())
        long = ", ".join(f"{name} {len(pairs)}" for name, pairs in pools.long.items())
        rates = ", ".join(f"{stage} {rate:g}" for stage, rate in size.rates.items())
        unlabeled = pools.count("unlabeled", size.unlabeled)
        lines = [
            "## What was run",
            "",
            *([*self._written(DATA).splitlines(), ""] if self._written(DATA) else []),
            f"From {self.model}: stage 1 on {unlabeled:,} unlabeled pairs (100 %), stage 2 on",
            f"{pools.count('labels', size.base):,} labeled pairs unless a table says otherwise,",
            f"{size.epochs} epoch(s), at most {size.fit} tokens per pair, compute {size.compute_dtype},",
            f"peak rates {rates}.",
            f"Test pairs, in both orders: {tests}.",
        ]
        if size.clear:
            lines.append(
                "Labels and in-distribution tests are clear preferences, with a margin of at least "
                f"{size.clear:g} and at least {size.least_fit} tokens."
            )
        if long:
            lines.append(
                f"Only the four main judges were tested on sets with few pairs of that length: {long}."
            )
        if self.name != "full":
            labels, domain = (
                ", ".join(map(count_text, x)) for x in (size.labels, size.domain_labels)
            )
            lines += [
                "This is a small version of the full grid (1,000, 3,000, 10,000 and all labels; 100, 300 and 1,000",
                "labels of the new domain; every pair of up to 2,048 tokens in training and tests): here the numbers",
                f"of labels are {labels}, and {domain} for the new domain.",
            ]
        lines += [
            f"In distribution: {VALID}. Out of distribution: the mean of {', '.join(self.outside)}.",
            f"New domain for adaptation: {size.domain}.",
            "",
            *INTERVALS.splitlines(),
            "",
        ]
        return lines

    def _claims(self) -> list[str]:
        rows: list[tuple[str, ...]] = []
        main: dict[str, Estimate | None] = {}
        count = 0  # of intervals
        for row in comparisons(self.size, self.inside, self.outside):
            terms = [(1.0, row.better), (-1.0, row.worse)]
            # The better judge's own accuracy, with the seeds that both have.
            alone = [(1.0, row.better), (0.0, row.worse)]
            right, sharp, own = (
                contrast(self.found, self.pools, of, row.sets, measure)
                for of, measure in ((terms, accuracy), (terms, brier), (alone, accuracy))
            )
            count += sum(one is not None for one in (right, sharp))
            shown = [_shown(x, sign=True) for x in (right, sharp)]
            words = verdict(right, sharp, own)
            if all(
                undecided(self.found, self.pools, cells, row.sets)
                for cells in (row.better, row.worse)
            ):
                words = "**not tested**: neither judge learned a verdict"
            if row.claim:
                main[row.claim] = right if right is not None and len(right.by_seed) > 1 else None
            rows.append((row.claim, row.compared, _seeds([right, sharp]), *shown, words))
        head = ("claim of the paper", "comparison", "seeds", "accuracy", "Brier score", "result")
        return [
            "## The claims",
            "",
            "Each row is the first judge minus the second. The first row of a claim is the claim itself.",
            "In the rows of claim 3 the generative judge has a label smoothing of 0.1 and the discriminative one none.",
            "",
            *_table(head, rows),
            "",
            *NOT_TESTED.splitlines(),
            "",
            *_power([(one.high - one.low) / 2 for one in main.values() if one is not None]),
            "### How this is decided",
            "",
            *rules().splitlines(),
            "",
            f"By chance alone, {count * 0.05:.1f} of these {count} intervals exclude 0 if 95 % of them contain the",
            f"true value, and {count * 0.08:.1f} if 92 % do (see [What was run](#what-was-run)).",
            "",
            *_corrected(main),
        ]

    def _kinds(self) -> dict[str, list[Cell]]:
        """The main four judges and the base model, each with every seed."""
        size = self.size
        return {
            "base model, not trained": [RAW] * len(size.seeds),
            "generative, no stage 1": [generative(size, s, 0.0) for s in size.seeds],
            "discriminative, no stage 1": [discriminative(size, s) for s in size.seeds],
            "generative, stage 1": [generative(size, s) for s in size.seeds],
            "discriminative, stage 1": [discriminative(size, s, 1.0) for s in size.seeds],
        }

    def _four(self) -> list[str]:
        sets = [*self.pools.tests, *self.pools.long]
        tables = []
        balanced = (
            "Accuracy, with equal weights of pairs with a longer and with a shorter chosen response (those of equal "
            "length do not count)"
        )
        for title, measure, weigh in (
            ("Accuracy", accuracy, alike),
            (balanced, accuracy, length_balanced),
            ("Brier score (0.25: always 0.5)", brier, alike),
        ):
            rows = [
                _row(kind, [self._figure(cells, [name], measure, weigh) for name in sets])
                for kind, cells in self._kinds().items()
            ]
            if title == "Accuracy":
                rows.append(_row("always the longer response", self._longest(sets)))
            tables += [f"{title}:", "", *_table(("judge", "seeds", *sets), rows), ""]
        return ["## The four main judges", "", *tables]

    def _longest(self, sets: Sequence[str]) -> list[Estimate | None]:
        """Accuracy of a judge that only counts characters, and guesses if both responses have the same number."""
        p = {name: {"p": (1 + self.pools.longer[name]) / 2} for name in sets}
        found = {RAW: {"sets": p}}
        return [self._figure([RAW], [name], np.asarray, results=found) for name in sets]

    def _length(self) -> list[str]:
        """How often the longer response is preferred, and whether stage 1 changes that."""
        longer, kinds = of_the_longer(self.found, self.pools), self._kinds()
        parts = {"in distribution": self.inside, "out of distribution": self.outside}
        rows = [
            _row(
                kind,
                [self._figure(cells, sets, accuracy, results=longer) for sets in parts.values()],
            )
            for kind, cells in kinds.items()
        ]
        for kind in ("generative", "discriminative"):
            terms = [(1.0, kinds[f"{kind}, stage 1"]), (-1.0, kinds[f"{kind}, no stage 1"])]
            found = [contrast(longer, self.pools, terms, sets, accuracy) for sets in parts.values()]
            rows.append(_row(f"{kind}: stage 1 minus no stage 1", found, sign=True))
        return [
            "## Length",
            "",
            "How often the longer response is preferred. This is not a claim of the paper; it is reported because a",
            "judge learns length first.",
            "",
            *_table(("judge", "seeds", *parts), rows),
            "",
        ]

    def _calibration(self) -> list[str]:
        names, rows = list(self.pools.tests), []
        for kind, cells in self._kinds().items():
            if RAW in cells:
                continue
            found = [
                over_pairs(self.found, self.pools, cells, name, expected_calibration_error)
                for name in names
            ]
            rows.append(_row(kind, found))
        note = "The error is biased upwards for few pairs; the interval does not include this bias."
        table = _table(("judge", "seeds", *names), rows)
        return ["## Calibration error (ECE, 15 bins)", "", note, "", *table, ""]

    def _selective(self) -> list[str]:
        names = list(self.pools.tests)
        rows = [
            _row(
                kind,
                [over_pairs(self.found, self.pools, cells, name, confident_half) for name in names],
            )
            for kind, cells in self._kinds().items()
        ]
        note = "Accuracy of the half of the pairs with the highest confidence (accuracy at a coverage of 0.5)."
        table = _table(("judge", "seeds", *names), rows)
        return ["## Selective accuracy", "", note, "", *table, ""]

    def _consistency(self) -> list[str]:
        """How often both orders of showing a pair prefer the same response, and how accurate one of them is."""
        names = list(self.pools.tests)
        same, alone = (
            [
                _row(kind, [self._figure(cells, [name], measure, results=of) for name in names])
                for kind, cells in self._kinds().items()
            ]
            for of, measure in (
                (consistent(self.found), accuracy),
                (in_one_order(self.found), np.asarray),
            )
        )
        head = ("judge", "seeds", *names)
        note = (
            "Share of pairs whose two orders prefer the same response. A discriminative judge reads each response "
            "alone and has no order. A cycle rate needs three responses to a prompt; these sets have two."
        )
        other = (
            "Accuracy if a pair is read in one order only (the mean of both). All other accuracies are of the mean of "
            "both orders."
        )
        tables = [*_table(head, same), "", other, "", *_table(head, alone)]
        return ["## Order consistency", "", note, "", *tables, ""]

    def _smoothing(self) -> list[str]:
        values = by_smoothing(self.size, 0)
        series = {
            f"{cell.smoothing:g}": [replace(cell, seed=s) for s in self.size.seeds]
            for cell in values
        }
        return self._curve("Smoothing", "smoothing", {"both stages": series})

    def _unlabeled(self) -> list[str]:
        values = by_share(self.size, 0)
        series = {
            SHARE_FORMAT.format(cell.unlabeled): [replace(cell, seed=s) for s in self.size.seeds]
            for cell in values
        }
        return self._curve("Unlabeled data", "unlabeled", {"both stages": series})

    def _labels(self) -> list[str]:
        names = ("generative, stage 1", "generative, no stage 1", "discriminative, no stage 1")
        series = {
            name: {
                count_text(cell.labels): [replace(cell, seed=s) for s in self.size.seeds]
                for cell in cells
            }
            for name, cells in zip(names, by_labels(self.size, 0), strict=True)
        }
        return self._curve("Labels", "labels", series)

    def _adaptation(self) -> list[str]:
        size = self.size
        series: dict[str, dict[str, Sequence[Cell]]] = {
            "from the foundation": {},
            "from the raw model": {},
        }
        for count in (0, *size.domain_labels):
            pairs = [adapted(size, seed, count) for seed in size.seeds]
            for at, values in enumerate(series.values()):
                values[str(count)] = [pair[at] for pair in pairs]
        lines = self._curve("Adaptation", "adaptation", series, {size.domain: [size.domain]})
        note = f"With labels, the test pairs are the pairs of {size.domain} that are not labels, else all."
        if size.domain_train is None:
            note = f"Labels and test pairs come from different prompts of {size.domain}."
        return [*lines[:2], note, "", *lines[2:]]

    def _rates(self) -> list[str]:
        rows = []
        for cells in by_rate(self.size, self.size.seeds[0]):
            for cell in cells:
                found = [
                    self._figure([cell], sets, accuracy) for sets in (self.inside, self.outside)
                ]
                rows.append(_row(f"{cell.kind}, x {cell.rate:.2g}", found))
        head = ("no stage 1, learning rate", "seeds", "in distribution", "out of distribution")
        note = "A difference between two kinds of judge counts only if other learning rates do not reverse it."
        return ["## Learning rates", "", note, "", *_table(head, rows), ""]

    def _first_stages(self) -> list[str]:
        """Other uses of the unlabeled pairs, against the first one of the size and against none."""
        if not self.size.first_stages:
            return []
        seeds, same = self.size.seeds, consistent(self.found)
        arms = {"none": [generative(self.size, seed, 0.0) for seed in seeds]}
        by_seed = [by_first(self.size, seed) for seed in seeds]
        arms |= {cells[0].first: list(cells) for cells in zip(*by_seed, strict=True)}
        compared = [name for name in ("none", "gram") if name in arms]
        rows = []
        for name, cells in arms.items():
            found = [self._figure(cells, sets, accuracy) for sets in (self.inside, self.outside)]
            found.append(self._figure(cells, self.outside, accuracy, results=same))
            gains = (self._gain(cells, arms[other]) for other in compared)
            shown = [_shown(gain, sign=True) for gain in gains]
            rows.append((*_row(name, found), *shown))
        head = (
            "unlabeled pairs",
            "seeds",
            "in distribution",
            "out of distribution",
            "order consistency, out of distribution",
            *(f"out of distribution, minus {name}" for name in compared),
        )
        return ["## First stages", "", *_table(head, rows), ""]

    def _gain(self, cells: Sequence[Cell], other: Sequence[Cell]) -> Estimate | None:
        """Accuracy out of distribution, minus that of other judges; None for the same ones."""
        if cells == other:
            return None
        terms = [(1.0, cells), (-1.0, other)]
        return contrast(self.found, self.pools, terms, self.outside, accuracy)

    def _written(self, name: str) -> str:
        """A text that was written for this size; empty if there is none."""
        path = Path(__file__).with_name(name.format(size=self.name))
        return path.read_text(encoding="utf-8").rstrip("\n") if path.exists() else ""

    def _figure(
        self,
        cells: Sequence[Cell],
        sets: Sequence[str],
        measure: Measure,
        weigh: Measure = alike,
        results: Results | None = None,
    ) -> Estimate | None:
        results = self.found if results is None else results
        if any(
            cell in results and name not in results[cell]["sets"] for cell in cells for name in sets
        ):
            return None
        return contrast(results, self.pools, [(1.0, cells)], sets, measure, weigh)

    def _curve(
        self,
        title: str,
        name: str,
        series: Series,
        parts: dict[str, Sequence[str]] | None = None,
    ) -> list[str]:
        """A table and, for two values or more, a plot of accuracy and Brier score against them."""
        parts = parts or {"in distribution": self.inside, "out of distribution": self.outside}
        curve = make_curve(name, series, parts, self.found, self.pools)
        lines = [f"## {title}", ""]
        if curve.comparable:
            picture = self.path.with_name(f"{self.path.stem}-{name}.svg")
            draw(curve, picture)
            lines += [f"![Accuracy and Brier score by {name}]({picture.name})", ""]
        elif not curve.seeds and any(curve.found.values()):
            lines += ["The rows have no seed in common and cannot be compared.", ""]
        return [*lines, *_table_of(curve), ""]


def _power(half: Sequence[float]) -> list[str]:
    """Which differences of accuracy intervals of these half widths can show."""
    if not half:
        return []
    low, high = min(half), max(half)
    return [
        f"**Power.** The intervals of accuracy of the claims extend {low:.2f} to {high:.2f} to either side. So",
        f"differences below about {POWER * low:.2f} to {POWER * high:.2f} would be found with a probability of less",
        f"than 80 % (arithmetic: {POWER} times the half width).",
        "",
    ]


def _corrected(main: Mapping[str, Estimate | None]) -> list[str]:
    """The claims themselves, corrected for their number; those without a p-value count as 1."""
    p = [1.0 if one is None or np.isnan(one.p) else one.p for one in main.values()]
    rows = [
        (claim, f"{one.p:.3f}", f"{q:.3f}")
        for (claim, one), q in zip(main.items(), holm(p), strict=True)
        if one is not None and not np.isnan(one.p)
    ]
    if not rows:
        return []
    return [
        f"Corrected for the number of claims ({len(main)}, accuracy only, method of Holm):",
        "",
        *_table(("claim", "p", "p, corrected"), rows),
        "",
    ]


def _table_of(curve: Curve) -> list[str]:
    rows = []
    for which, values in curve.series.items():
        for value in values:
            found = [
                curve.found[which, value, part, measure]
                for measure in ("accuracy", "brier")
                for part in curve.parts
            ]
            row = _row(value, found)
            rows.append(row if len(curve.series) == 1 else (which, *row))
    head = [curve.name, "seeds"] if len(curve.series) == 1 else ["judge", curve.name, "seeds"]
    head += [f"{what}, {part}" for what in ("accuracy", "Brier") for part in curve.parts]
    return _table(head, rows)


def _row(name: str, found: Sequence[Estimate | None], sign: bool = False) -> tuple[str, ...]:
    """A row of a table: its name, its seeds, its figures."""
    return (name, _seeds(found), *(_shown(one, sign) for one in found))


def _seeds(found: Sequence[Estimate | None]) -> str:
    """The seeds of the figures of a row; of each figure if they differ."""
    named = [", ".join(map(str, one.by_seed)) or "not trained" for one in found if one is not None]
    return " / ".join(dict.fromkeys(named)) or "-"


def _shown(one: Estimate | None, sign: bool = False) -> str:
    return one.text(sign) if one is not None else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]
