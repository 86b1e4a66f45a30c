"""Ranking n responses by comparing two at a time. Arrays only; who compares is somebody else's business.

A method is a generator: it yields the comparisons that it wants next, is sent what the judge says of them, and
returns a Ranking. So the tournaments of many prompts advance side by side, and what they ask for in one round is
computed together. docs/ranking.md has what each costs and how well it chooses.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.special import expit

from gram_jax.errors import JudgeError

Match = tuple[int, int]  # the response shown first, and the one shown second
RankingMethod = Literal["groups", "round_robin", "bradley_terry", "knockout", "linear", "reference"]
Orders = Literal["both", "one"]

GROUP = 4  # of the same cost, groups of 4 choose best (docs/ranking.md)
# Keeps the fit finite where one response always wins: as if each had drawn so much of a game.
PRIOR = 1e-3
EXACT = 0.99  # a pair that decides so much of its fitted value has nothing to be checked against


class Ranking(NamedTuple):
    """n responses in order, and how sure that is.

    order: indices, best first. strengths: f32 [n], log-odds against the average of the distinct responses. errors: f32
    [n], their standard errors; of the Bradley-Terry fit alone, nan where there are too few comparisons to tell.
    margins: f32 [n, n], antisymmetric, log-odds that i is better than j; nan where they were not compared.
    logit_diffs: f32 [n, n], the same as the judge gave them with i shown first and j second, one order each.
    ties: share of the compared pairs without a winner: both orders name the response shown first, or both the second,
    or the log-odds are equal. cycles: share of circles (i beats j beats k beats i) among the triples whose pairs were
    all compared; None without such. comparisons: in one order each, as many as sequences went through the model.
    rounds: one after another. shortened: some text did not fit the token budget and was cut.
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
        """The ranking of texts, the k-th of which is response at[k] of this one; equal ones keep their order."""
        taken = np.asarray(at)
        place = np.argsort(self.order)
        return self._replace(
            order=np.argsort(place[taken], kind="stable").tolist(),
            strengths=self.strengths[taken],
            errors=None if self.errors is None else self.errors[taken],
            margins=self.margins[np.ix_(taken, taken)],
            logit_diffs=self.logit_diffs[np.ix_(taken, taken)],
        )


Tournament = Generator[list[Match], Sequence[float], Ranking]
Rounds = Generator[list[Match], Sequence[float], None]  # of a tournament, by one of its methods


def tournament(
    count: int,
    method: RankingMethod | None = None,
    *,
    orders: Orders = "both",
    references: Sequence[int] = (),
) -> Tournament:
    """Rank `count` responses. For each round of comparisons that it yields it is sent the logit_diffs in their
    order: of (i, j) the log-odds that i, shown first, is better than j.

    method, by default "groups" from 5 responses on and "round_robin" below:
      "groups": of 4, in which all meet all; the better half goes on. "round_robin": all meet all.
      "bradley_terry": the same, and a fit with standard errors. "knockout": pairs, the winners go on (GRAM's divide
      and conquer). "linear": the best so far meets the next (GRAM's linear search). "reference": all meet `references`
      alone, indices of responses, or from `count` on of others that are not ranked.
    orders: "both" compares a pair in both orders, which cancels every preference for a position. "one" costs half:
    every response is shown first about as often as second.

    The strengths are those that explain all log-odds best, by least squares: over a round robin the mean of the
    log-odds, which ranks clearly better than counting wins. The Bradley-Terry fit takes the probabilities instead.
    Raises JudgeError for an unknown method or orders, and for references with another method or none with "reference".
    """
    method = method or default_method(count)
    check_method(method, orders, references=len(references))
    if count < 1:
        raise JudgeError("there is nothing to rank: expected at least one response")
    others = max([count, *(index + 1 for index in references)])
    record = _Record(others, both=orders == "both")

    def play() -> Tournament:
        if method == "reference":
            yield from record.meet((i, j) for i in range(count) for j in references)
        else:
            yield from METHODS[method](record, list(range(count)))
        strengths, errors = record.strengths(), None
        if method == "bradley_terry":
            strengths, errors = bradley_terry(record.logit_diffs)
        return record.result(strengths, errors, count)

    return play()


def default_method(count: int) -> RankingMethod:
    """Of so many responses, where nobody chose."""
    return "groups" if count > GROUP else "round_robin"


