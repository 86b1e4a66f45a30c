"""Evaluation data sets: read a source, detect its benchmark, and check its rows before scoring."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from gram_jax.data.mapping import ColumnMap
from gram_jax.data.reading import IDENTICAL, OnBad, read_records, source_schema
from gram_jax.data.records import Comparison
from gram_jax.data.report import ReadReport
from gram_jax.errors import DataError
from gram_jax.evals.benchmarks import (
    JUDGEBENCH,
    REWARD_BENCH,
    REWARD_BENCH_2,
    RM_BENCH,
    STYLES,
    cell,
)
from gram_jax.evals.graded import check_graded, check_ties
from gram_jax.evals.pairwise import labeled
from gram_jax.evals.results import RANKED, BenchmarkName

logger = logging.getLogger(__name__)

# The datasets of the hub, for `--benchmark NAME` without a source.
HUB = {
    "rewardbench": "allenai/reward-bench:filtered",
    "rewardbench2": "allenai/reward-bench-2:test",
    "rmbench": "THU-KEG/RM-Bench",
    "judgebench": "ScalerLab/JudgeBench:gpt",  # the 350 pairs of the published results
}
# Schema -> benchmark. RewardBench has the schema of plain labeled pairs; its subset names identify it.
SCHEMAS: dict[str, BenchmarkName] = {
    "judgebench": "judgebench",
    "rm-bench": "rmbench",
    "reward-bench-2": "rewardbench2",
    "candidates": "best_of_n",
}
# Benchmark -> its title, the field with the subset of a row, and the prefixes of the subset names.
SUBSETS = {
    "judgebench": ("JudgeBench", "source", tuple(JUDGEBENCH.values())),
    "rmbench": ("RM-Bench", "domain", RM_BENCH),
    "rewardbench2": ("RewardBench 2", "subset", REWARD_BENCH_2),
}
CELLS = len(STYLES) ** 2
ON_BOTH_SIDES = "a text both chosen and rejected"


@dataclass(frozen=True)
class EvalDataset:
    """The records of a source and its benchmark."""

    source: str
    benchmark: BenchmarkName
    records: list[Any]  # Comparison, or Candidates if `ranks`
    read: ReadReport
    skipped_ties: int = 0

    @property
    def ranks(self) -> bool:
        """Whether each record has several responses, which the judge ranks."""
        return self.benchmark in RANKED


def read_dataset(
    source: str,
    benchmark: str = "auto",
    *,
    schema: str = "auto",
    on_bad: OnBad = "error",
    limit: int | None = None,
    map: ColumnMap | None = None,
) -> EvalDataset:
    """Read a source and detect its benchmark from its fields and subset names.

    benchmark: the required benchmark, "auto" for any. limit: maximum number of pairs, or of rows for RM-Bench and for
    rows with several responses. Raises DataError if rows cannot be read, if no pair has a label, and if the source is
    not the required benchmark.
    """
    if benchmark not in (choices := ("auto", *get_args(BenchmarkName))):
        raise DataError(f"unknown benchmark {benchmark!r}: expected one of {', '.join(choices)}")
    found = source_schema(source, schema=schema, map=map)
    known = SCHEMAS.get(found.name)
    ranks = known in RANKED and benchmark in ("auto", *RANKED)
    nine = CELLS if known == "rmbench" and benchmark in ("auto", known) else 1
    most = None if limit is None else limit * nine
    records, read = read_records(
        source,
        "graded" if ranks else "preference",
        schema=schema,
        on_bad=on_bad,
        limit=most,
        map=map,
    )
    ties = 0
    if not ranks:
        try:
            records, ties = labeled(records)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
    unknown = Counter() if known else _unknown_subsets(records)
    name = known or ("pairs" if unknown else "rewardbench")
    if benchmark not in ("auto", "pairs", name):
        why = f"its rows have the schema {found.name} and are read as {name}"
        if benchmark == "rewardbench" and unknown:
            why = f"it has {_say(unknown, records)}"
        raise DataError(f"{source} is not {benchmark}: {why}. {_expected(benchmark)}")
    if benchmark == "auto" and 0 < unknown.total() < len(records):
        logger.warning(
            f"{source}: read as plain pairs, since it has {_say(unknown, records)}; the others are in RewardBench. "
            "--benchmark rewardbench rejects such a source, --benchmark pairs accepts it"
        )
    name = name if benchmark == "auto" else benchmark
    if most is not None and len(records) + ties >= most:
        logger.warning(
            f"{source}: only the first {limit:,} rows are evaluated, not a random sample"
        )
    if name == "rmbench":
        records, read = _whole_rows(source, records, read, on_bad, limited=limit is not None)
    _check(source, name, records)
    return EvalDataset(source, name, records, read, ties)


def _unknown_subsets(records: Sequence[Comparison]) -> Counter[str]:
    """Number of records of each subset that is not in RewardBench."""
    known = {name for subsets in REWARD_BENCH.values() for name in subsets}
    return Counter(record.source for record in records if record.source not in known)


def _say(unknown: Counter[str], records: Sequence[Comparison]) -> str:
    name, _ = unknown.most_common(1)[0]
    share = f"{unknown.total():,} of {len(records):,} pairs"
    if not name:
        return f"no subset in some rows ({share})"
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return f"the subset {name!r}{more}, which is not in RewardBench ({share})"


def _expected(benchmark: str) -> str:
    if benchmark == "rewardbench":
        return (
            "Expected the columns prompt, chosen, rejected, and subset with a subset of RewardBench"
        )
    name = next(schema for schema, known in SCHEMAS.items() if known == benchmark)
    return f"Expected the schema {name}; --benchmark pairs accepts any labeled pairs"


def _check(source: str, name: BenchmarkName, records: Sequence[Any]) -> None:
    """Raises DataError if the benchmark's metrics cannot be computed from the rows; called before scoring."""
    if name in SUBSETS:
        title, field, starts = SUBSETS[name]
        found = {record.source.partition("|")[0] for record in records}
        if unknown := sorted(one for one in found if not one.startswith(starts)):
            raise DataError(
                f"{source}: {title} has no {field} {', '.join(map(repr, unknown))}: expected names that begin with "
                f"{', '.join(starts)}; --benchmark pairs accepts any"
            )
    try:
        if name in RANKED:
            check_graded(records)
        if name == "rewardbench2":
            check_ties(records)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _whole_rows(
    source: str, records: list[Comparison], read: ReadReport, on_bad: OnBad, *, limited: bool
) -> tuple[list[Comparison], ReadReport]:
    """The pairs of complete rows of RM-Bench, with the cell as subset; without a last row that the limit truncates.

    A row with the same text in chosen and rejected has fewer than nine pairs. Such a row raises DataError, or is left
    out and counted if `on_bad` is "skip".
    """
    style = "|".join(STYLES)  # in the last brackets: the id itself may contain brackets
    last = re.compile(rf"(.*)\[({style}),({style})\]", re.DOTALL)
    cells = [found for record in records if (found := last.match(record.id))]
    if len(cells) < len(records):
        raise DataError(f"{source}: RM-Bench needs the column id, which groups nine pairs")
    rows = [(found[1], record.prompt) for record, found in zip(records, cells, strict=True)]
    sizes = Counter(rows)
    if limited and sizes[rows[-1]] < CELLS:
        del sizes[rows[-1]]
    broken = [row for row, size in sizes.items() if size % CELLS]
    if broken and on_bad == "error":
        raise DataError(
            f"{source}: row {broken[0][0]!r} has the same text in chosen and in rejected, which leaves "
            f"{sizes[broken[0]]} of the 9 pairs of RM-Bench's matrix ({len(broken)} such rows): expected three "
            'responses in chosen and others in rejected; on_bad = "skip" (--on-bad skip) counts and skips such rows'
        )
    for row in broken:
        del sizes[row]
    named = [
        replace(record, source=cell(record.source, found[2], found[3]))
        for record, found, row in zip(records, cells, rows, strict=True)
        if row in sizes
    ]
    if not named:
        raise DataError(
            f"{source}: no complete row of nine pairs{' within the limit' if limited else ''}"
        )
    dropped = {why: count for why, count in read.dropped.items() if why != IDENTICAL}
    if broken:
        dropped[ON_BOTH_SIDES] = len(broken)
    return named, ReadReport(read.rows, len(named), dropped)


def stem_of(source: str) -> str:
    """A file name for a source: its name without extensions.

    >>> stem_of("data/pairs.v2.jsonl.gz"), stem_of("allenai/reward-bench:filtered")
    ('pairs.v2', 'allenai-reward-bench-filtered')
    """
    path = Path(source)
    name = path.name if path.exists() or path.suffix else source.strip("/")
    name = re.sub(r"\.(jsonl?|parquet|csv)(\.gz)?$", "", name)
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "source"
