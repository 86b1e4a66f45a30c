"""The report of the grid: a Markdown file with its plots beside it, made from whatever cells are there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cells import (
    RAW,
    Cell,
    adapted,
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
    calibration_error,
    contrast,
    length_balanced,
    of_the_longer,
    rules,
    verdict,
)
from intervals import Estimate
from pools import VALID, Pools

SHARE_FORMAT = "{:.0%}"
LEARNED = "learned-{size}.md"  # beside this file
INTERVALS = """\
Intervals are 95 %, by Student's t (`intervals.py`). The variance has two parts, added: by prompts, of the mean over
seeds, pairs of one prompt together; and by seeds, from how much single seeds differ. What a seed does to single prompts
is in both, which makes intervals a little wide. The degrees of freedom are Satterthwaite's. Few seeds say little of how
much seeds differ: in simulations where that decides, the interval of two seeds holds the truth in 87 %, of three in
92 %, of five in 94 %. A row of one seed has the prompts' part alone and says nothing of other seeds.

Only rows of the same seeds can be compared with each other: each names its own. A row that compares two judges has the
seeds that both have; a curve has those that all of its points have."""


def write_document(path: Path, size: str, model: str, pools: Pools, found: Results) -> None:
    """Everything that can be said by now; what is missing is named."""
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
        command = "python benchmarks/claims/run.py DATA OUT"
        return [
            "# The paper's claims, tried",
            "",
            "<!-- needs: minutes -->",
            "",
            f"    {command} --size {self.name} --markdown docs/claims.md",
            "",
            f'{len(done)} of {len(whole)} cells of the grid "{self.name}" have been run; seeds: {seeds}.',
            "The command makes this page of what is there; several short runs add up, the most informative cells",
            "first. What has not been run says so.",
            "",
            *self._setting(),
            *self._claims(),
            *self._four(),
            *self._length(),
            *self._calibration(),
            *self._smoothing(),
            *self._unlabeled(),
            *self._labels(),
            *self._adaptation(),
            *self._rates(),
            *self._learned(),
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
            f"From {self.model}: stage 1 on {unlabeled:,} unlabeled pairs (100 %), stage 2 on",
            f"{pools.count('labels', size.base):,} labeled ones where nothing else is said, {size.epochs} epoch(s),",
            f"at most {size.fit} tokens a pair, compute {size.compute_dtype}, peak rates {rates}.",
            f"Tested pairs, both orders: {tests}.",
        ]
        if size.clear:
            lines.append(
                "Labels and in-distribution tests are clear preferences, of a margin of at least "
                f"{size.clear:g} and at least {size.least_fit} tokens."
            )
        if long:
            lines.append(
                f"Sets with few pairs that short are asked of the main four judges only: {long}."
            )
        if self.name != "full":
            labels, domain = (
                ", ".join(map(count_text, x)) for x in (size.labels, size.domain_labels)
            )
            lines += [
                "Everything is scaled down from the full grid (1,000, 3,000, 10,000 and all labels; 100, 300 and 1,000",
                "of the new domain; every pair of up to 2,048 tokens to train on and to test): here the numbers of",
                f"labels are {labels}, those of the new domain {domain}.",
            ]
        lines += [
            f"In distribution is {VALID}; out of distribution the mean of {', '.join(self.outside)}.",
            f"The new domain for adaptation is {size.domain}.",
            "",
            *INTERVALS.splitlines(),
            "",
        ]
        return lines

    def _claims(self) -> list[str]:
        rows = []
        for row in comparisons(self.size, self.inside, self.outside):
            terms = [(1.0, row.better), (-1.0, row.worse)]
            # The better one's own accuracy with the seeds that both have.
            alone = [(1.0, row.better), (0.0, row.worse)]
            right, sharp, own = (
                contrast(self.found, self.pools, of, row.sets, measure)
                for of, measure in ((terms, accuracy), (terms, brier), (alone, accuracy))
            )
            shown = [_shown(x, sign=True) for x in (right, sharp)]
            words = verdict(right, sharp, own)
            rows.append((row.claim, row.compared, _seeds([right, sharp]), *shown, words))
        head = ("claim of the paper", "is better than", "seeds", "accuracy", "Brier score", "here")
        return [
            "## The claims",
            "",
            "Differences of the first from the second; of several rows under a claim the first is the claim itself.",
            "",
            *_table(head, rows),
            "",
            "### How this is decided",
            "",
            *rules().splitlines(),
            "",
            "Each of the two intervals of a row would leave out 0 by chance alone about once in twenty times: of the",
            f"{2 * len(rows)} here about {2 * len(rows) / 20:.0f}. Nothing is corrected for their number.",
            "",
        ]

    def _kinds(self) -> dict[str, list[Cell]]:
        """The main four and what they were made of, each with every seed."""
        size = self.size
        return {
            "the model as it comes": [RAW] * len(size.seeds),
            "generative, no stage 1": [generative(size, s, 0.0) for s in size.seeds],
            "discriminative, no stage 1": [discriminative(size, s) for s in size.seeds],
            "generative, stage 1": [generative(size, s) for s in size.seeds],
            "discriminative, stage 1": [discriminative(size, s, 1.0) for s in size.seeds],
        }

    def _four(self) -> list[str]:
        sets = [*self.pools.tests, *self.pools.long]
        tables = []
        balanced = (
            "Accuracy, pairs with a longer and with a shorter chosen response weighing the same"
        )
        for title, measure, weigh in (
            ("Accuracy", accuracy, alike),
            (balanced, accuracy, length_balanced),
            ("Brier score (0.25: a coin that says so)", brier, alike),
        ):
            rows = [
                _row(kind, [self._figure(cells, [name], measure, weigh) for name in sets])
                for kind, cells in self._kinds().items()
            ]
            if title == "Accuracy":
                rows.append(_row("always the longer response", self._longest(sets)))
            tables += [f"{title}:", "", *_table(("judge", "seeds", *sets), rows), ""]
        return ["## The main four", "", *tables]

    def _longest(self, sets: Sequence[str]) -> list[Estimate | None]:
        """Accuracy of a judge that only counts characters."""
        p = {name: {"p": (self.pools.longer[name] > 0).astype(float)} for name in sets}
        found = {RAW: {"sets": p}}
        return [self._figure([RAW], [name], accuracy, results=found) for name in sets]

    def _length(self) -> list[str]:
        """How much of a verdict is length, and whether stage 1 changes that."""
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
            rows.append(_row(f"{kind}: stage 1 less no stage 1", found, sign=True))
        return [
            "## Length",
            "",
            "How often the longer response is preferred. Not one of the claims: looked at because length is what a",
            "judge learns first.",
            "",
            *_table(("judge", "seeds", *parts), rows),
            "",
        ]

    def _calibration(self) -> list[str]:
        names, rows = list(self.pools.tests), []
        for kind, cells in self._kinds().items():
            if RAW in cells:
                continue
            found = [calibration_error(self.found, self.pools, cells, name) for name in names]
            rows.append(_row(kind, found))
        note = "Few pairs make the error large by themselves, which its interval does not know."
        table = _table(("judge", "seeds", *names), rows)
        return ["## Calibration error (ECE, 15 bins)", "", note, "", *table, ""]

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
        note = f"With labels the pairs of {size.domain} that they leave over are tested, without all of them."
        if size.domain_train is None:
            note = f"The labels are of other prompts of {size.domain} than those that are tested."
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
        note = "A difference between two kinds that another learning rate would turn round is none."
        return ["## Learning rates", "", note, "", *_table(head, rows), ""]

    def _learned(self) -> list[str]:
        """What a person made of it."""
        path = Path(__file__).with_name(LEARNED.format(size=self.name))
        if not path.exists():
            return []
        return ["## What was learned", "", *path.read_text(encoding="utf-8").splitlines()]

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
        """A table and, where two values or more are there, a plot of accuracy and Brier score against them."""
        parts = parts or {"in distribution": self.inside, "out of distribution": self.outside}
        curve = make_curve(name, series, parts, self.found, self.pools)
        lines = [f"## {title}", ""]
        if curve.comparable:
            picture = self.path.with_name(f"claims-{name}.svg")
            draw(curve, picture)
            lines += [f"![Accuracy and Brier score by {name}]({picture.name})", ""]
        elif not curve.seeds and any(curve.found.values()):
            lines += ["No seed is common to all rows: they cannot be compared with each other.", ""]
        return [*lines, *_table_of(curve), ""]


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
    """Of a table: what it is about, its seeds, its figures."""
    return (name, _seeds(found), *(_shown(one, sign) for one in found))


def _seeds(found: Sequence[Estimate | None]) -> str:
    """Those of the figures of a row; of each where they differ."""
    named = [", ".join(map(str, one.by_seed)) or "not trained" for one in found if one is not None]
    return " / ".join(dict.fromkeys(named)) or "-"


def _shown(one: Estimate | None, sign: bool = False) -> str:
    return one.text(sign) if one is not None else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]