def check_method(method: str | None, orders: str, *, references: int) -> None:
    """Raises JudgeError where a method of ranking cannot be what was meant."""
    if method is not None and method not in get_args(RankingMethod):
        raise JudgeError(
            f"unknown method of ranking {method!r}: expected one of {', '.join(get_args(RankingMethod))}"
        )
    if orders not in get_args(Orders):
        raise JudgeError(f'orders is "both" or "one"; found {orders!r}')
    if (method == "reference") != (references > 0):
        raise JudgeError(
            'the method "reference" needs references to compare with, at least one'
            if method == "reference"
            else f'references are for the method "reference"; found {references} with '
            f"{method or 'the default method'}"
        )


class _Record:
    """What was compared so far. logit_diffs: f64 [n, n], first shown against second; nan where not compared."""

    def __init__(self, count: int, *, both: bool):
        self.logit_diffs = np.full((count, count), np.nan)
        self.both = both
        self.rounds = self.comparisons = 0
        self._lead = np.zeros(count, int)  # how much more often shown first than second

    def meet(self, pairs: Iterable[Match]) -> Rounds:
        """Have these pairs compared, as far as they were not."""
        asked: dict[Match, None] = {}
        for i, j in pairs:
            if i != j and not self.met(i, j) and (i, j) not in asked and (j, i) not in asked:
                asked[self._facing(i, j)] = None
                if self.both:
                    asked[(j, i)] = asked[(i, j)] = None
        if not asked:
            return
        found = yield list(asked)
        for match, gap in zip(asked, found, strict=True):
            self.logit_diffs[match] = gap
        self.rounds += 1
        self.comparisons += len(asked)

    def met(self, i: int, j: int) -> bool:
        """Whether a pair was compared."""
        return not (np.isnan(self.logit_diffs[i, j]) and np.isnan(self.logit_diffs[j, i]))

    def margins(self) -> np.ndarray:
        """Log-odds that i is better than j, over the orders that are known; antisymmetric, 0 where not compared."""
        seen = ~np.isnan(self.logit_diffs)
        total = np.where(seen, self.logit_diffs, 0) - np.where(seen, self.logit_diffs, 0).T
        return total / np.maximum(1, seen.astype(int) + seen.T)

    def strengths(self) -> np.ndarray:
        """Those that explain the margins best (least squares), 0 on average."""
        met = self._known()
        laplacian = np.diag(met.sum(axis=1)) - met
        return np.linalg.pinv(laplacian, hermitian=True) @ self.margins().sum(axis=1)

    def result(self, strengths: np.ndarray, errors: np.ndarray | None, count: int) -> Ranking:
        """The ranking of the first `count` responses; the others were there to compare with."""
        margins, met = self.margins(), self._known()
        disagree = np.sign(self.logit_diffs) == np.sign(self.logit_diffs.T)  # nan equals nothing
        pairs = np.triu(met, 1)
        undecided = (pairs & (disagree | (margins == 0))).sum()
        beats = (margins > 0).astype(float)
        known = met.astype(float)
        triples = np.einsum("ij,jk,ki->", known, known, known, optimize=True) / 6
        circles = np.einsum("ij,jk,ki->", beats, beats, beats, optimize=True) / 3
        strengths = (strengths[:count] - strengths[:count].mean()).astype(np.float32)
        table = np.where(met | np.eye(len(met), dtype=bool), margins, np.nan)[:count, :count]
        return Ranking(
            order=order_of(strengths),
            strengths=strengths,
            errors=None if errors is None else errors[:count].astype(np.float32),
            margins=table.astype(np.float32),
            ties=float(undecided / max(1, pairs.sum())),
            cycles=float(circles / triples) if triples else None,
            comparisons=self.comparisons,
            rounds=self.rounds,
            logit_diffs=self.logit_diffs[:count, :count].astype(np.float32),
        )

    def _known(self) -> np.ndarray:
        """Which pairs were compared, bool [n, n]."""
        seen = ~np.isnan(self.logit_diffs)
        return seen | seen.T

    def _facing(self, i: int, j: int) -> Match:
        """The pair in the order in which it is shown: whoever was first less often is first now."""
        i, j = (i, j) if self._lead[i] <= self._lead[j] else (j, i)
        self._lead[i] += 1
        self._lead[j] -= 1
        return i, j


