"""The report of the grid: a Markdown file with its plots beside it, made from whatever cells are there."""

from collections.abc import Callable, Iterable, Sequence
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
from figures import (
    Estimate,
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
from pools import VALID, Pools

SHARE_FORMAT = "{:.0%}"
LEARNED = "learned-{size}.md"  # beside this file


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
            f"at most {size.fit} tokens a pair, compute {size.compute}, peak rates {rates}.",
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
            "Intervals are 95 %, by a bootstrap that draws prompts and seeds anew, both at once (`figures.py`).",
            "",
        ]
        return lines

    def _claims(self) -> list[str]:
        rows = []
        for claim, compared, better, worse, sets in self._contrasts():
            terms = [(1.0, better), (-1.0, worse)]
            right = contrast(self.found, self.pools, terms, sets, accuracy)
            sharp = contrast(self.found, self.pools, terms, sets, brier)
            # The better one's own accuracy with the seeds that both have.
            known = [(1.0, better), (0.0, worse)]
            own = contrast(self.found, self.pools, known, sets, accuracy)
            shown = [x.text(sign=True) if x else "-" for x in (right, sharp)]
            rows.append((claim, compared, *shown, verdict(right, sharp, own)))
        head = ("claim of the paper", "is better than", "accuracy", "Brier score", "here")
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
            "One row in twenty would leave out 0 by chance alone.",
            "",
        ]

    def _contrasts(
        self,
    ) -> Iterable[tuple[str, str, Sequence[Cell], Sequence[Cell], Sequence[str]]]:
        size, inside, outside = self.size, self.inside, self.outside

        def over(make: Callable[[int], Cell]) -> list[Cell]:
            return [make(seed) for seed in size.seeds]

        both, raw = over(lambda s: generative(size, s)), over(lambda s: generative(size, s, 0.0))
        scalar = over(lambda s: discriminative(size, s))
        scalar_both = over(lambda s: discriminative(size, s, 1.0))
        none, much = (
            over(lambda s, v=value: by_smoothing(size, s, (v,))[0]) for value in (0.0, 0.3)
        )
        quarter = over(lambda s: by_share(size, s)[1])
        least, most = size.domain_labels[0], size.domain_labels[-1]

        claim = "1. Stage 1 helps the generative judge out of distribution"
        stage = "stage 1 than no stage 1"
        yield claim, stage, both, raw, outside
        yield "", f"{stage}, in distribution", both, raw, inside
        claim = "2. Label smoothing helps out of distribution"
        yield claim, "smoothing 0.1 than none", both, none, outside
        yield "", "smoothing 0.1 than 0.3", both, much, outside
        claim = "3. The generative judge beats a discriminative one out of distribution"
        kinds = "generative with stage 1 than discriminative without"
        yield claim, kinds, both, scalar, outside
        yield "", f"{kinds}, in distribution", both, scalar, inside
        yield "", "generative than discriminative, both with stage 1", both, scalar_both, outside
        yield "", "generative than discriminative, both without stage 1", raw, scalar, outside
        claim = "4. More unlabeled data helps out of distribution"
        yield claim, "all of it than a quarter", both, quarter, outside
        claim = "5. With few labels of a task the foundation adapts better than the raw model"
        for count in dict.fromkeys((most, least)):
            pairs = [adapted(size, seed, count) for seed in size.seeds]
            foundation, plain = ([pair[at] for pair in pairs] for at in (0, 1))
            compared = f"the foundation than the raw model, {count} labels"
            yield claim, compared, foundation, plain, [size.domain]
            claim = ""

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
                (kind, *(self._figure(cells, [name], measure, weigh) for name in sets))
                for kind, cells in self._kinds().items()
            ]
            if title == "Accuracy":
                rows.append(("always the longer response", *self._longest(sets)))
            tables += [f"{title}:", "", *_table(("judge", *sets), rows), ""]
        return ["## The main four", "", *tables]

    def _longest(self, sets: Sequence[str]) -> list[str]:
        """Accuracy of a judge that only counts characters."""
        p = {name: {"p": (self.pools.longer[name] > 0).astype(float)} for name in sets}
        found = {RAW: {"sets": p}}
        return [self._figure([RAW], [name], accuracy, results=found) for name in sets]

    def _length(self) -> list[str]:
        """How much of a verdict is length, and whether stage 1 changes that."""
        longer, kinds = of_the_longer(self.found, self.pools), self._kinds()
        parts = {"in distribution": self.inside, "out of distribution": self.outside}
        rows = [
            (
                kind,
                *(self._figure(cells, sets, accuracy, results=longer) for sets in parts.values()),
            )
            for kind, cells in kinds.items()
        ]
        for kind in ("generative", "discriminative"):
            terms = [(1.0, kinds[f"{kind}, stage 1"]), (-1.0, kinds[f"{kind}, no stage 1"])]
            found = [contrast(longer, self.pools, terms, sets, accuracy) for sets in parts.values()]
            shown = [one.text(sign=True) if one else "-" for one in found]
            rows.append((f"{kind}: stage 1 less no stage 1", *shown))
        return [
            "## Length",
            "",
            "How often the longer response is preferred. Not one of the claims: looked at because length is what a",
            "judge learns first.",
            "",
            *_table(("judge", *parts), rows),
            "",
        ]

    def _calibration(self) -> list[str]:
        size, names = self.size, list(self.pools.tests)
        rows = []
        for kind, make in (
            ("generative, no stage 1", lambda s: generative(size, s, 0.0)),
            ("discriminative, no stage 1", lambda s: discriminative(size, s)),
            ("generative, stage 1", lambda s: generative(size, s)),
            ("discriminative, stage 1", lambda s: discriminative(size, s, 1.0)),
        ):
            cells = [make(seed) for seed in size.seeds]
            found = [calibration_error(self.found, self.pools, cells, name) for name in names]
            rows.append((kind, *(one.text() if one else "-" for one in found)))
        note = "Few pairs make the error large by themselves, and its interval with it."
        table = _table(("judge", *names), rows)
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
                shown = [
                    self._figure([cell], sets, accuracy) for sets in (self.inside, self.outside)
                ]
                rows.append((f"{cell.kind}, x {cell.rate:.2g}", *shown))
        head = ("no stage 1, learning rate", "in distribution", "out of distribution")
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
    ) -> str:
        results = self.found if results is None else results
        if any(
            cell in results and name not in results[cell]["sets"] for cell in cells for name in sets
        ):
            return "-"
        found = contrast(results, self.pools, [(1.0, cells)], sets, measure, weigh)
        return found.text() if found else "-"

    def _curve(
        self,
        title: str,
        name: str,
        series: dict[str, dict[str, Sequence[Cell]]],
        parts: dict[str, Sequence[str]] | None = None,
    ) -> list[str]:
        """A table and, where two values or more are there, a plot of accuracy and Brier score against them."""
        parts = parts or {"in distribution": self.inside, "out of distribution": self.outside}
        found = {
            (which, value, part, measure.__name__): contrast(
                self.found, self.pools, [(1.0, cells)], sets, measure
            )
            for which, values in series.items()
            for value, cells in values.items()
            for part, sets in parts.items()
            for measure in (accuracy, brier)
        }
        rows = []
        for which, values in series.items():
            for value in values:
                cells = [
                    found[which, value, part, measure]
                    for measure in ("accuracy", "brier")
                    for part in parts
                ]
                start = (value,) if len(series) == 1 else (which, value)
                rows.append((*start, *(one.text() if one else "-" for one in cells)))
        head = [name] if len(series) == 1 else ["judge", name]
        head += [f"{what}, {part}" for what in ("accuracy", "Brier") for part in parts]
        lines = [f"## {title}", "", *_table(head, rows), ""]
        there = {
            (which, value)
            for which, value, part, measure in found
            if found[which, value, part, measure] is not None
        }
        if len({value for _, value in there}) < 2:
            return lines
        picture = self.path.with_name(f"claims-{name}.svg")
        _plot(picture, name, series, list(parts), found)
        return [
            *lines[:2],
            f"![Accuracy and Brier score by {name}]({picture.name})",
            "",
            *lines[2:],
        ]


