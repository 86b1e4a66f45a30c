"""Rewards from a judge that compares: with references, or within the group of a prompt's responses.

A comparison has no absolute scale across prompts, so every form is relative: P(better than the reference), or the win
rate among the responses to the same prompt. All comparisons of a call are scored together.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args

import numpy as np
from scipy.special import expit

from gram_jax.data.inputs import PairTexts
from gram_jax.errors import DataError
from gram_jax.judge.messages import Notes, Prompt, check_list
from gram_jax.ranking.jobs import RankingConfig
from gram_jax.ranking.tournament import Ranking
from gram_jax.rewards.chats import ENDS
from gram_jax.rewards.group_buffer import GroupBuffer
from gram_jax.rewards.messages import completion_of, prompt_of, reference_of
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.scoring.request_batcher import BatchedScorer

logger = logging.getLogger(__name__)

ComparedWith = Literal["group", "neighbors", "reference"]
RewardScale = Literal["probability", "log_odds", "normalized"]
GroupKey = tuple[Prompt, int]  # a prompt, and which of its groups in a call

EVEN = PairScore(0.5, 0.5, 0.0, 0.0, False)  # of equal texts, and of a response without another

# Writes a reference for each prompt; gram_jax.generation.greedy.GreedyResponses is one.
ReferenceWriter = Callable[[Sequence[Prompt]], Sequence[str]]


class PairScorer(Protocol):
    """The methods of a judge that rewards use; a Scorer or a BatchedScorer."""

    def score_many(self, comparisons: Sequence[PairTexts]) -> list[PairScore]:
        """Scores of comparisons, as of Scorer.score_many."""
        ...

    def rank_many(
        self, items: Iterable[tuple[Prompt, Sequence[str]]], config: RankingConfig | None = None
    ) -> Iterable[Ranking]:
        """Rankings of lists of responses, as of Scorer.rank_many."""
        ...


@dataclass(frozen=True)
class RewardForm:
    """How comparisons become rewards. Raises DataError for values that contradict each other.

    compare_with: "group" compares a response with all other responses to the prompt; "neighbors" with the two next to
    it in the group, which takes n comparisons instead of n (n - 1) / 2; "reference" with given texts. scale:
    "probability" of being better, averaged over the comparisons; "log_odds", the mean log-odds; "normalized", log-odds
    with mean 0 and standard deviation 1 in the group. references: texts to compare with if a call gives none.
    length_penalty: subtracted for every 1,000 characters. group_size: number of responses to a prompt, if groups arrive
    in parts. end_tokens: end tokens of the policy, to remove from responses; those of common families and of the judge
    are removed by default (rewards/chats.py).

    >>> RewardForm("reference", "log_odds", references=("Seven.",)).compare_with
    'reference'
    """

    compare_with: ComparedWith = "group"
    scale: RewardScale = "probability"
    references: tuple[str, ...] = ()
    length_penalty: float = 0.0
    group_size: int | None = None
    end_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises DataError for values that contradict each other."""
        for name, choices in (("compare_with", ComparedWith), ("scale", RewardScale)):
            if (found := getattr(self, name)) not in get_args(choices):
                raise DataError(
                    f"{name} = {found!r}: expected one of {', '.join(get_args(choices))}"
                )
        for name in ("references", "end_tokens"):
            found = getattr(self, name)
            if not isinstance(found, tuple) or not all(isinstance(text, str) for text in found):
                raise DataError(
                    f"{name}: expected a tuple of texts, found {type(found).__name__} {found!r:.60}"
                )
        if self.references and self.compare_with != "reference":
            raise DataError('references need compare_with="reference"')
        if not self.length_penalty >= 0:
            raise DataError(f"length_penalty = {self.length_penalty}: expected 0 or more")

    def check_writer(self) -> None:
        """Raises DataError if this form does not use generated references."""
        if self.compare_with != "reference" or self.references:
            raise DataError(
                "a policy generates references only for compare_with = 'reference' without given references, found "
                f"compare_with = {self.compare_with!r} with {len(self.references)} references: leave out one of the two"
            )

    def to_unit_interval(self, rewards: Sequence[float]) -> list[float]:
        """Rewards between 0 and 1: log-odds become the probability that they stand for.

        >>> RewardForm(scale="log_odds").to_unit_interval([0.0])
        [0.5]
        """
        values = np.asarray(rewards, float)
        return np.clip(values if self.scale == "probability" else expit(values), 0, 1).tolist()


