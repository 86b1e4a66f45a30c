"""evaluation.json: the schema with which the metrics of a judge are written and read.

A missing or unknown key, a wrong type, or a value out of range is an error. null: the metric does not apply.
"""

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gram_jax.errors import DataError, ReportError
from gram_jax.files import write_json

FORMAT = 3
SHOWN_PROBLEMS = 8
CHECKSUM = "checksum"  # of a results file, over its other entries

BenchmarkName = Literal[
    "pairs", "rewardbench", "rewardbench2", "rmbench", "judgebench", "best_of_n"
]
# Benchmarks whose items are several graded responses to a prompt, of which the judge selects one.
RANKED: tuple[BenchmarkName, ...] = ("rewardbench2", "best_of_n")

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# The score of Ties of RewardBench 2 is between -0.01 and 1.01 (evals/graded.py).
Score = Annotated[float, Field(ge=-0.011, le=1.011)]
Interval = tuple[float, float]


class ResultModel(BaseModel):
    """A value of a results file."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid")


class PairMetrics(ResultModel):
    """Metrics of a judge on n labeled pairs. Shares are shares of pairs, not of forward passes.

    accuracy: share with P(chosen) > 0.5, averaged over both orders; interval: 95 %, Wilson's, wider if pairs share a
    prompt. prompts: number of different prompts.
    accuracy_chosen_first, accuracy_chosen_second: accuracy from one order, which shows the chosen response there.
    accuracy_longer, accuracy_shorter: accuracy on the pairs whose chosen response is the longer (shorter) one, in
    characters; None without such pairs. length_slope: log-odds that a response gains if it is twice as long as the
    other, by least squares through zero. It differs from 0 if the judge prefers a length, or if quality and length
    correlate.
    consistency: share whose two orders prefer the same response. position_bias: mean P(a response) if shown first minus
    P if shown second.
    ties: share with P = 0.5, counted as wrong. ece, brier: calibration of the averaged probability.
    selective_accuracy: accuracy of the half of the pairs with the highest confidence.
    margin: mean log-odds of the chosen response. shortened: share that was truncated to the token budget.
    skipped_ties: number of pairs that the source labels as ties; not counted in n.
    by_source: (pairs, accuracy) of each source or subset.
    """

    n: Count
    prompts: Count
    accuracy: Share
    interval: Interval
    accuracy_chosen_first: Share
    accuracy_chosen_second: Share
    accuracy_longer: Share | None
    accuracy_shorter: Share | None
    length_slope: float
    consistency: Share
    position_bias: float
    ties: Share
    ece: Share
    brier: Share
    selective_accuracy: Share
    margin: float
    shortened: Share
    skipped_ties: Count
    by_source: dict[str, tuple[Count, Share]]


class BenchmarkFigure(ResultModel):
    """An official metric of a benchmark; by: the author of the definition."""

    name: str
    value: float
    interval: Interval | None
    definition: str
    by: str


class SubsetAccuracy(ResultModel):
    """A subset of a source; n: number of pairs, or of prompts if each has several graded responses."""

    name: str
    n: Count
    prompts: Count
    accuracy: Score
    interval: Interval | None


class BenchmarkTable(ResultModel):
    """An additional table of a benchmark, such as the style matrix of RM-Bench."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float | None]]


class AccuracyBin(ResultModel):
    """Pairs whose confidence, or difference of lengths, is between two bounds; None: unbounded."""

    low: float | None
    high: float | None
    n: Count
    accuracy: Share | None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.n and (self.accuracy is None or (self.low is None and self.high is None)):
            raise ValueError("a bin with pairs has an accuracy and a bound")
        return self


class ConfidenceBin(AccuracyBin):
    """A bin of confidence; confidence: the mean over the bin."""

    confidence: Share | None

    @model_validator(mode="after")
    def _has_a_mean(self) -> Self:
        if self.n and self.confidence is None:
            raise ValueError("a bin with pairs has a mean confidence")
        return self


class LengthBin(AccuracyBin):
    """A bin of log2(length of the chosen / length of the rejected response)."""

    interval: Interval | None


class CoveragePoint(ResultModel):
    """Accuracy of a share of the pairs, those with the highest confidence."""

    coverage: Share
    accuracy: Share


class TemperatureFit(ResultModel):
    """A temperature that divides log-odds, fitted on one part of the pairs and tested on the other."""

    value: float
    fitted_on: Count
    tested_on: Count
    ece_before: Share
    ece_after: Share
    nll_before: float
    nll_after: float


class Calibration(ResultModel):
    """Calibration: whether P = 0.8 is right in 80 of 100 cases. nll: negative log-likelihood in nats.

    selective: accuracy over coverage, the smallest coverage first.
    """

    nll: float
    bins: list[ConfidenceBin]
    selective: list[CoveragePoint]
    temperature: TemperatureFit | None


class LengthBias(ResultModel):
    """controlled_accuracy: accuracy if the chosen response were the longer one in half of the pairs."""

    controlled_accuracy: Share | None
    bins: list[LengthBin]