def _plot(
    path: Path,
    name: str,
    series: dict[str, dict[str, Sequence[Cell]]],
    parts: Sequence[str],
    found: dict[tuple[str, str, str, str], Estimate | None],
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "claims"  # else every drawing of the same differs
    import matplotlib.pyplot as plt

    figure, fields = plt.subplots(1, 2, figsize=(9.2, 3.6))
    for axes, measure, chance in zip(fields, ("accuracy", "brier"), (0.5, 0.25), strict=True):
        shift = 0.0
        for which, values in series.items():
            for part in parts:
                points = [
                    (at + shift, found[which, value, part, measure])
                    for at, value in enumerate(values)
                    if found[which, value, part, measure] is not None
                ]
                if not points:
                    continue
                x, y = [at for at, _ in points], [one.value for _, one in points]
                spread = [
                    [max(0.0, one.value - one.low) for _, one in points],
                    [max(0.0, one.high - one.value) for _, one in points],
                ]
                label = ", ".join(
                    x for x, many in ((which, series), (part, parts)) if len(many) > 1
                )
                axes.errorbar(x, y, spread, marker="o", capsize=2, linewidth=1, label=label)
                shift += 0.05
        axes.axhline(chance, color="0.6", linewidth=0.8, linestyle="--")
        values = next(iter(series.values()))
        axes.set_xticks(range(len(values)), list(values))
        axes.set_xlabel(name)
        axes.set_ylabel("accuracy" if measure == "accuracy" else "Brier score")
        axes.spines[["top", "right"]].set_visible(False)
    named = fields[0].get_legend_handles_labels()
    figure.legend(*named, loc="upper center", ncols=3, frameon=False, fontsize=7)
    figure.tight_layout(rect=(0, 0, 1, 0.91))  # the names stand above, where no curve is
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]
