"""How a judge thinks, what it thought, and the probability that follows from its votes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from gram_jax.errors import DataError
from gram_jax.model.generate import SamplingConfig
from gram_jax.scoring.pair import PairScore

Outcome = Literal["verdict", "empty", "ended", "unfinished"]


@dataclass(frozen=True)
class Think:
    """How a judge thinks. Raises DataError for values out of range.

    votes: number of rationales of each order. max_new_tokens: of a rationale; None: the specification's. temperature:
    0 takes the most likely tokens, with one vote. combine: "mean", of the probabilities of the votes, or "majority".
    below: thinks only if the margin of the one-token verdict, in log-odds, is smaller; None: always.

    >>> Think(votes=4).temperature
    1.0
    """

    votes: int = 1
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    combine: Literal["mean", "majority"] = "mean"
    below: float | None = None

    def __post_init__(self) -> None:
        if self.votes < 1 or (self.below is not None and not self.below >= 0):
            raise DataError(
                f"votes = {self.votes}, below = {self.below}: expected at least one vote, and a threshold of log-odds "
                "of 0 or more"
            )
        if self.votes > 1 and self.temperature == 0:
            raise DataError(
                f"votes = {self.votes} with temperature 0 would all be the same rationale: expected a temperature "
                "above 0, or one vote"
            )
        self.sampling(1)

    def sampling(self, default_new_tokens: int) -> SamplingConfig:
        """The sampling of rationales, without stop tokens."""
        new = self.max_new_tokens if self.max_new_tokens is not None else default_new_tokens
        return SamplingConfig(new, self.temperature, self.top_p, self.seed)


class Rationale(NamedTuple):
    """One vote. text: the rationale; tokens: number of generated tokens; outcome: "verdict", or why there is none.

    logit_diff: logit of the first label minus that of the second after the rationale; None without a verdict.
    """

    text: str
    tokens: int
    outcome: Outcome
    logit_diff: float | None


def rationale_counts(outcomes: Mapping[Any, int], tokens: int) -> str:
    """Number of rationales and of their tokens, and how many have no verdict, by reason, as text.

    >>> rationale_counts({"verdict": 6, "ended": 2}, 1200)
    '8 rationales of 1,200 tokens; without a verdict: 2 ended'
    """
    reasons = ("empty", "ended", "unfinished")
    missing = [f"{outcomes[x]:,} {x}" for x in reasons if outcomes.get(x)]
    without = f"; without a verdict: {', '.join(missing)}" if missing else ""
    return f"{sum(outcomes.values()):,} rationales of {tokens:,} tokens{without}"


class Thought(NamedTuple):
    """The score of a pair, and what it was made from.

    direct: the score of the one-token verdict; None if it was not computed. rationales: of the order as given, and of
    the swapped order; () if the gate did not let the judge think. A pair of which an order has no verdict has the score
    0.5.

    >>> vote = Rationale("Seven is prime.", tokens=5, outcome="verdict", logit_diff=1.2)
    >>> even = PairScore(0.5, 0.5, 0.0, 0.0, False)
    >>> Thought(even, direct=None, rationales=((vote,), (vote,))).tokens
    10
    """

    score: PairScore
    direct: PairScore | None
    rationales: tuple[tuple[Rationale, ...], tuple[Rationale, ...]]

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return sum(vote.tokens for order in self.rationales for vote in order)

    @property
    def without_verdict(self) -> int:
        """Number of rationales without a verdict."""
        return sum(vote.outcome != "verdict" for order in self.rationales for vote in order)


def combine_votes(diffs: Sequence[float | None], combine: Literal["mean", "majority"]) -> float:
    """The log-odds of one order from the logit differences of its votes; nan if none has a verdict.

    mean: of the mean of the probabilities; one vote keeps its difference. majority: of the share of votes for the first
    response, with half a vote added to each side, so that it stays a probability below 1.

    >>> combine_votes([2.0], "mean"), combine_votes([1.0, -1.0, None], "mean")
    (2.0, 0.0)
    >>> round(combine_votes([0.1, 0.2, -9.0], "majority"), 4)      # log(2.5 / 1.5)
    0.5108
    """
    votes = np.array([x for x in diffs if x is not None], np.float64)
    if not len(votes):
        return float("nan")
    if combine == "majority":
        first = (votes > 0).sum() + (votes == 0).sum() / 2
        return float(np.log(first + 0.5) - np.log(len(votes) - first + 0.5))
    if len(votes) == 1:
        return float(votes[0])
    # log of the sums of sigmoid(x) and of sigmoid(-x)
    return float(
        np.logaddexp.reduce(-np.logaddexp(0, -votes)) - np.logaddexp.reduce(-np.logaddexp(0, votes))
    )