def _round_robin(record: _Record, all_: list[int]) -> Rounds:
    yield from record.meet(combinations(all_, 2))


def _groups(record: _Record, alive: list[int]) -> Rounds:
    while True:
        many = -(-len(alive) // GROUP)
        # Neighbours come from one group, where they have met.
        groups = [alive[first::many] for first in range(many)]
        yield from record.meet(pair for group in groups for pair in combinations(group, 2))
        if many == 1:
            return
        strengths = record.strengths()
        alive = [group[at] for group in groups for at in sorted(_upper_half(strengths[group]))]


def _upper_half(strengths: np.ndarray) -> list[int]:
    return order_of(strengths)[: -(-len(strengths) // 2)]


def _knockout(record: _Record, alive: list[int]) -> Rounds:
    while len(alive) > 1:
        pairs = list(zip(alive[::2], alive[1::2], strict=False))
        yield from record.meet(pairs)
        margins = record.margins()
        rest = alive[2 * len(pairs) :]  # the last of an odd number goes on
        alive = [j if margins[j, i] > 0 else i for i, j in pairs] + rest


def _linear(record: _Record, all_: list[int]) -> Rounds:
    best = all_[0] if all_ else 0
    for challenger in all_[1:]:
        yield from record.meet([(best, challenger)])
        if record.margins()[challenger, best] > 0:  # in a tie the best so far stays
            best = challenger


METHODS: dict[str, Callable[[_Record, list[int]], Rounds]] = {
    "groups": _groups,
    "round_robin": _round_robin,
    "bradley_terry": _round_robin,
    "knockout": _knockout,
    "linear": _linear,
}


def bradley_terry(logit_diffs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strengths s of the model P(i beats j) = sigmoid(s_i - s_j + b) and their standard errors, f64 [n] each.

    logit_diffs: log-odds that i, shown first, is better than j, [n, n], nan where not compared; their probabilities
    count as the share of games won. b is the preference for what is shown first. The errors do not
    trust the model: they are a jackknife over pairs, to first order (both orders of a pair are one observation), and
    right within a tenth of themselves from 4 responses on. nan if the fit is exact.
    """
    from scipy.optimize import minimize  # 0.4 s, for one method of six

    count = len(logit_diffs)
    first, second = np.nonzero(~np.isnan(logit_diffs))
    pair = np.minimum(first, second) * count + np.maximum(first, second)
    pairs, pair = np.unique(pair, return_inverse=True)
    games = np.arange(len(first))
    sees = np.zeros((len(first), count + 1))
    sees[games, first], sees[games, second], sees[:, count] = 1, -1, 1
    won = expit(logit_diffs[first, second])

    def loss(s: np.ndarray) -> tuple[float, np.ndarray]:
        lean = sees @ s
        value = np.logaddexp(0, lean).sum() - won @ lean + PRIOR / 2 * s @ s
        return value, sees.T @ (expit(lean) - won) + PRIOR * s

    def curvature(s: np.ndarray) -> np.ndarray:
        expected = expit(sees @ s)
        return (sees.T * (expected * (1 - expected))) @ sees + PRIOR * np.eye(count + 1)

    start = np.zeros(count + 1)
    s = minimize(loss, start, jac=True, hess=curvature, method="trust-exact").x
    expected, inverse = expit(sees @ s), np.linalg.inv(curvature(s))
    own, of_pair = np.zeros(len(pairs)), np.zeros((len(pairs), count + 1))
    pull = np.einsum("gi,ij,gj->g", sees, inverse, sees) * expected * (1 - expected)
    np.add.at(own, pair, pull)  # how far a pair decides its own fitted value: 1 without any other
    np.add.at(of_pair, pair, sees * (won - expected)[:, None])
    without = np.where(own < EXACT, 1 - own, np.nan)
    moves = inverse[:count] @ (of_pair / without[:, None]).T
    errors = np.sqrt(((moves - moves.mean(axis=0)) ** 2).sum(axis=1))
    return s[:count] - s[:count].mean(), errors


def order_of(values: Sequence[float] | np.ndarray) -> list[int]:
    """Indices from the largest value to the smallest; equals keep their order.

    >>> order_of([0.1, 0.7, 0.1])
    [1, 0, 2]
    """
    return np.argsort(-np.asarray(values), kind="stable").tolist()
