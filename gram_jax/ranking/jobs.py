"""Responses to a prompt on their way through a tournament (ranking/tournament.py): which texts meet next."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.judge.messages import PromptLike
from gram_jax.ranking.tournament import (
    Match,
    Orders,
    Ranking,
    RankingMethod,
    check_method,
    tournament,
)


@dataclass(frozen=True)
class RankingConfig:
    """How responses are ranked; the options of `Scorer.rank`."""

    method: RankingMethod | None = None
    orders: Orders = "both"
    references: int | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises JudgeError where they do not go together."""
        many = self.references if isinstance(self.references, int) else len(self.references)
        check_method(self.method, self.orders, references=many)


class RankingJob:
    """One prompt's tournament.

    Equal texts take part once, in an order that is drawn from the texts themselves: the result depends neither on the
    order in which responses are given nor on how often one of them occurs.
    """

    def __init__(self, prompt: PromptLike, responses: Sequence[str], contest: RankingConfig):
        self.prompt = prompt
        self.ranking: Ranking | None = None  # when it is over
        own, references = _drawn(responses), contest.references
        references = own[:references] if isinstance(references, int) else _drawn(references)
        self._texts = own + [text for text in references if text not in own]
        at = {text: number for number, text in enumerate(self._texts)}
        self._given = [at[text] for text in responses]
        self._tournament = tournament(
            len(own),
            contest.method,
            orders=contest.orders,
            references=[at[text] for text in references],
        )
        self._asked: list[Match] = []
        self._shortened = False
        self._send(None)

    def shown(self) -> list[tuple[PromptLike, str, str]]:
        """The comparisons of this round, those that begin alike next to each other."""
        return [(self.prompt, self._texts[i], self._texts[j]) for i, j in sorted(self._asked)]

    def answer(self, logit_diffs: np.ndarray, *, shortened: bool) -> None:
        """Go on with the logit logit_diffs of `shown`. shortened: whether one of them was cut to fit."""
        self._shortened = self._shortened or shortened
        found = dict(zip(sorted(self._asked), logit_diffs, strict=True))
        self._send([float(found[match]) for match in self._asked])

    def _send(self, logit_diffs: list[float] | None) -> None:
        try:
            going = self._tournament
            self._asked = next(going) if logit_diffs is None else going.send(logit_diffs)
        except StopIteration as over:
            self.ranking = over.value.of_texts(self._given)._replace(shortened=self._shortened)


def _drawn(texts: Sequence[str]) -> list[str]:
    """Each text once, in an order that has nothing to do with what they say."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise JudgeError(f"responses are a list of texts; found {texts!r:.200}")
    return sorted(set(texts), key=lambda text: hashlib.blake2b(_bytes(text)).digest())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