class Rewards:
    """A judge's rewards in one form. May be called from several threads.

    Calls are scored one after the other, except for comparisons with references by a BatchedScorer, which it batches.

    >>> from gram_jax import Scorer
    >>> judge = Scorer.load("tiny-random")
    >>> Rewards(judge, RewardForm("reference")).of(["Hi"], ["Hello."], ["Hello."])
    [0.5]
    """

    def __init__(
        self,
        scorer: PairScorer,
        form: RewardForm | None = None,
        *,
        write: ReferenceWriter | None = None,
        buffer: GroupBuffer | None = None,
    ):
        """write: writes references of prompts without one; must be thread-safe.

        buffer: keeps the responses of groups that arrive in several calls. Without it a reward depends on the responses
        of its own call only.
        """
        self.scorer, self.form = scorer, form or RewardForm()
        self.write, self.buffer = write, buffer
        self.ends = end_tokens(self.form, scorer, write)
        if write is not None:
            self.form.check_writer()
        self.notes: Notes = Counter()
        self._turn = threading.Lock()

    def of(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        references: Sequence[Any] | None = None,
    ) -> list[float]:
        """A reward for every completion, in their order.

        Prompts and completions are texts or messages. Completions of the same prompt are a group, in any order; with
        form.group_size consecutive ones of that number.
        references: one text, or several, for each completion; an empty one selects the form's own references, or a
        written one. A response that is compared with an equal text has exactly 0.5 (log-odds 0). What messages hold
        and the judge is not shown is counted in `notes`; each kind is logged once. Raises DataError if lengths differ
        or a reference is missing.
        """
        check_list(prompts, "a list of prompts")
        check_list(completions, "a list of completions")
        if references is not None:
            check_list(references, "a list of references")
        if len(prompts) != len(completions):
            raise DataError(f"{len(prompts)} prompts and {len(completions)} completions")
        if not len(prompts):
            return []
        notes: Notes = Counter()
        asked = [prompt_of(prompt, notes) for prompt in prompts]
        groups = _groups_of(asked, self.form.group_size)
        texts = [completion_of(completion, notes, self.ends) for completion in completions]
        self.take_note(notes)
        if self.form.compare_with == "reference":
            # Before the lock, so that references of several callers are written in one batch.
            others = self._references(asked, references)
            with nullcontext() if isinstance(self.scorer, BatchedScorer) else self._turn:
                scores = self._with_references(asked, texts, others)
        else:
            with self._turn:
                scores = self._in_groups(groups, texts)
        name = "first" if self.form.scale == "probability" else "margin"
        found = np.array([np.mean([getattr(x, name) for x in own or [EVEN]]) for own in scores])
        if self.form.scale == "normalized":
            found = _normalized(groups, found)
        lengths = np.array([len(text) for text in texts])
        return (found - self.form.length_penalty * lengths / 1000).tolist()

    def take_note(self, notes: Notes) -> None:
        """Count what was read and not shown, and log each kind the first time."""
        with self._turn:
            for kind in notes.keys() - self.notes.keys():
                logger.warning("%d %s (counted, logged once)", notes[kind], kind)
            self.notes.update(notes)

    def _references(
        self, prompts: Sequence[Prompt], given: Sequence[Any] | None
    ) -> list[tuple[str, ...]]:
        if given is not None and len(given) != len(prompts):
            raise DataError(f"{len(prompts)} completions and {len(given)} references")
        given = [None] * len(prompts) if given is None else given
        found = [_texts(one, self.ends) or self.form.references for one in given]
        missing = list(dict.fromkeys(p for p, own in zip(prompts, found, strict=True) if not own))
        if not missing:
            return found
        if self.write is None:
            raise DataError(
                "a completion has nothing to be compared with: give a reference for each, references of the form, a "
                'policy that generates them, or compare within groups (compare_with="group")'
            )
        written = [completion_of(text, None, self.ends) for text in self.write(missing)]
        if len(written) != len(missing):
            raise DataError(f"{len(missing)} prompts and {len(written)} generated references")
        by_prompt = dict(zip(missing, written, strict=True))
        return [own or (by_prompt[prompt],) for prompt, own in zip(prompts, found, strict=True)]

    def _with_references(
        self, prompts: Sequence[Prompt], texts: Sequence[str], references: Sequence[tuple[str, ...]]
    ) -> list[list[PairScore]]:
        """Scores of each response against its references."""
        triples = [
            (prompt, text, reference)
            for prompt, text, own in zip(prompts, texts, references, strict=True)
            for reference in own
        ]
        scores = iter(self._scored(triples))
        return [[next(scores) for _ in own] for own in references]

    def _in_groups(self, keys: Sequence[GroupKey], texts: Sequence[str]) -> list[list[PairScore]]:
        """Scores of each response against those that it is compared with in its group."""
        groups: dict[GroupKey, list[str]] = {}
        for key, text in zip(keys, texts, strict=True):
            groups.setdefault(key, []).append(text)
        if self.buffer is not None:
            size = self.form.group_size
            groups = {k: self.buffer.extend(k[0], members, size) for k, members in groups.items()}
        neighbors = self.form.compare_with == "neighbors"
        scores = self._of_neighbors(groups) if neighbors else self._of_all(groups)
        # This call's responses come first, those of earlier calls after them.
        remaining = {key: iter(of_group) for key, of_group in scores.items()}
        return [next(remaining[key]) for key in keys]

    def _of_all(self, groups: dict[GroupKey, list[str]]) -> dict[GroupKey, list[list[PairScore]]]:
        """Scores of each response against every other one of its group."""
        several = {key: texts for key, texts in groups.items() if len(set(texts)) > 1}
        items = [(prompt, texts) for (prompt, _), texts in several.items()]
        rankings = self.scorer.rank_many(items, RankingConfig("round_robin"))
        by_key = dict(zip(several, rankings, strict=True))
        return {key: _against_others(texts, by_key.get(key)) for key, texts in groups.items()}

    def _of_neighbors(
        self, groups: dict[GroupKey, list[str]]
    ) -> dict[GroupKey, list[list[PairScore]]]:
        """Scores of each response against the next in a ring: two comparisons of each, one in a group of two."""
        places = [
            (key, at, (at + 1) % len(texts))
            for key, texts in groups.items()
            for at in range(len(texts) if len(texts) > 2 else len(texts) - 1)
        ]
        scores = self._scored([(k[0], groups[k][at], groups[k][after]) for k, at, after in places])
        found = {key: [list[PairScore]() for _ in texts] for key, texts in groups.items()}
        for (key, at, following), score in zip(places, scores, strict=True):
            found[key][at].append(score)
            found[key][following].append(score.swapped())
        return found

    def _scored(self, triples: Sequence[tuple[Prompt, str, str]]) -> list[PairScore]:
        """Equal texts are even without a comparison."""
        different = [triple for triple in triples if triple[1] != triple[2]]
        scores = iter(self.scorer.score_many(different))
        return [EVEN if first == second else next(scores) for _, first, second in triples]


