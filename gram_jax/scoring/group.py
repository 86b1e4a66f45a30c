"""A judge whose weights are sharded over the processes of a job.

Process 0 runs the command: it reads, encodes, and writes. Before it scores a window of comparisons it sends their
tokens to the other processes, and all of them make the same calls of the model. They need neither the data nor the
output.
"""

from collections.abc import Callable, Sequence

import numpy as np

from gram_jax.distributed.collectives import broadcast_array
from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import JudgeError
from gram_jax.judge.encode import Encoded
from gram_jax.scoring.text_scorer import ComparisonEncoder, ScorerIdentity, TextScorer

# What the other processes are to do: the first number of a message.
END, IDENTIFY, SCORE, SCORE_PAIRED = range(4)


def run_on_first_process(
    scorer: TextScorer, work: Callable[[TextScorer], None], process: ProcessContext
) -> None:
    """Call work(scorer) on process 0; the other processes take part in its calls of the model until it returns.

    scorer: the same judge on every process of the job, its weights on a mesh of all their devices. If `work` raises,
    the job has to end (distributed/process.py). Raises JudgeError for a judge that writes rationales.
    """
    if process.alone:
        work(scorer)
    elif scorer.spec.rationale is not None:
        raise JudgeError("a judge that writes rationales cannot be shared by several processes")
    elif process.index == 0:
        work(_GroupScorer(scorer))
        _send(END)
    else:
        _take_part(scorer)


class _GroupScorer(TextScorer):
    """The judge of process 0."""

    def __init__(self, scorer: TextScorer):
        super().__init__(scorer.tokenizer, scorer.spec)
        self._scorer = scorer
        self.window, self.call_tokens = scorer.window, scorer.call_tokens
        self.reads_comparisons = scorer.reads_comparisons

    def encoder(self) -> ComparisonEncoder:
        """That of the judge."""
        return self._scorer.encoder()

    @property
    def identity(self) -> ScorerIdentity:
        """As of the judge; every process reads its part of the weights."""
        _send(IDENTIFY)
        return self._scorer.identity

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """As ScoringEngine.label_logit_diffs."""
        _send(SCORE_PAIRED if paired else SCORE, pack(sequences))
        return self._scorer.label_logit_diffs(sequences, paired=paired, progress=progress)


def _send(request: int, *values: np.ndarray) -> None:
    broadcast_array(np.concatenate([np.array([request], np.int32), *values]))


def _take_part(scorer: TextScorer) -> None:
    while (message := broadcast_array(None))[0] != END:
        if message[0] == IDENTIFY:
            _ = scorer.identity
        else:
            paired = message[0] == SCORE_PAIRED
            scorer.label_logit_diffs(unpack(message[1:]), paired=bool(paired))


def pack(sequences: Sequence[Encoded]) -> np.ndarray:
    """What the programs read of encoded texts: number, lengths, two field starts each, tokens; i32."""
    sizes = [len(sequences), *(len(text.tokens) for text in sequences)]
    starts = [start for text in sequences for start in text.field_starts]
    numbers = np.array(sizes + starts, np.int32)
    return np.concatenate([numbers, *(text.tokens for text in sequences)])


def unpack(values: np.ndarray) -> list[Encoded]:
    """The texts of `pack`."""
    count = int(values[0])
    sizes, starts, tokens = np.split(values[1:], [count, 3 * count])
    texts = np.split(tokens, np.cumsum(sizes))[:count]
    return [
        Encoded(text, np.zeros(len(text), np.float32), field_starts=(first, second))
        for text, (first, second) in zip(texts, starts.reshape(-1, 2).tolist(), strict=True)
    ]
