"""TextScorer: encodes texts, scores both orders of every pair, and runs tournaments.

score(a, b) and score(b, a) are the same computation and agree bit for bit, because both sort the responses into one
canonical order. The bits of a score do not depend on the other pairs of its batch (engine.py).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from gram_jax.data.inputs import PairTexts, lists_of, pairs_of
from gram_jax.errors import GramWarning, JudgeError
from gram_jax.judge.encode import Encoded, ItemEncoder
from gram_jax.judge.messages import PromptLike
from gram_jax.judge.spec import JudgeSpec
from gram_jax.ranking.jobs import RankingConfig, RankingJob
from gram_jax.ranking.tournament import OrderMode, Ranking, RankingMethod
from gram_jax.scoring.pair import PairScore, combine_orders
from gram_jax.scoring.think import Think

COMPARISONS = 4096  # maximum number of comparisons of a ranking that are encoded at a time


class ComparisonEncoder(Protocol):
    """An ItemEncoder, or the encoder of a model with another input format."""

    def encode(self, items: Iterable[PairTexts]) -> list[Encoded]:
        """The tokens of each comparison."""
        ...


class ScorerIdentity(NamedTuple):
    """What the results of a scorer depend on, apart from its judge specification.

    fingerprint: hash of the weights. weights, compute_dtype: dtypes of weights and of matrix products. device: kind of
    the devices. program: the program that scores pairs.
    """

    fingerprint: str
    weights: str
    compute_dtype: str
    device: str
    program: str


class TextScorer:
    """Base class of judges of texts. Subclasses compute the logits.

    window: number of pairs that are tokenized while earlier ones are scored. call_tokens: number of tokens above which
    the time of label_logit_diffs is proportional to their number. reads_comparisons: whether the model reads both
    responses in one text, rather than each alone; only then is a comparison that a client rendered an input.
    """

    window = 64
    call_tokens = 2048
    reads_comparisons = True

    def __init__(self, tokenizer: Any, spec: JudgeSpec):
        self.tokenizer, self.spec = tokenizer, spec

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Logit differences of encoded comparisons, as ScoringEngine.label_logit_diffs returns them."""
        raise NotImplementedError

    @property
    def identity(self) -> ScorerIdentity:
        """What the results depend on, apart from the judge specification."""
        raise NotImplementedError

    def warm_up(self, *, rankings: bool = False) -> None:
        """Compile programs before the first call, and with `rankings` those of rankings; here there are none."""

    @property
    def settings(self) -> dict[str, Any]:
        """What else the results depend on, for the metadata of files: nothing, or how a judge thinks."""
        return {}

    def thinking(self, think: Think) -> "TextScorer":
        """The judge with rationales before its verdicts (scoring/thinking.py). Raises JudgeError if it cannot write."""
        raise JudgeError(
            f"a {type(self).__name__} writes no rationales: load a generative judge in this process, with Scorer.load"
        )

    def score(
        self, prompt: PromptLike, first: str, second: str, *, think: Think | None = None
    ) -> PairScore:
        """Score of two responses to a prompt, which is a text or a list of messages.

        think: a Think, for a judge that writes rationales; None: the one-token verdict.
        """
        return self.score_many([(prompt, first, second)], think=think)[0]

    def score_many(
        self, comparisons: Iterable[PairTexts], *, think: Think | None = None
    ) -> list[PairScore]:
        """Scores of comparisons, in their order.

        comparisons: tuples (prompt, first, second), rows of any schema, or records. Raises DataError with the index of
        the comparison for anything else.
        """
        judge = self if think is None else self.thinking(think)
        return list(judge.stream(comparisons))

    def stream(
        self,
        comparisons: Iterable[PairTexts],
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[PairScore]:
        """Yield the scores of any number of comparisons; only a window of them is held in memory.

        comparisons: as for `score_many`. progress: called with the number of newly scored pairs.
        """
        remaining = pairs_of(comparisons)
        windows = iter(lambda: list(islice(remaining, self.window)), [])
        for texts, swapped in self._encode_ahead(windows):
            diffs = self.label_logit_diffs(
                texts, paired=True, progress=_in_pairs(progress)
            ).reshape(-1, 2)
            # Both orders are one sequence, whose last bits depend on its row.
            identical = np.array([text.identical for text in texts[::2]])
            diffs[identical, 1] = diffs[identical, 0]
            diffs[swapped] = diffs[swapped, ::-1]
            shortened = np.array([text.shortened for text in texts]).reshape(-1, 2)
            for (given, other), cut in zip(diffs.tolist(), shortened, strict=True):
                yield combine_orders(given, other, bool(cut.any()))

    def compare(self, prompt: PromptLike, responses: Sequence[str]) -> np.ndarray:
        """Log-odds that response i is better than response j, both orders of every pair: f32 [n, n], antisymmetric."""
        return self.rank(prompt, responses, method="round_robin").margins

    def rank(
        self,
        prompt: PromptLike,
        responses: Sequence[str],
        *,
        method: RankingMethod | None = None,
        order_mode: OrderMode = "both",
        references: int | Sequence[str] = (),
        think: Think | None = None,
    ) -> Ranking:
        """Rank the responses to one prompt from best to worst.

        method: "groups", "round_robin", "bradley_terry", "knockout", "linear" or "reference" (docs/ranking.md); the
        default depends on the number of responses. order_mode: "both" compares every pair in both orders, "one" in one
        order at half the cost. references: for the method "reference", texts to compare with, or the number of
        responses that serve as references. think: as of `score`.

        The result does not depend on the order of the responses or on other rankings. Raises JudgeError for options
        that contradict each other, and if there is nothing to rank.
        """
        config = RankingConfig(method, order_mode, _frozen(references))
        judge = self if think is None else self.thinking(think)
        return next(judge.rank_many([(prompt, responses)], config))

    def best(self, prompt: PromptLike, responses: Sequence[str], **options: Any) -> int:
        """Index of the best response. options: those of `rank`."""
        return self.rank(prompt, responses, **options).order[0]

    def rank_many(
        self,
        items: Iterable[tuple[PromptLike, Sequence[str]]],
        config: RankingConfig | None = None,
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Ranking]:
        """Yield the rankings of many lists of responses, in their order. Rankings of a window share calls.

        items: tuples (prompt, responses), rows of any schema, or records. progress: called with the number of newly
        completed rankings.
        """
        config, remaining = config or RankingConfig(), lists_of(items)
        while window := list(islice(remaining, self.window)):
            jobs = [RankingJob(prompt, responses, config) for prompt, responses in window]
            encoder, done = self.encoder(), 0
            while active := [job for job in jobs if job.ranking is None]:
                progress(len(jobs) - len(active) - done)
                done = len(jobs) - len(active)
                self._compare(active, encoder)
            progress(len(jobs) - done)
            yield from (job.ranking for job in jobs if job.ranking is not None)

    def _compare(self, jobs: Sequence[RankingJob], encoder: ComparisonEncoder) -> None:
        """One round of every tournament."""
        pending = [job.pending_comparisons() for job in jobs]
        comparisons, diffs, shortened = chain.from_iterable(pending), [], []
        while part := list(islice(comparisons, COMPARISONS)):
            texts = self._encode(encoder, part)
            diffs.append(self.label_logit_diffs(texts, paired=False))
            shortened += [text.shortened for text in texts]
        found = np.concatenate(diffs) if diffs else np.zeros(0, np.float32)
        ends = np.cumsum([len(of_job) for of_job in pending])
        for job, start, end in zip(jobs, [0, *ends], ends, strict=False):
            job.update(found[start:end], shortened=any(shortened[start:end]))

    def _encode_ahead(
        self, windows: Iterator[list[PairTexts]]
    ) -> Iterator[tuple[list[Encoded], np.ndarray]]:
        """Encode windows, each while the previous one is scored."""
        if (first := next(windows, None)) is None:
            return
        with ThreadPoolExecutor(1) as thread:  # starts at the second window
            encoded = self._encode_pairs(first)
            for following in windows:
                pending = thread.submit(self._encode_pairs, following)
                yield encoded
                encoded = pending.result()
            yield encoded

    def _encode_pairs(self, pairs: Sequence[PairTexts]) -> tuple[list[Encoded], np.ndarray]:
        """Both orders of each pair, the canonical one first, and whether it differs from the given one, bool [n]."""
        swapped, orders = [], []
        for prompt, first, second in pairs:
            swap = second < first
            one, other = (second, first) if swap else (first, second)
            swapped.append(swap)
            orders += [(prompt, one, other), (prompt, other, one)]
        return self._encode(self.encoder(), orders), np.array(swapped)

    def encoder(self) -> ComparisonEncoder:
        """An encoder of comparisons for `label_logit_diffs`, which tokenizes each distinct text once."""
        return ItemEncoder(self.tokenizer, self.spec.comparison, self.spec.max_length)

    def _encode(
        self, encoder: ComparisonEncoder, comparisons: Sequence[PairTexts]
    ) -> list[Encoded]:
        texts = encoder.encode(comparisons)
        if any(text.replaced for text in texts):
            warnings.warn(
                "some texts have lone surrogates (halves of characters), which are replaced by U+FFFD",
                category=GramWarning,
                stacklevel=2,
            )
        if any(text.shortened for text in texts):
            # The same words every time: Python shows a repeated warning once.
            warnings.warn(
                f"some comparisons are longer than {self.spec.max_length} tokens; their responses are truncated in "
                "the middle, and their results have `shortened` set",
                category=GramWarning,
                stacklevel=2,
            )
        return texts


def _in_pairs(progress: Callable[[int], None]) -> Callable[[int], None]:
    """Progress in sequences, two for each pair, which may be reported one at a time."""
    done = 0

    def report(count: int) -> None:
        nonlocal done
        before, done = done // 2, done + count
        progress(done // 2 - before)

    return report


def _frozen(references: int | Sequence[str]) -> int | tuple[str, ...]:
    if isinstance(references, str):
        raise JudgeError("references: expected a list of texts or a number, found one text")
    return references if isinstance(references, int) else tuple(references)
