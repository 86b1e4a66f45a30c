"""Rankings of texts: which texts a tournament compares next, and the ranking of the given responses when it is over."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.judge.messages import PromptLike
from gram_jax.ranking.tournament import OrderedPair, OrderMode, Ranking, RankingMethod, tournament


@dataclass(frozen=True)
class RankingConfig:
    """How responses are ranked: the options of `Scorer.rank`."""

    method: RankingMethod | None = None
    order_mode: OrderMode = "both"
    references: int | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises JudgeError for unknown values and for references that do not go with the method."""
        method, references = self.method, self.references
        count = references if isinstance(references, int) else len(references)
        if method is not None and method not in get_args(RankingMethod):
            raise JudgeError(
                f"unknown method of ranking {method!r}: expected one of {', '.join(get_args(RankingMethod))}"
            )
        if self.order_mode not in get_args(OrderMode):
            raise JudgeError(f'order_mode is "both" or "one"; found {self.order_mode!r}')
        if (method == "reference") != (count > 0):
            raise JudgeError(
                'the method "reference" needs references to compare with, at least one'
                if method == "reference"
                else f'references are for the method "reference"; found {count} with '
                f"{method or 'the default method'}"
            )


class RankingJob:
    """The tournament of one prompt's responses.

    Equal texts are compared once, in the order of their hashes: the result does not depend on the order of the
    responses or on repetitions.
    """

    def __init__(self, prompt: PromptLike, responses: Sequence[str], config: RankingConfig):
        self.prompt = prompt
        self.ranking: Ranking | None = None  # when the tournament is over
        own, references = _distinct(responses), config.references
        references = own[:references] if isinstance(references, int) else _distinct(references)
        self._texts = own + [text for text in references if text not in own]
        index = {text: number for number, text in enumerate(self._texts)}
        self._of_response = [index[text] for text in responses]
        self._tournament = tournament(
            len(own),
            config.method,
            order_mode=config.order_mode,
            references=[index[text] for text in references],
        )
        self._requested: list[OrderedPair] = []
        self._shortened = False
        self._advance(None)

    def pending_comparisons(self) -> list[tuple[PromptLike, str, str]]:
        """The comparisons of this round, those with the same first response next to each other."""
        return [(self.prompt, self._texts[i], self._texts[j]) for i, j in sorted(self._requested)]

    def update(self, logit_diffs: np.ndarray, *, shortened: bool) -> None:
        """Continue with the logit differences of `pending_comparisons`. shortened: whether one of them was cut."""
        self._shortened = self._shortened or shortened
        found = dict(zip(sorted(self._requested), logit_diffs, strict=True))
        self._advance([float(found[pair]) for pair in self._requested])

    def _advance(self, logit_diffs: list[float] | None) -> None:
        try:
            if logit_diffs is None:
                self._requested = next(self._tournament)
            else:
                self._requested = self._tournament.send(logit_diffs)
        except StopIteration as over:
            ranking = over.value.of_texts(self._of_response)
            self.ranking = ranking._replace(shortened=self._shortened)


def _distinct(texts: Sequence[str]) -> list[str]:
    """Each text once, ordered by hash."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise JudgeError(f"responses are a list of texts; found {texts!r:.200}")
    encoded = {text.encode("utf-8", "surrogatepass"): text for text in texts}
    return [encoded[key] for key in sorted(encoded, key=lambda key: hashlib.blake2b(key).digest())]