def _against_others(texts: Sequence[str], ranking: Ranking | None) -> list[list[PairScore]]:
    """Scores of each text against all others, from a round robin; None if all texts are equal."""

    def score(i: int, j: int) -> PairScore:
        if ranking is None or texts[i] == texts[j]:
            return EVEN
        diffs = ranking.logit_diffs
        return combine_orders(diffs[i, j], diffs[j, i], ranking.shortened)

    indices = range(len(texts))
    return [[score(i, j) for j in indices if j != i] for i in indices]


def end_tokens(form: RewardForm, *sources: Any) -> tuple[str, ...]:
    """The tokens that end a response: of the families in use, of the form, and of the tokenizers of the sources."""
    tokenizers = [getattr(source, "tokenizer", None) for source in sources]
    special = [token for one in tokenizers if one is not None for token in _special_tokens(one)]
    return tuple(dict.fromkeys([*ENDS, *form.end_tokens, *special]))


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    return tuple(tokenizer.all_special_tokens)


def _texts(reference: Any, ends: Sequence[str]) -> tuple[str, ...]:
    """One reference or several as texts; an empty text is none, but in a list it is one."""
    if (reference := reference_of(reference)) is None:
        return ()
    several = isinstance(reference, list | tuple) and all(isinstance(x, str) for x in reference)
    return tuple(completion_of(one, None, ends) for one in (reference if several else [reference]))


def _groups_of(prompts: Sequence[Prompt], size: int | None) -> list[GroupKey]:
    """The group of each completion; with a size, every `size` completions of a prompt are one."""
    seen: Counter[Prompt] = Counter()
    found = []
    for prompt in prompts:
        found.append((prompt, seen[prompt] // size if size else 0))
        seen[prompt] += 1
    return found


def _normalized(groups: Sequence[GroupKey], values: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 in each group; 0 if all are equal."""
    found = np.zeros(len(values))
    for group in dict.fromkeys(groups):
        here = [at for at, other in enumerate(groups) if other == group]
        centred = values[here] - values[here].mean()
        found[here] = centred / max(float(centred.std()), 1e-6)
    return found
