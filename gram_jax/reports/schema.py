"""evaluation.json and attack.json as values, read strictly: all that a report or a card knows of a model's quality.

The classes below are the format. A key that is missing, of another type or out of its range is an error; a null stands
where something does not apply. Keys that are not listed here are left alone.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gram_jax.errors import ReportError

FORMAT = 1
# Benchmarks whose items are several graded responses to a prompt, of which one is to be picked.
RANKED = ("rewardbench2", "best_of_n")
SHOWN_PROBLEMS = 8

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Ties of RewardBench 2 goes a hundredth beyond a share on both sides (evals/graded.py).
Score = Annotated[float, Field(ge=-0.011, le=1.011)]
Interval = tuple[float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Pairs(_Strict):
    """What PairwiseReport holds (evals/pairwise.py) and a page shows."""

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


class Official(_Strict):
    """A benchmark's own figure; by: whose definition it is."""

    name: str
    value: float
    interval: Interval | None
    definition: str
    by: str


class Subset(_Strict):
    """A named part of a source; n: its pairs, or its prompts where each has several graded responses."""

    name: str
    n: Count
    prompts: Count | None
    accuracy: Score
    interval: Interval | None


class ExtraTable(_Strict):
    """A table of a benchmark's own, as it wants to be shown."""

    title: str
    columns: list[str]
    rows: list[list[str | int | float | None]]


class Bin(_Strict):
    """Pairs whose confidence, or difference of lengths, is between two values; None is no bound."""

    low: float | None
    high: float | None
    n: Count
    accuracy: Share | None

    @model_validator(mode="after")
    def _says_what_it_counts(self) -> Self:
        if self.n and (self.accuracy is None or (self.low is None and self.high is None)):
            raise ValueError("a bin with pairs has an accuracy and a bound")
        return self


class ConfidenceBin(Bin):
    """confidence: the mean over the bin."""

    confidence: Share | None

    @model_validator(mode="after")
    def _has_a_mean(self) -> Self:
        if self.n and self.confidence is None:
            raise ValueError("a bin with pairs has a mean confidence")
        return self


class LengthBin(Bin):
    """Bounds are log2(length of the chosen / length of the rejected response)."""

    interval: Interval | None


class Temperature(_Strict):
    """A temperature fitted on one part of the pairs and tested on the other."""

    value: float
    fitted_on: Count
    tested_on: Count
    ece_before: Share
    ece_after: Share
    nll_before: float
    nll_after: float


class Calibration(_Strict):
    """Whether P = 0.8 is right in 80 of 100 cases."""

    ece: Share
    brier: Share
    nll: float
    bins: list[ConfidenceBin]
    temperature: Temperature | None


class Length(_Strict):
    """slope: log-odds for twice the length; controlled_accuracy: where length is no help."""

    slope: float
    controlled_accuracy: Share | None
    bins: list[LengthBin]


class Histogram(_Strict):
    """counts[i] lies between edges[i] and edges[i + 1]."""

    edges: list[float]
    counts: list[Count]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if len(self.edges) != len(self.counts) + 1 or sorted(set(self.edges)) != self.edges:
            raise ValueError("expected one more edge than there are counts, in rising order")
        return self


class Position(_Strict):
    """What the order of showing does; histogram: of the order gaps."""

    bias: float
    consistency: Share
    accuracy_chosen_first: Share
    accuracy_chosen_second: Share
    histogram: Histogram


class Grades(_Strict):
    """Agreement with graded preferences.

    pairs: how many of them; where a prompt has several graded responses (`Source.ranks`) they are prompts.
    """

    pairs: Count
    kendall: float | None
    pearson: float | None


class Mistake(_Strict):
    """A pair on which the judge was surest of the wrong response; probability: P(chosen)."""

    id: str | int | None
    prompt: str
    chosen: str
    rejected: str
    probability: Share
    position_bias: float | None
    subset: str | None


class Outcomes(_Strict):
    """Who is right where, in an order that the contents decide (evals/paired.py): 1 and 0, and the prompts' numbers."""

    right: Annotated[str, Field(pattern="^[01]+$")]
    prompts: Annotated[str, Field(pattern=r"^\d+( \d+)*$")]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(self.right) != self.prompts.count(" ") + 1:
            raise ValueError("expected the number of a prompt for each pair")
        return self


class Source(_Strict):
    """Everything measured on one source; contents: a hash of what it asks, None where an older version wrote it."""

    source: str
    contents: str | None = None
    benchmark: str
    rows: Count
    dropped: dict[str, Count]
    pairs: Pairs | None
    outcomes: Outcomes | None = None
    official: list[Official]
    subsets: list[Subset]
    tables: list[ExtraTable]
    calibration: Calibration | None
    length: Length | None
    position: Position | None
    grades: Grades | None
    worst: list[Mistake]

    @property
    def ranks(self) -> bool:
        """Whether an item is a prompt with several graded responses; `pairs` are then all of these of unlike grades."""
        return self.benchmark in RANKED


class _Results(_Strict):
    """Whose results a file holds. fingerprint: of the weights as `settings` say that they were held."""

    format: int
    gram_jax: str
    model: str
    judge: str
    fingerprint: str
    settings: dict[str, Any]


class Evaluation(_Results):
    """evaluation.json."""

    sources: Annotated[dict[str, Source], Field(min_length=1)]


class Clean(_Strict):
    """The judge on the same pairs, left alone.

    flip_rate: the rejected response wins; order_flip_rate: the two orders contradict each other.
    """

    accuracy: Share
    interval: Interval | None
    flip_rate: Share
    flip_interval: Interval | None
    order_flip_rate: Share
    order_flip_interval: Interval | None


class AttackExample(_Strict):
    """probability: of the changed response to be the better one; before: the same as it was, None if not known."""

    prompt: str
    honest: str
    attack: str
    probability: Share
    before: Share | None


class OneOrder(_Strict):
    """What comes of one order of showing alone."""

    success: Share
    baseline: Share


class Attack(_Strict):
    """success: share of n in which it won; baseline: the share to expect without it.

    Of hostile ones only: turned, the success on pairs that the judge has right (None where it has none), and the
    success where the attacked response is shown first, and second.
    """

    name: str
    kind: Literal["hostile", "harmless"]
    description: str
    n: Count
    success: Share
    interval: Interval | None
    baseline: Share | None
    turned: Share | None = None
    shown_first: OneOrder | None = None
    shown_second: OneOrder | None = None
    example: AttackExample | None


class Turned(_Strict):
    """Of n pairs that the judge has right, the share that some hostile attack turns."""

    n: Count
    share: Share | None
    interval: Interval | None


class Attacks(_Results):
    """attack.json; contents as in the sources of evaluation.json."""

    source: str
    contents: str | None = None
    pairs: Count
    clean: Clean
    any_hostile: Turned | None
    attacks: list[Attack]
    without_pairs: list[str]


_File = TypeVar("_File", Evaluation, Attacks)


def read_file(path: Path, kind: type[_File]) -> _File | None:
    """A file as a value, None where there is none. Raises ReportError for a damaged one or another format."""
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
            f"{path} has format {found!r} (gram_jax {version}), expected {FORMAT}: make the report with the version "
            "that wrote it, or evaluate the model again"
        )
    # Halves of an emoji, which somebody's slice has left, have no place in UTF-8.
    text = re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(content, ensure_ascii=False))
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ReportError(_explain(path, error)) from None


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
        [f"{path} is not what format {FORMAT} has: evaluate the model again, or restore it", *lines]
    )
