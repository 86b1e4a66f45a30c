"""The claims of the paper, as pairs of judges of the grid: the first should be better."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cells import Cell, adapted, by_share, by_smoothing, discriminative, generative
from sizes import Size


@dataclass(frozen=True)
class Comparison:
    """A row of the claims. claim: empty below its first row; better, worse: the same cell with every seed."""

    claim: str
    compared: str
    better: Sequence[Cell]
    worse: Sequence[Cell]
    sets: Sequence[str]


def comparisons(size: Size, inside: Sequence[str], outside: Sequence[str]) -> Iterator[Comparison]:
    """All of them. inside, outside: the sets in and out of distribution."""
    yield from _of_stage_one(size, inside, outside)
    yield from _of_smoothing(size, outside)
    yield from _of_kinds(size, inside, outside)
    quarter = [by_share(size, seed)[1] for seed in size.seeds]
    claim = "4. More unlabeled data helps out of distribution"
    yield Comparison(claim, "all unlabeled data against a quarter", _both(size), quarter, outside)
    yield from _of_adaptation(size)


def _both(size: Size) -> list[Cell]:
    """The judge of the method, with both stages."""
    return [generative(size, seed) for seed in size.seeds]


def _raw(size: Size) -> list[Cell]:
    """Without stage 1."""
    return [generative(size, seed, 0.0) for seed in size.seeds]


def _of_stage_one(
    size: Size, inside: Sequence[str], outside: Sequence[str]
) -> Iterator[Comparison]:
    claim = "1. Stage 1 helps the generative judge out of distribution"
    stage = "stage 1 against no stage 1"
    yield Comparison(claim, stage, _both(size), _raw(size), outside)
    yield Comparison("", f"{stage}, in distribution", _both(size), _raw(size), inside)


def _of_smoothing(size: Size, outside: Sequence[str]) -> Iterator[Comparison]:
    none, much = (
        [by_smoothing(size, seed, (value,))[0] for seed in size.seeds] for value in (0.0, 0.3)
    )
    claim = "2. Label smoothing helps out of distribution"
    yield Comparison(claim, "smoothing 0.1 against none", _both(size), none, outside)
    yield Comparison("", "smoothing 0.1 against 0.3", _both(size), much, outside)


def _of_kinds(size: Size, inside: Sequence[str], outside: Sequence[str]) -> Iterator[Comparison]:
    both, raw = _both(size), _raw(size)
    scalar = [discriminative(size, seed) for seed in size.seeds]
    scalar_both = [discriminative(size, seed, 1.0) for seed in size.seeds]
    claim = "3. The generative judge beats a discriminative one out of distribution"
    kinds = "generative with stage 1 against discriminative without"
    yield Comparison(claim, kinds, both, scalar, outside)
    yield Comparison("", f"{kinds}, in distribution", both, scalar, inside)
    each = "generative against discriminative, both"
    yield Comparison("", f"{each} with stage 1", both, scalar_both, outside)
    yield Comparison("", f"{each} without stage 1", raw, scalar, outside)


def _of_adaptation(size: Size) -> Iterator[Comparison]:
    claim = "5. With few labels of a task the foundation adapts better than the raw model"
    for count in dict.fromkeys((size.domain_labels[-1], size.domain_labels[0])):
        pairs = [adapted(size, seed, count) for seed in size.seeds]
        foundation, plain = ([pair[at] for pair in pairs] for at in (0, 1))
        compared = f"the foundation against the raw model, {count} labels"
        yield Comparison(claim, compared, foundation, plain, [size.domain])
        claim = ""
