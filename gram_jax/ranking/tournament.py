"""Ranking n responses by comparisons of two. Arrays only; the caller compares.

A method is a generator: it yields the next comparisons, is sent their logit differences, and returns a Ranking. The
comparisons of many prompts' rounds are computed together. docs/ranking.md has the cost and the quality of each method.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.ranking.bradley_terry import bradley_terry

OrderedPair = tuple[int, int]  # the response shown first, and the one shown second
RankingMethod = Literal["groups", "round_robin", "bradley_terry", "knockout", "linear", "reference"]
OrderMode = Literal["both", "one"]

GROUP = 4  # of the same cost, groups of 4 choose best (docs/ranking.md)


class Ranking(NamedTuple):
    """n responses in order, with their strengths and measures of uncertainty.

    order: indices, best first. strengths: f32 [n], log-odds against the average of the distinct responses. errors: f32
    [n], their standard errors; of the Bradley-Terry fit alone, nan if there are too few comparisons.
    margins: f32 [n, n], antisymmetric, log-odds that i is better than j, nan if they were not compared. logit_diffs:
    f32 [n, n], log-odds with i shown first and j second, one order each.
    ties: share of the compared pairs without a winner: both orders name the response shown first, or both the second,
    or the log-odds are equal. cycles: share of cycles (i beats j beats k beats i) among the triples whose pairs were
    all compared; None without such triples. comparisons: number of sequences that went through the model. rounds:
    number of consecutive rounds. shortened: some text did not fit the token budget and was cut.
    """

    order: list[int]
    strengths: np.ndarray
    errors: np.ndarray | None
    margins: np.ndarray
    ties: float
    cycles: float | None
    comparisons: int
    rounds: int
    logit_diffs: np.ndarray
    shortened: bool = False

    def of_texts(self, at: Sequence[int]) -> "Ranking":
        """The ranking of texts, the k-th of which is response at[k] of this one; equal texts keep their order."""
        taken = np.asarray(at)
        place = np.argsort(self.order)
        return self._replace(
            order=np.argsort(place[taken], kind="stable").tolist(),
            strengths=self.strengths[taken],
            errors=None if self.errors is None else self.errors[taken],
            margins=self.margins[np.ix_(taken, taken)],
            logit_diffs=self.logit_diffs[np.ix_(taken, taken)],
        )


def count_cycles(margins: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """(number of cycles i beats j beats k beats i, number of triples whose pairs are all known).

    margins: [n, n], antisymmetric, positive if i beats j. known: bool [n, n], symmetric.
    """
    beats, met = ((margins > 0) & known).astype(float), known.astype(float)
    triples = np.einsum("ij,jk,ki->", met, met, met, optimize=True) / 6
    cyclic = np.einsum("ij,jk,ki->", beats, beats, beats, optimize=True) / 3
    return float(cyclic), float(triples)


Tournament = Generator[list[OrderedPair], Sequence[float], Ranking]
Rounds = Generator[list[OrderedPair], Sequence[float], None]  # of one method


def tournament(
    count: int,
    method: RankingMethod | None = None,
    *,
    order_mode: OrderMode = "both",
    references: Sequence[int] = (),
) -> Tournament:
    """Rank `count` responses. It yields rounds of comparisons and is sent their logit differences, in their order: of
    (i, j) the log-odds that i, shown first, is better than j.

    method, by default "groups" from 5 responses on and "round_robin" below:
      "groups": round robins in groups of 4; the better half advances. "round_robin": all against all.
      "bradley_terry": the same, and a fit with standard errors. "knockout": pairs, the winners advance (GRAM's divide
      and conquer). "linear": the best so far against the next (GRAM's linear search). "reference": all against
      `references` alone: indices of responses, or from `count` on of others that are not ranked.
    order_mode: "both" compares a pair in both orders, which cancels position bias. "one" costs half: every response is
    shown first about as often as second.

    The strengths are those that explain all log-odds best, by least squares: over a round robin the mean of the
    log-odds, which ranks clearly better than counting wins. The Bradley-Terry fit takes the probabilities instead.
    `RankingConfig` checks the options. Raises JudgeError if there is nothing to rank.
    """
    method = method or ("groups" if count > GROUP else "round_robin")
    if count < 1:
        raise JudgeError("nothing to rank: expected at least one response")
    others = max([count, *(index + 1 for index in references)])
    table = _Comparisons(others, both=order_mode == "both")

    def play() -> Tournament:
        if method == "reference":
            yield from table.compare((i, j) for i in range(count) for j in references)
        else:
            yield from METHODS[method](table, list(range(count)))
        strengths, errors = table.strengths(), None
        if method == "bradley_terry":
            strengths, errors = bradley_terry(table.logit_diffs)
        return table.result(strengths, errors, count)

    return play()


class _Comparisons:
    """Comparisons so far. logit_diffs: f64 [n, n], of the first shown against the second; nan if not compared."""

    def __init__(self, count: int, *, both: bool):
        self.logit_diffs = np.full((count, count), np.nan)
        self.both = both
        self.rounds = self.comparisons = 0
        self._excess_first = np.zeros(count, int)  # times shown first minus times shown second

    def compare(self, pairs: Iterable[OrderedPair]) -> Rounds:
        """Request the pairs that were not compared before."""
        requested: dict[OrderedPair, None] = {}
        known = self._known()
        for i, j in pairs:
            if i != j and not known[i, j] and not {(i, j), (j, i)} & requested.keys():
                requested[self._assign_order(i, j)] = None
                if self.both:
                    requested[(j, i)] = requested[(i, j)] = None
        if not requested:
            return
        found = yield list(requested)
        for pair, diff in zip(requested, found, strict=True):
            self.logit_diffs[pair] = diff
        self.rounds += 1
        self.comparisons += len(requested)

    def margins(self) -> np.ndarray:
        """Log-odds that i is better than j, mean over the known orders; antisymmetric, 0 if not compared."""
        seen = ~np.isnan(self.logit_diffs)
        total = np.where(seen, self.logit_diffs, 0) - np.where(seen, self.logit_diffs, 0).T
        return total / np.maximum(1, seen.astype(int) + seen.T)

    def strengths(self) -> np.ndarray:
        """The least-squares fit of strengths to the margins, with mean 0."""
        known = self._known()
        laplacian = np.diag(known.sum(axis=1)) - known
        return np.linalg.pinv(laplacian, hermitian=True) @ self.margins().sum(axis=1)

    def result(self, strengths: np.ndarray, errors: np.ndarray | None, count: int) -> Ranking:
        """The ranking of the first `count` responses; the others are references."""
        margins, met = self.margins(), self._known()
        disagree = np.sign(self.logit_diffs) == np.sign(self.logit_diffs.T)  # nan equals nothing
        pairs = np.triu(met, 1)
        undecided = (pairs & (disagree | (margins == 0))).sum()
        cyclic, triples = count_cycles(margins, met)
        strengths = (strengths[:count] - strengths[:count].mean()).astype(np.float32)
        table = np.where(met | np.eye(len(met), dtype=bool), margins, np.nan)[:count, :count]
        return Ranking(
            order=order_of(strengths),
            strengths=strengths,
            errors=None if errors is None else errors[:count].astype(np.float32),
            margins=table.astype(np.float32),
            ties=float(undecided / max(1, pairs.sum())),
            cycles=cyclic / triples if triples else None,
            comparisons=self.comparisons,
            rounds=self.rounds,
            logit_diffs=self.logit_diffs[:count, :count].astype(np.float32),
        )

    def _known(self) -> np.ndarray:
        """Which pairs were compared, bool [n, n]."""
        seen = ~np.isnan(self.logit_diffs)
        return seen | seen.T

    def _assign_order(self, i: int, j: int) -> OrderedPair:
        """The pair in the order in which it is shown: the one that was shown first less often is first."""
        i, j = (i, j) if self._excess_first[i] <= self._excess_first[j] else (j, i)
        self._excess_first[i] += 1
        self._excess_first[j] -= 1
        return i, j


def _round_robin(table: _Comparisons, all_: list[int]) -> Rounds:
    yield from table.compare(combinations(all_, 2))


def _groups(table: _Comparisons, alive: list[int]) -> Rounds:
    while True:
        many = -(-len(alive) // GROUP)
        # Neighbours are of one earlier group, in which they were compared.
        groups = [alive[first::many] for first in range(many)]
        yield from table.compare(pair for group in groups for pair in combinations(group, 2))
        if many == 1:
            return
        strengths = table.strengths()
        alive = [
            group[at]
            for group in groups
            for at in sorted(order_of(strengths[group])[: -(-len(group) // 2)])
        ]


def _knockout(table: _Comparisons, alive: list[int]) -> Rounds:
    while len(alive) > 1:
        pairs = list(zip(alive[::2], alive[1::2], strict=False))
        yield from table.compare(pairs)
        margins = table.margins()
        rest = alive[2 * len(pairs) :]  # the last of an odd number advances
        alive = [j if margins[j, i] > 0 else i for i, j in pairs] + rest


def _linear(table: _Comparisons, all_: list[int]) -> Rounds:
    best = all_[0] if all_ else 0
    for challenger in all_[1:]:
        yield from table.compare([(best, challenger)])
        if table.margins()[challenger, best] > 0:  # in a tie the best so far stays
            best = challenger


METHODS: dict[str, Callable[[_Comparisons, list[int]], Rounds]] = {
    "groups": _groups,
    "round_robin": _round_robin,
    "bradley_terry": _round_robin,
    "knockout": _knockout,
    "linear": _linear,
}


def order_of(values: Sequence[float] | np.ndarray) -> list[int]:
    """Indices from the largest value to the smallest; equals keep their order.

    >>> order_of([0.1, 0.7, 0.1])
    [1, 0, 2]
    """
    return np.argsort(-np.asarray(values), kind="stable").tolist()
