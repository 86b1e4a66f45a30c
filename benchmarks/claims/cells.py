"""The cells of the grid and their order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sizes import Size

SMOOTHINGS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
SHARES = (0.0, 0.25, 0.5, 1.0)
# Uses of unlabeled pairs: the paper's stage 1 in the size's layout, or in GRAM's; the verdict on corrupted responses
# (data/self_supervised.py); order consistency in stage 2, without a stage 1 (losses.order_divergence).
FIRST_STAGES = ("pretrain", "gram", "corruptions", "consistency")
FACTORS = (1 / 3, 3.0)  # of the learning rate, to check whether it decides a comparison


@dataclass(frozen=True)
class Cell:
    """One judge, trained and tested.

    kind: "generative" or "discriminative" (a scalar head, Bradley-Terry). unlabeled: share of the unlabeled pairs in
    stage 1, 0 for none. labels: preferences in stage 2, 0 for none. smoothing: torch's, 0 for the baseline, which has
    none. rate: factor of the learning rate of stage 2. domain: number of pairs of the new domain for training after
    stage 2; None for a cell without adaptation. first: what is done with the unlabeled pairs (FIRST_STAGES).
    """

    kind: str
    seed: int
    unlabeled: float
    labels: int
    smoothing: float = 0.1
    rate: float = 1.0
    domain: int | None = None
    first: str = "pretrain"

    @property
    def name(self) -> str:
        """A description of the cell."""
        if not self.labels and not self.domain:
            return "base model, not trained"
        parts = [self.kind]
        stage = "stage 1" if self.first == "pretrain" else self.first
        parts += [f"{stage} on {self.unlabeled:.0%}"] if self.unlabeled else ["no stage 1"]
        parts += [f"{count_text(self.labels)} labels"]
        parts += [f"smoothing {self.smoothing:g}"] if self.kind == "generative" else []
        parts += [f"learning rate x {self.rate:.2g}"] if self.rate != 1 else []
        parts += [f"{self.domain} of the new domain"] if self.domain else []
        return ", ".join([*parts, f"seed {self.seed}"])


def count_text(count: int) -> str:
    """A number of pairs as text."""
    return "all" if count >= 10**9 else f"{count:,}"


RAW = Cell("generative", seed=0, unlabeled=0.0, labels=0)


def generative(size: Size, seed: int, unlabeled: float = 1.0) -> Cell:
    """The judge of the method: both stages, with the default settings."""
    return Cell("generative", seed, unlabeled, size.base)


def discriminative(size: Size, seed: int, unlabeled: float = 0.0) -> Cell:
    """The baseline on the same labels."""
    return Cell("discriminative", seed, unlabeled, size.base, smoothing=0.0)


def main_four(size: Size, seed: int) -> list[Cell]:
    """{generative, discriminative} x {stage 1, no stage 1}."""
    return [
        generative(size, seed, 0.0),
        discriminative(size, seed),
        generative(size, seed),
        discriminative(size, seed, 1.0),
    ]


def by_smoothing(size: Size, seed: int, values: Sequence[float] = SMOOTHINGS) -> list[Cell]:
    """Both stages with other smoothing."""
    return [replace(generative(size, seed), smoothing=value) for value in values]


def by_share(size: Size, seed: int) -> list[Cell]:
    """Both stages with less unlabeled data."""
    return [generative(size, seed, share) for share in SHARES]


def by_first(size: Size, seed: int) -> list[Cell]:
    """The judge of the method with other uses of the unlabeled pairs."""
    return [replace(generative(size, seed), first=first) for first in size.first_stages]


def by_labels(size: Size, seed: int) -> list[list[Cell]]:
    """The judges whose curves over the number of labels are drawn."""
    kinds = [generative(size, seed), generative(size, seed, 0.0), discriminative(size, seed)]
    return [[replace(cell, labels=count) for count in size.labels] for cell in kinds]


def adapted(size: Size, seed: int, count: int) -> tuple[Cell, Cell]:
    """(from the foundation, from the raw model) with `count` labels of the new domain; 0: without adaptation."""
    foundation = generative(size, seed)
    if not count:
        return foundation, RAW
    raw = replace(RAW, seed=seed, domain=count)
    return replace(foundation, domain=count), raw


def by_domain(size: Size, seed: int) -> list[Cell]:
    """Both of `adapted` for every number of labels."""
    return [cell for count in size.domain_labels for cell in adapted(size, seed, count)]


def by_rate(size: Size, seed: int) -> list[list[Cell]]:
    """Without stage 1, other learning rates."""
    kinds = [generative(size, seed, 0.0), discriminative(size, seed)]
    return [[replace(cell, rate=rate) for rate in (FACTORS[0], 1.0, FACTORS[1])] for cell in kinds]


def grid(size: Size, seeds: Sequence[int]) -> list[Cell]:
    """All cells, each once, the most informative first."""
    return list(dict.fromkeys(_in_order(size, seeds)))


def _in_order(size: Size, seeds: Sequence[int]) -> Iterator[Cell]:
    yield RAW
    for seed in seeds[:3]:  # a row of every claim before a second seed of any
        yield from main_four(size, seed)
        yield from by_smoothing(size, seed, (0.0, 0.3))
        yield from adapted(size, seed, size.domain_labels[-1])
        yield generative(size, seed, SHARES[1])
        yield from by_first(size, seed)
    for seed in seeds[:3]:
        yield from by_share(size, seed)
        yield from by_domain(size, seed)
    for of_kind in by_rate(size, seeds[0]):
        yield from of_kind
    for seed in seeds:
        yield from main_four(size, seed)
        yield from (cell for of_kind in by_labels(size, seed) for cell in of_kind)
        yield from by_smoothing(size, seed)
        yield from by_first(size, seed)
    for seed in seeds:
        yield from by_share(size, seed)
        yield from by_domain(size, seed)
