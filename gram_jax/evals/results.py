"""evaluation.json: the declaration by which the figures of a judge are written and read.

A key that is missing, unknown, of another type or out of its range is an error. null: a figure does not apply.
"""

import json
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gram_jax.errors import ReportError

FORMAT = 2
SHOWN_PROBLEMS = 8

BenchmarkName = Literal[
    "pairs", "rewardbench", "rewardbench2", "rmbench", "judgebench", "best_of_n"
]
# Benchmarks whose items are several graded responses to a prompt, of which the judge picks one.
RANKED: tuple[BenchmarkName, ...] = ("rewardbench2", "best_of_n")

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Ties of RewardBench 2 exceeds the range of a share by a hundredth on both sides (evals/graded.py).
Score = Annotated[float, Field(ge=-0.011, le=1.011)]
Interval = tuple[float, float]


class ResultModel(BaseModel):
    """A value of a results file."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid")


class PairMetrics(ResultModel):
    """A judge on n labeled pairs. All shares are of pairs, never of forward passes.

    accuracy: the chosen response has strictly more than half, both orders averaged; interval: 95 %, Wilson's, wider
    if pairs share their prompt. prompts: number of different ones.
    accuracy_chosen_first, accuracy_chosen_second: the same from the one order that shows the chosen one there.
    accuracy_longer, accuracy_shorter: among the pairs whose chosen response is the longer (shorter) one, in
    characters; None without such pairs. length_slope: log-odds that a response gains when it is twice as long as the
    other, by least squares through zero: far from 0 if the judge prefers a length, or quality and length correlate.
    consistency: both orders name the same response. position_bias: mean P(a response) when shown first less P when
    shown second.
    ties: exactly half, counted as wrong. ece, brier: calibration of the averaged probability.
    margin: mean log-odds of the chosen response. shortened: share that did not fit the token budget.
    skipped_ties: pairs that the source itself calls a tie; not counted in n.
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
    margin: float
    shortened: Share
    skipped_ties: Count
    by_source: dict[str, tuple[Count, Share]]


class BenchmarkFigure(ResultModel):
    """A benchmark's own figure; by: whose definition it is."""

    name: str
    value: float
    interval: Interval | None
    definition: str
    by: str


class SubsetAccuracy(ResultModel):
    """A named part of a source; n: its pairs, or its prompts if each has several graded responses."""

    name: str
    n: Count
    prompts: Count
    accuracy: Score
    interval: Interval | None


class BenchmarkTable(ResultModel):
    """A table of a benchmark's own, such as RM-Bench's matrix of styles."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float | None]]


class AccuracyBin(ResultModel):
    """Pairs whose confidence, or difference of lengths, is between two values; None is no bound."""

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
    """confidence: the mean over the bin."""

    confidence: Share | None

    @model_validator(mode="after")
    def _has_a_mean(self) -> Self:
        if self.n and self.confidence is None:
            raise ValueError("a bin with pairs has a mean confidence")
        return self


class LengthBin(AccuracyBin):
    """Bounds are log2(length of the chosen / length of the rejected response)."""

    interval: Interval | None


class TemperatureFit(ResultModel):
    """A temperature by which log-odds are divided, fitted on one part of the pairs and tested on the other."""

    value: float
    fitted_on: Count
    tested_on: Count
    ece_before: Share
    ece_after: Share
    nll_before: float
    nll_after: float


class Calibration(ResultModel):
    """Whether P = 0.8 is right in 80 of 100 cases; nll: of the probability, in nats."""

    nll: float
    bins: list[ConfidenceBin]
    temperature: TemperatureFit | None


class LengthBias(ResultModel):
    """controlled_accuracy: the accuracy if length were no help."""

    controlled_accuracy: Share | None
    bins: list[LengthBin]


class Histogram(ResultModel):
    """counts[i] lies between edges[i] and edges[i + 1]."""

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
    """Which pairs are right (1 or 0), and the numbers of their prompts, in an order that the contents decide."""

    right: Annotated[str, Field(pattern="^[01]+$")]
    prompts: Annotated[str, Field(pattern=r"^\d+( \d+)*$")]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(self.right) != self.prompts.count(" ") + 1:
            raise ValueError("expected the number of a prompt for each pair")
        return self


class SourceResult(ResultModel):
    """Everything measured on one source.

    contents: a hash of texts and labels, the same for the same pairs in any file. rows: rows read. outcomes: None if
    the benchmark ranks. positions: histogram of the pairs' position bias.
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
    positions: Histogram
    grades: GradeAgreement | None
    worst: list[Mistake]

    @property
    def ranks(self) -> bool:
        """Whether an item is a prompt with several graded responses; `pairs` are then those of different grades."""
        return self.benchmark in RANKED


class JudgeSettings(ResultModel):
    """The settings of the judge; weights: their number format, or int8."""

    compute_dtype: str
    weights: str
    max_length: Count
    labels: str


class JudgeResults(ResultModel):
    """The beginning of every results file: the judge of its figures.

    judge: hash of the judge specification. fingerprint: of the weights in the number format of `settings`.
    """

    FILE: ClassVar[str]

    format: Literal[2] = FORMAT
    gram_jax: str
    model: str
    judge: str
    fingerprint: str
    settings: JudgeSettings


class EvaluationResults(JudgeResults):
    """evaluation.json: sources by their names."""

    FILE: ClassVar[str] = "evaluation.json"

    sources: Annotated[dict[str, SourceResult], Field(min_length=1)]


_Results = TypeVar("_Results", bound=JudgeResults)


def read_results(folder: Path, kind: type[_Results]) -> _Results | None:
    """The results file of this kind in a folder, None if there is none.

    Raises ReportError for a damaged file or another format.
    """
    path = folder / kind.FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path} cannot be read as JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        version = content.get("gram_jax", "unknown") if isinstance(content, dict) else "unknown"
        raise ReportError(
            f"{path} has format {found!r} (gram_jax {version}), expected {FORMAT}: read it with the version that wrote "
            "it, or evaluate the model again"
        )
    # Unpaired surrogates, which a slice through an emoji leaves, cannot be encoded in UTF-8.
    text = re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(content, ensure_ascii=False))
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ReportError(_explain(path, error)) from None


def read_judge(path: Path) -> JudgeResults | None:
    """The judge of a results file; None if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return JudgeResults.model_validate(
            {name: content[name] for name in JudgeResults.model_fields}
        )
    except (OSError, ValueError, KeyError, TypeError):
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
