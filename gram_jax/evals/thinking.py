"""`think`: accuracy of a thinking judge against generated tokens, and the gate for a budget of tokens.

Every pair is judged by the one-token verdict and with rationales. A gate lets the judge think about the pairs whose
one-token margin is smallest. The ends of the curve are the one-token judge and the judge that always thinks.
"""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from gram_jax.data.records import Comparison, contents_of
from gram_jax.errors import DataError
from gram_jax.evals.identity import judge_results
from gram_jax.evals.intervals import clustered_interval, factorize
from gram_jax.evals.pairwise import labeled
from gram_jax.evals.results import Count, Interval, JudgeResults, ResultModel, Share
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import render_turns, turns_of
from gram_jax.scoring.results import OutputSink
from gram_jax.scoring.think import Thought
from gram_jax.scoring.thinking import ThinkingScorer
from gram_jax.scoring.votes import votes_on

POINTS = 11  # of a curve


class CurvePoint(ResultModel):
    """Results with one gate.

    below: its threshold, None to think about every pair. thought: share of pairs with rationales. tokens: mean number
    of generated tokens of a pair. consistency: share whose two orders prefer the same response.
    """

    below: float | None
    thought: Share
    tokens: float
    accuracy: Share
    interval: Interval
    consistency: Share


class ThinkingResults(JudgeResults):
    """thinking.json. fitted, pairs: numbers of pairs on which the gate was fitted, and on which the figures are.

    gate: the result of the fitted gate; budget: in tokens of a pair. rationales, rationale_tokens, without_verdict: of
    all pairs, the last by reason.
    """

    FILE: ClassVar[str] = "thinking.json"

    source: str
    contents: str
    fitted: Count
    pairs: Count
    budget: float
    gate: CurvePoint
    curve: list[CurvePoint]
    rationales: Count
    rationale_tokens: Count
    without_verdict: dict[str, int]


class ThoughtPairs(NamedTuple):
    """n labeled pairs by both verdicts.

    margin: f64 [n], |log-odds| of the one-token verdict. tokens: f64 [n], generated if the judge thinks. correct,
    consistent: bool [n, 2], by the one-token verdict and with thought. cluster: i [n], the prompt.
    """

    margin: np.ndarray
    tokens: np.ndarray
    correct: np.ndarray
    consistent: np.ndarray
    cluster: np.ndarray

    def select(self, chosen: np.ndarray) -> "ThoughtPairs":
        """Some of the pairs."""
        return ThoughtPairs(*(part[chosen] for part in self))

    def point(self, below: float | None) -> CurvePoint:
        """The results with this gate."""
        thinks = np.full(len(self.margin), True) if below is None else self.margin < below
        at = np.arange(len(thinks)), thinks.astype(int)
        correct = self.correct[at]
        return CurvePoint(
            below=below,
            thought=float(thinks.mean()),
            tokens=float((self.tokens * thinks).mean()),
            accuracy=float(correct.mean()),
            interval=clustered_interval(correct, self.cluster),
            consistency=float(self.consistent[at].mean()),
        )

    def curve(self, points: int = POINTS) -> list[CurvePoint]:
        """Points from the one-token judge (0) to the judge that always thinks (None), at even shares of pairs."""
        ordered = np.sort(self.margin)
        shares = np.unique(np.linspace(0, len(ordered), points).round().astype(int))[1:-1]
        thresholds = [0.0, *dict.fromkeys(float(ordered[at]) for at in shares)]
        return [self.point(below) for below in (*thresholds, None)]


def fit_gate(margin: np.ndarray, tokens: np.ndarray, budget: float) -> float | None:
    """The largest threshold with which a mean of at most `budget` tokens is generated; None: always think.

    margin: f64 [n], |log-odds| of the one-token verdict; tokens: f64 [n], generated if the judge thinks.

    >>> fit_gate(np.array([0.1, 0.4, 2.0, 3.0]), np.array([8.0, 8.0, 8.0, 8.0]), budget=4)
    2.0
    """
    order = np.argsort(margin, kind="stable")
    spent = np.cumsum(tokens[order]) / len(order)
    fits = int((spent <= budget).sum())
    return None if fits == len(order) else float(margin[order[fits]])


def judged_both_ways(records: Sequence[Comparison], thoughts: Sequence[Thought]) -> ThoughtPairs:
    """Labeled pairs by the one-token verdict and with thought. thoughts: of the records, the chosen response first."""
    scores = [(thought.direct, thought.score) for thought in thoughts if thought.direct is not None]
    return ThoughtPairs(
        margin=np.array([abs(plain.margin) for plain, _ in scores]),
        tokens=np.array([thought.tokens for thought in thoughts], float),
        correct=np.array([[x.first > x.second for x in both] for both in scores]),
        consistent=np.array([[abs(x.position_bias) < abs(2 * x.first - 1) for x in both] for both in scores]),
        cluster=factorize([record.prompt for record in records]),
    )  # fmt: skip


def measure_thinking(
    scorer: ThinkingScorer,
    records: Sequence[Comparison],
    *,
    model: str,
    source: str,
    budget: float,
    seed: int,
    sink: OutputSink,
) -> ThinkingResults:
    """Fit the gate on the pairs of half of the prompts, drawn by the seed, and measure it on the others.

    sink: file of the votes, from which an interrupted measurement resumes, or memory.
    Raises DataError if a half is empty, or if the scorer has a gate.
    """
    if scorer.think.below is not None:
        raise DataError("the gate is fitted here: leave out its threshold (below)")
    kept, _ = labeled(records)
    prompts = [render_turns(turns_of(record.prompt)) for record in kept]
    fitted = np.array([stable_hash(seed, prompt) % 2 == 0 for prompt in prompts])
    if fitted.all() or not fitted.any():
        raise DataError(
            f"{source}: half of the prompts are for the gate and half for the figures; found {len(set(prompts))} "
            "different prompts with labeled pairs, expected more"
        )
    thoughts = votes_on(scorer, model, source, kept, sink)
    both = judged_both_ways(kept, thoughts)
    held_out, measured = both.select(fitted), both.select(~fitted)
    below = fit_gate(held_out.margin, held_out.tokens, budget)
    votes = [vote for thought in thoughts for order in thought.rationales for vote in order]
    outcomes = Counter(vote.outcome for vote in votes)
    return ThinkingResults(
        **dict(judge_results(scorer, model)),
        source=source,
        contents=contents_of(kept),
        fitted=int(fitted.sum()),
        pairs=int((~fitted).sum()),
        budget=budget,
        gate=measured.point(below),
        curve=measured.curve(),
        rationales=len(votes),
        rationale_tokens=sum(vote.tokens for vote in votes),
        without_verdict={name: n for name, n in sorted(outcomes.items()) if name != "verdict"},
    )
