"""Rewards from a judge that compares: against a reference, or within the group of a prompt's responses.

A comparison has no scale of its own across prompts, so every form is relative to something that is said: P(better than
the reference), or the win rate among the responses to the same prompt. All comparisons of a call are scored together.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from scipy.special import expit

from gram_jax.data.record_types import Prompt
from gram_jax.errors import DataError
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import Ranking
from gram_jax.rewards.messages import completion_of, prompt_of
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.scoring.scorer import PairTexts

Against = Literal["group", "circle", "reference"]
As = Literal["probability", "log_odds", "normalised"]
REMEMBERED = 1024  # prompts whose earlier responses are kept for those that arrive later
EVEN = PairScore(0.5, 0.5, 0.0, 0.0, False)

# Writes a reference for each prompt: generation/greedy.py has one, and any other function will do.
WriteReferences = Callable[[Sequence[Prompt]], Sequence[str]]


class Judge(Protocol):
    """What rewards ask: a Scorer, or a server's client of one."""

    def score_many(self, comparisons: Sequence[PairTexts]) -> list[PairScore]:
        """As Scorer.score_many."""
        ...

    def rank_many(
        self, items: Iterable[tuple[Prompt, Sequence[str]]], config: RankingConfig | None = None
    ) -> Iterable[Ranking]:
        """As Scorer.rank_many."""
        ...


@dataclass(frozen=True)
class RewardForm:
    """What a reward is.

    against: "group", all other responses of the prompt; "circle", its two neighbours in the group, n comparisons in
    place of n (n - 1) / 2; "reference", given texts. as_: "probability" of being better, a mean over what is compared
    with; "log_odds", the mean log-odds; "normalised", log-odds with mean 0 and deviation 1 in the group. references:
    texts that all responses are compared with, where a call gives none. length_penalty: taken off for every 1,000
    characters. group: how many responses a prompt has; a group that arrives in parts is compared with the parts before.
    """

    against: Against = "group"
    as_: As = "probability"
    references: tuple[str, ...] = ()
    length_penalty: float = 0.0
    group: int | None = None

    def __post_init__(self) -> None:
        """Raises DataError for values that do not go together."""
        if self.against not in ("group", "circle", "reference"):
            raise DataError(f"against = {self.against!r}: expected group, circle or reference")
        if self.as_ not in ("probability", "log_odds", "normalised"):
            raise DataError(f"as_ = {self.as_!r}: expected probability, log_odds or normalised")
        if isinstance(self.references, str):
            raise DataError("references are a tuple of texts, found one text")
        if self.references and self.against != "reference":
            raise DataError('references are for against="reference"')
        if not self.length_penalty >= 0:
            raise DataError(f"length_penalty = {self.length_penalty}: expected 0 or more")


