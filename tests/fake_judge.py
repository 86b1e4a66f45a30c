"""A judge without a model."""

import re
import threading
import time
from functools import cache

import numpy as np

from gram_jax.interop.models import load_tokenizer
from gram_jax.judge.encode import encode_items
from gram_jax.judge.spec import make_spec
from gram_jax.scoring.text_scorer import ScorerIdentity, TextScorer

SHOWN = re.compile(r"\[Response A\]\n(.*)\n\n\[Response B\]\n(.*)\n\n\[Question\]", flags=re.DOTALL)


@cache
def parts():
    tokenizer = load_tokenizer("tiny-random")
    return tokenizer, make_spec(tokenizer, max_length=1 << 20)


def tokens(*pairs) -> int:
    """Number of tokens of both orders of each pair."""
    tokenizer, spec = parts()
    texts = encode_items(tokenizer, spec.comparison, pairs, spec.max_length)
    return 2 * sum(len(x.tokens) for x in texts)


class FakeJudge(TextScorer):
    """Log-odds: half the difference of lengths, plus `lean` for what is shown first.

    Each call for pairs waits for `go` and takes `seconds`; the text "broken" breaks it. sizes: its numbers of pairs.
    asked: set by the first call. calls, comparisons: numbers of calls, and of comparisons in one order.
    """

    def __init__(self, seconds: float = 0.0, lean: float = 0.0, call_tokens: int = 1 << 16):
        super().__init__(*parts())
        self.call_tokens = call_tokens
        self.seconds, self.lean, self.sizes = seconds, lean, []
        self.calls = self.comparisons = 0
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()

    @property
    def identity(self) -> ScorerIdentity:
        return ScorerIdentity(type(self).__name__, "none", "float32", "none", "none")

    def warm_up(self, *, rankings: bool = False) -> None:
        pass

    def label_logit_diffs(self, sequences, *, paired, progress=lambda count: None):
        self.calls += 1
        self.comparisons += len(sequences)
        if paired:
            self.asked.set()
            self.go.wait(20)
            time.sleep(self.seconds)
            self.sizes.append(len(sequences) // 2)
        progress(len(sequences))
        return np.array([self.diff(*self.read(x.tokens)) for x in sequences], np.float32)

    def read(self, tokens) -> tuple[str, str]:
        """The two responses as the judge is shown them."""
        found = SHOWN.search(self.tokenizer.decode(tokens))  # None: token ids of a client
        first, second = found.groups() if found else ("", "")
        if "broken" in (first, second):
            raise RuntimeError("secret text")
        return first, second

    def diff(self, first: str, second: str) -> float:
        return (len(first) - len(second)) / 2 + self.lean