class Histogram(ResultModel):
    """counts[i] is the number of values between edges[i] and edges[i + 1]."""

    edges: list[float]
    counts: list[Count]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if len(self.edges) != len(self.counts) + 1 or sorted(set(self.edges)) != self.edges:
            raise ValueError("expected one more edge than there are counts, in rising order")
        return self


class GradeAgreement(ResultModel):
    """Agreement with graded preferences.

    n: number of pairs, or of prompts if each has several graded responses (`SourceResult.ranks`).
    """

    n: Count
    kendall: float
    pearson: float


class Mistake(ResultModel):
    """A pair on which the judge prefers the rejected response with high confidence; probability: P(chosen)."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    probability: Share
    position_bias: float
    subset: str


class PairOutcomes(ResultModel):
    """Which pairs are right (1 or 0), and the numbers of their prompts, in an order set by the contents only."""

    right: Annotated[str, Field(pattern="^[01]+$")]
    prompts: Annotated[str, Field(pattern=r"^\d+( \d+)*$")]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(self.right) != self.prompts.count(" ") + 1:
            raise ValueError("expected the number of a prompt for each pair")
        return self


class SourceResult(ResultModel):
    """All metrics of one source.

    contents: hash of texts and labels, equal for the same pairs in any file. rows: number of rows read. outcomes: None
    for a ranking benchmark. cycles: share of cycles among the triples of responses to a prompt whose pairs were all
    compared; None without such triples. positions: histogram of the pairs' position bias.
    """

    source: str
    contents: str
    benchmark: BenchmarkName
    rows: Count
    dropped: dict[str, Count]
    pairs: PairMetrics
    outcomes: PairOutcomes | None
    official: list[BenchmarkFigure]
    subsets: list[SubsetAccuracy]
    tables: list[BenchmarkTable]
    calibration: Calibration
    length: LengthBias
    cycles: Share | None
    positions: Histogram
    grades: GradeAgreement | None
    worst: list[Mistake]

    @property
    def ranks(self) -> bool:
        """Whether an item is a prompt with several graded responses; `pairs` then have different grades."""
        return self.benchmark in RANKED


class JudgeSettings(ResultModel):
    """The settings of the judge; weights: their number format, or int8. think: how it thinks, if it does."""

    compute_dtype: str
    weights: str
    max_length: Count
    labels: str
    think: str | None = Field(default=None, exclude_if=lambda value: value is None)


class JudgeResults(ResultModel):
    """The header of every results file, which identifies the judge.

    judge: hash of the judge specification. fingerprint: of the weights in the number format of `settings`.
    """

    FILE: ClassVar[str]

    format: Literal[3] = FORMAT
    gram_jax: str
    model: str
    judge: str
    fingerprint: str
    settings: JudgeSettings


class EvaluationResults(JudgeResults):
    """evaluation.json: the results of each source, by name."""

    FILE: ClassVar[str] = "evaluation.json"

    sources: Annotated[dict[str, SourceResult], Field(min_length=1)]


_Results = TypeVar("_Results", bound=JudgeResults)


def save_results(folder: Path, results: JudgeResults) -> Path:
    """Write a results file into a folder, with a checksum of its content; returns its path. Raises DataError."""
    content = json.loads(json.dumps(results.model_dump()))
    content[CHECKSUM] = _checksum(content)
    return write_json(folder / results.FILE, content, error=DataError)


def _checksum(content: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_results(folder: Path, kind: type[_Results]) -> _Results | None:
    """The results file of this kind in a folder, None if there is none.

    Raises ReportError for a damaged file, an edited one whose checksum was not removed, or another format.
    """
    path = folder / kind.FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Unpaired surrogates, which result from slicing an emoji, cannot be encoded in UTF-8.
        entries = (
            {k: v for k, v in content.items() if k != CHECKSUM} if isinstance(content, dict) else {}
        )
        text = re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(entries, ensure_ascii=False))
        checksum = _checksum(entries)
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path} cannot be read as JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        version = content.get("gram_jax", "unknown") if isinstance(content, dict) else "unknown"
        raise ReportError(
            f"{path} has format {found!r} (gram_jax {version}), expected {FORMAT}: read it with the version that wrote "
            "it, or evaluate the model again"
        )
    if content.get(CHECKSUM, checksum) != checksum:
        raise ReportError(
            f"{path} was damaged or edited: its {CHECKSUM} is not that of its content. Evaluate the model again, or "
            f"restore it; if it was edited on purpose, remove its {CHECKSUM}"
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ReportError(_explain(path, error)) from None


def read_judge(path: Path) -> JudgeResults | None:
    """The header of a results file; None if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return JudgeResults.model_validate(
            {name: content[name] for name in JudgeResults.model_fields}
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _explain(path: Path, error: ValidationError) -> str:
    problems = error.errors()
    lines = [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        + ("" if problem["type"] == "missing" else f", found {problem['input']!r:.80}")
        for problem in problems[:SHOWN_PROBLEMS]
    ]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"... and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n  ".join(
        [f"{path} is not of format {FORMAT}: evaluate the model again, or restore it", *lines]
    )