class Rewards:
    """A judge's rewards in one form. May be called from several threads.

    Calls take turns; those against references are scored together where the judge is a batcher's client.

    >>> from gram_jax import Scorer
    >>> judge = Scorer.load("tiny-random")
    >>> Rewards(judge, RewardForm("reference")).of(["Hi"], ["Hello."], ["Hello."])
    [0.5]
    """

    def __init__(
        self,
        scorer: Judge,
        form: RewardForm | None = None,
        *,
        write: WriteReferences | None = None,
        warn: bool = True,
    ):
        """write: references of the prompts that come without one, for a form against references without its own.

        It may be called from several threads at once.
        """
        self.scorer, self.form, self.write = scorer, form or RewardForm(), write
        if write is not None:
            check_written(self.form)
        self._earlier: OrderedDict[Prompt, list[str]] = OrderedDict()
        self._turn = threading.Lock()
        self._reading = nullcontext() if isinstance(scorer, BatchedScorer) else self._turn
        self._said = not warn

    def of(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        references: Sequence[Any] | None = None,
    ) -> list[float]:
        """A reward for every completion, in their order.

        Prompts and completions are texts or messages. references: a text for each, or several; an empty one leaves the
        form's own, or one that is written. Responses with the same prompt are a group, wherever they stand. A response
        equal to what it is compared with has exactly 0.5 (log-odds 0). Raises DataError where lengths differ or a
        reference is missing.
        """
        if len(prompts) != len(completions):
            raise DataError(f"{len(prompts)} prompts and {len(completions)} completions")
        if not len(prompts):
            return []
        asked = [prompt_of(prompt) for prompt in prompts]
        texts = [completion_of(completion) for completion in completions]
        if self.form.against == "reference":
            # Before the turn, so that those who wait for a policy's writing can be written for together.
            compared = self._references(asked, references)
            with self._reading:
                found = self._against_references(asked, texts, compared)
        else:
            with self._turn:
                found = self._in_groups(asked, texts)
        if self.form.as_ == "normalised":
            found = _normalised(asked, found)
        lengths = np.array([len(text) for text in texts])
        return (found - self.form.length_penalty * lengths / 1000).tolist()

    def _references(
        self, prompts: Sequence[Prompt], given: Sequence[Any] | None
    ) -> list[tuple[str, ...]]:
        if given is not None and len(given) != len(prompts):
            raise DataError(f"{len(prompts)} completions and {len(given)} references")
        found = [
            _texts(one) or self.form.references
            for one in ([None] * len(prompts) if given is None else given)
        ]
        lacking = list(
            dict.fromkeys(prompt for prompt, own in zip(prompts, found, strict=True) if not own)
        )
        if lacking and self.write is None:
            raise DataError(
                "a completion has nothing to be compared with: give a reference for each, the form references of its "
                'own or a policy that writes them, or compare within groups (against="group")'
            )
        if not lacking or self.write is None:
            return found
        written = [completion_of(text) for text in self.write(lacking)]
        if len(written) != len(lacking):
            raise DataError(f"{len(lacking)} prompts and {len(written)} written references")
        by_prompt = dict(zip(lacking, written, strict=True))
        return [own or (by_prompt[prompt],) for prompt, own in zip(prompts, found, strict=True)]

    def _against_references(
        self, prompts: Sequence[Prompt], texts: Sequence[str], references: Sequence[tuple[str, ...]]
    ) -> np.ndarray:
        triples = [
            (prompt, text, reference)
            for prompt, text, own in zip(prompts, texts, references, strict=True)
            for reference in own
        ]
        scores = iter(self._scored(triples))
        return np.array([self._mean([next(scores) for _ in own]) for own in references])

    def _in_groups(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        groups: dict[Prompt, list[int]] = {}
        for at, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(at)
        members = {
            prompt: self._with_earlier(prompt, [texts[at] for at in places])
            for prompt, places in groups.items()
        }
        compared = self._circle(members) if self.form.against == "circle" else self._all(members)
        found = np.zeros(len(texts))
        for prompt, places in groups.items():
            for at, scores in zip(
                places, compared[prompt], strict=False
            ):  # the earlier ones follow
                found[at] = self._mean(scores)
        return found

    def _with_earlier(self, prompt: Prompt, texts: list[str]) -> list[str]:
        """The responses of a group, and behind them those of earlier parts of it."""
        size = self.form.group or 2
        before = self._earlier.pop(prompt, [])
        short = len(texts) < size
        if short and not self._said:
            self._said = True
            with_them = f" and is compared with {len(before)} that came before" if before else ""
            warnings.warn(
                f"a group of responses arrives in parts: {len(texts)} of at least {size} in one call{with_them}. A "
                "response without any other has 0.5. Larger batches, or a reference, avoid this (said once)",
                stacklevel=4,
            )
        if not short:
            return texts
        if self.form.group is None or len(before) + len(texts) < size:  # more are to come
            self._earlier[prompt] = (before + texts)[-size:]
        while len(self._earlier) > REMEMBERED:
            self._earlier.popitem(last=False)
        return texts + before

    def _all(self, members: dict[Prompt, list[str]]) -> dict[Prompt, list[list[PairScore]]]:
        several = {prompt: texts for prompt, texts in members.items() if len(set(texts)) > 1}
        rankings = self.scorer.rank_many(several.items(), RankingConfig("round_robin"))
        logit_diffs = {prompt: ranking for prompt, ranking in zip(several, rankings, strict=True)}
        found = {}
        for prompt, texts in members.items():
            n = range(len(texts))
            if prompt not in logit_diffs:
                found[prompt] = [[EVEN] * (len(texts) - 1) for _ in n]
                continue
            g, cut = logit_diffs[prompt].logit_diffs, logit_diffs[prompt].shortened
            found[prompt] = [
                [
                    EVEN if texts[i] == texts[j] else combine_orders(g[i, j], g[j, i], cut)
                    for j in n
                    if j != i
                ]
                for i in n
            ]
        return found

    def _circle(self, members: dict[Prompt, list[str]]) -> dict[Prompt, list[list[PairScore]]]:
        """Each with the next: a response meets two others, one in a group of two."""
        triples, places = [], []
        for prompt, texts in members.items():
            if len(texts) > 1:
                for at in range(len(texts) if len(texts) > 2 else 1):
                    following = (at + 1) % len(texts)
                    triples.append((prompt, texts[at], texts[following]))
                    places.append((prompt, at, following))
        found = {prompt: [[] for _ in texts] for prompt, texts in members.items()}
        for (prompt, at, following), score in zip(places, self._scored(triples), strict=True):
            found[prompt][at].append(score)
            found[prompt][following].append(score.swapped())
        return found

    def _scored(self, triples: Sequence[tuple[Prompt, str, str]]) -> list[PairScore]:
        """Equal texts are even, and not worth a comparison."""
        different = [triple for triple in triples if triple[1] != triple[2]]
        scores = iter(self.scorer.score_many(different))
        return [EVEN if first == second else next(scores) for _, first, second in triples]

    def _mean(self, scores: Iterable[PairScore]) -> float:
        scores = list(scores) or [EVEN]
        plain = self.form.as_ == "probability"
        return float(np.mean([score.first if plain else score.margin for score in scores]))


def check_written(form: RewardForm) -> None:
    """Raises DataError for a form that written references do not go together with."""
    if form.against != "reference" or form.references:
        what = "references of its own" if form.references else f"against = {form.against!r}"
        raise DataError(
            'written references are for RewardForm("reference") without references of its own, found a form with '
            f"{what}: leave out one of the two"
        )


def as_scores(form: RewardForm, rewards: Sequence[float]) -> list[float]:
    """Rewards between 0 and 1, as OpenRLHF filters by them: log-odds as the probability that they stand for.

    >>> as_scores(RewardForm(as_="log_odds"), [0.0])
    [0.5]
    """
    values = np.asarray(rewards, float)
    return np.clip(values if form.as_ == "probability" else expit(values), 0, 1).tolist()


def _texts(reference: Any) -> tuple[str, ...]:
    """Of one reference or several; empty text alone is none, in a list it is one."""
    if reference is None or reference == "":
        return ()
    several = isinstance(reference, list | tuple) and all(isinstance(x, str) for x in reference)
    return tuple(map(completion_of, reference if several else [reference]))


def _normalised(prompts: Sequence[Prompt], values: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 among the same prompt's; 0 where all are equal."""
    found = np.zeros(len(values))
    for prompt in dict.fromkeys(prompts):
        here = [at for at, other in enumerate(prompts) if other == prompt]
        centred = values[here] - values[here].mean()
        found[here] = centred / max(float(centred.std()), 1e-6)
    return found
