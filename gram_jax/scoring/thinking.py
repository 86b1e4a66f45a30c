"""Scores of a judge that thinks: rationales are sampled, and the verdict after each is read from its label logits.

Rationales of a comparison are continuations of one prompt. Their seeds are a function of the encoded comparison, which
identifies pair and order, and of the number of the vote, and calls have fixed shapes: the result does not depend on the
batch composition.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.data.inputs import PairTexts, pairs_of
from gram_jax.errors import DataError, JudgeError
from gram_jax.hashing import stable_hash
from gram_jax.judge.encode import Encoded
from gram_jax.judge.rationale import RationaleEncoder
from gram_jax.judge.tokens import text_encoder
from gram_jax.model.generate import PROMPT_MULTIPLE, SamplingConfig, Stop, generate_copies
from gram_jax.scoring.engine import ScoringEngine
from gram_jax.scoring.pair import combine_orders
from gram_jax.scoring.text_scorer import ScorerIdentity, TextScorer
from gram_jax.scoring.think import (
    Outcome,
    Rationale,
    Think,
    Thought,
    combine_votes,
    rationale_counts,
)

ROWS = 16  # rationales of one call and device: fixed, because other shapes may change the last bits


class ThinkingScorer(TextScorer):
    """A judge that thinks, with the interfaces of a TextScorer; `Scorer.thinking` makes one.

    outcomes: of all rationales until now; `thought_tokens`: number of their tokens. window: as of the base.
    """

    def __init__(self, base: TextScorer, engine: ScoringEngine, think: Think):
        super().__init__(base.tokenizer, base.spec)
        self.base, self.think = base, think
        # Small batches of a server, because a comparison takes a hundred times longer than without rationales.
        self.window, self.call_tokens = base.window, base.call_tokens // 8
        self._written = RationaleEncoder(
            base.tokenizer, base.spec.generation_prompt, base.spec.rationale
        )
        format = self._written.format
        self._sampling = think.sampling(format.max_new_tokens)
        most = self._sampling.max_new_tokens + self._written.closing_tokens
        longest = base.spec.max_length + most
        if longest > engine.cfg.context_length:
            raise JudgeError(
                f"a comparison of {base.spec.max_length} tokens and a rationale of {most} with the texts around it do "
                f"not fit the model's context of {engine.cfg.context_length}: choose a smaller max_new_tokens or "
                "max_length"
            )
        self._most = most
        self._engine = ScoringEngine(
            engine.params, engine.cfg, format.label_ids, engine.execution, longest, "prefix_shared",
            engine.tokens_per_call,
        )  # fmt: skip
        self._encoder = text_encoder(base.tokenizer)
        parts = [part for text in format.stop for part in self._encoder.sections(text)]
        self._stop_ids = {part for part in parts if isinstance(part, int)}
        self.outcomes: Counter[Outcome] = Counter()
        self.thought_tokens = 0
        self.check: Callable[[], None] = lambda: None

    @property
    def identity(self) -> ScorerIdentity:
        """That of the base."""
        return self.base.identity

    @property
    def settings(self) -> dict[str, Any]:
        """How it thinks."""
        return {"think": asdict(self.think)}

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """As ScoringEngine.label_logit_diffs: the log-odds of the combined votes, 0 without a verdict."""
        _, diffs, _ = self._read(sequences, paired=paired, progress=progress)
        missing = np.isnan(diffs)
        if paired:
            missing = np.repeat(missing.reshape(-1, 2).any(axis=1), 2)
        return np.where(missing, 0, diffs)

    def thoughts(self, comparisons: Iterable[PairTexts], *, prove: str = "") -> Iterator[Thought]:
        """The score of every pair with its rationales; the scores are those of `stream`.

        prove: a text with {label}, placed before a rationale, that states the label of the first response of each pair
        as the better one. The verdict after the rationale is read without it. Raises DataError if {label} is missing.
        """
        hints = self._hints(prove)
        remaining = pairs_of(comparisons)
        while window := list(islice(remaining, self.window)):
            texts, swapped = self._encode_pairs(window)
            shown = [hints[order ^ swap] for swap in swapped.tolist() for order in (0, 1)]
            direct, diffs, votes = self._read(texts, paired=True, hints=shown)
            for at, swap in enumerate(swapped.tolist()):
                order = (2 * at + 1, 2 * at) if swap else (2 * at, 2 * at + 1)
                cut = any(texts[x].shortened for x in order)
                given, other = (diffs[x] for x in order)
                if np.isnan(given) or np.isnan(other):
                    given = other = 0.0
                plain = (
                    None
                    if direct is None
                    else combine_orders(direct[order[0]], direct[order[1]], cut)
                )
                yield Thought(
                    combine_orders(given, other, cut), plain, (votes[order[0]], votes[order[1]])
                )

    def report(self) -> str:
        """Number of rationales and of their tokens, and how many have no verdict, by reason."""
        return rationale_counts(self.outcomes, self.thought_tokens)

    def warm_up(self, *, rankings: bool = False) -> None:
        """As of the base; programs of generation are compiled when a length first occurs."""
        self.base.warm_up(rankings=rankings)

    def _hints(self, prove: str) -> tuple[str, str]:
        """The hints of both orders, of which the better response is the first and the second."""
        if prove and prove.count("{label}") != 1:
            raise DataError(
                f"expected a text with {{label}} exactly once, the label of the better response; found {prove!r}"
            )
        first, second = (prove.replace("{label}", x.strip()) for x in self.base.spec.labels)
        return first, second

    def _read(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        hints: Sequence[str] | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> tuple[np.ndarray | None, np.ndarray, list[tuple[Rationale, ...]]]:
        """(diffs of the one-token verdicts if a gate needs them, diffs of the votes with nan, the votes)."""
        votes: list[tuple[Rationale, ...]] = [()] * len(sequences)
        direct, chosen = None, np.ones(len(sequences), bool)
        if self.think.below is not None:
            direct = self.base.label_logit_diffs(sequences, paired=paired)
            chosen = np.abs(direct) < self.think.below
            if paired:
                margins = np.abs(direct[::2] - direct[1::2]) / 2
                chosen = np.repeat(margins < self.think.below, 2)
            progress(int((~chosen).sum()))
        diffs = np.zeros(len(sequences)) if direct is None else direct.astype(np.float64)
        indices = np.flatnonzero(chosen).tolist()
        prompts = [
            self._written.prompt(sequences[at].tokens, hints[at] if hints else "") for at in indices
        ]
        self._check_length(prompts)
        for at, found in self._vote([sequences[at] for at in indices], prompts, progress):
            votes[indices[at]] = found
            diffs[indices[at]] = combine_votes(
                [vote.logit_diff for vote in found], self.think.combine
            )
        return direct, diffs, votes

    def _check_length(self, prompts: Sequence[np.ndarray]) -> None:
        longest, most = max(map(len, prompts), default=0), self._engine.cfg.context_length
        if longest + self._sampling.max_new_tokens > most:
            raise JudgeError(
                f"a comparison with the text before its rationale has {longest} tokens and a rationale up to "
                f"{self._sampling.max_new_tokens}, more than the model's context of {most}: choose a shorter text, or "
                "a smaller max_new_tokens"
            )

    def _vote(
        self,
        sequences: Sequence[Encoded],
        prompts: Sequence[np.ndarray],
        progress: Callable[[int], None],
    ) -> Iterator[tuple[int, tuple[Rationale, ...]]]:
        """The votes of every comparison, by its index. Calls have prompts of one padded length."""
        widths = np.array([-(-len(x) // PROMPT_MULTIPLE) for x in prompts], int)
        per_call = max(1, ROWS // self.think.votes) * self._engine.execution.placement.batch_shards
        for width in np.unique(widths):
            same = np.flatnonzero(widths == width)
            for begin in range(0, len(same), per_call):
                members = same[begin : begin + per_call]
                texts = self._write([prompts[at] for at in members], per_call)
                found = self.read_verdicts([sequences[at] for at in members], texts)
                yield from zip(members.tolist(), found, strict=True)
                progress(len(members))

    def _write(self, prompts: list[np.ndarray], count: int) -> list[list[tuple[str, int, Outcome]]]:
        """Generate the rationales of at most `count` prompts: (text, number of tokens, outcome) of each vote."""
        filled = prompts + prompts[:1] * (count - len(prompts))
        hashes = [
            [stable_hash(self.think.seed, prompt.tobytes().hex(), str(vote)) for vote in range(self.think.votes)]
            for prompt in filled
        ]  # fmt: skip
        words = np.array(hashes, np.uint64)
        data = np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], -1)
        keys = jax.random.wrap_key_data(jnp.asarray(data.astype(np.uint32)), impl="threefry2x32")
        sampling = SamplingConfig(
            self._sampling.max_new_tokens, self.think.temperature, self.think.top_p,
            stop_token_ids=tuple(self._encoder.control_ids),
        )  # fmt: skip
        samples = generate_copies(
            self._engine.params, self._engine.cfg, filled, keys, self._engine.execution, sampling,
            stop=Stop(self._stops_at),
        )  # fmt: skip
        rows = zip(samples.tokens, samples.lengths, strict=True)
        texts = [self.outcome_of(row[:length].tolist()) for row, length in rows]
        votes = self.think.votes
        return [texts[at * votes : (at + 1) * votes] for at in range(len(prompts))]

    def _stops_at(self, tokens: list[int]) -> bool:
        self.check()
        text = self._plain(tokens)[0]
        return any(stop in text for stop in self._written.format.stop)

    def _plain(self, tokens: list[int]) -> tuple[str, int | None]:
        """The text up to the first control token, and that token."""
        for at, token in enumerate(tokens):
            if token in self._encoder.control_ids:
                return self.tokenizer.decode(tokens[:at]), token
        return self.tokenizer.decode(tokens), None

    def outcome_of(self, tokens: list[int]) -> tuple[str, int, Outcome]:
        """(the rationale, its number of tokens, whether it has a verdict)."""
        text, control = self._plain(tokens)
        body = self._written.format.body(text)
        outcome: Outcome = "verdict" if body else "empty"
        if (
            not any(stop in text for stop in self._written.format.stop)
            and control not in self._stop_ids
        ):
            outcome = "unfinished" if control is None else "ended"
        return body, len(tokens), outcome

    def read_verdicts(
        self, sequences: Sequence[Encoded], texts: Sequence[list[tuple[str, int, Outcome]]]
    ) -> list[tuple[Rationale, ...]]:
        """Read the verdict after every rationale that has one."""
        wholes, places = [], []
        for sequence, votes in zip(sequences, texts, strict=True):
            before = len(self._written.prompt(sequence.tokens))
            for vote, (text, _, outcome) in enumerate(votes):
                if outcome != "verdict":
                    continue
                whole = self._written.whole(sequence.tokens, text)
                if (
                    len(whole) > before + self._most
                ):  # tokenized again, it is longer than it was written
                    votes[vote] = (text, votes[vote][1], "unfinished")
                    continue
                starts = sequence.field_starts[0], before
                weights = np.zeros(len(whole), np.float32)
                wholes.append(Encoded(whole, weights, field_starts=starts))
                places.append((votes, vote))
        diffs = self._engine.label_logit_diffs(wholes, paired=False)
        read = {
            (id(votes), vote): float(diff)
            for (votes, vote), diff in zip(places, diffs, strict=True)
        }
        found = [
            tuple(Rationale(*vote, read.get((id(votes), at))) for at, vote in enumerate(votes))
            for votes in texts
        ]  # fmt: skip
        self.outcomes.update(vote.outcome for of_one in found for vote in of_one)
        self.thought_tokens += sum(vote.tokens for of_one in found for vote in of_one)
        return found
