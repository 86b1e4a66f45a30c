"""Greedy responses of a model as references for rewards, as in the RLHF of the paper."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from gram_jax.errors import DataError
from gram_jax.generation.generator import TextGenerator
from gram_jax.judge.messages import Prompt
from gram_jax.model.generate import SamplingConfig

MAX_NEW_TOKENS = 256  # the default of TRL's max_completion_length
CACHE_SIZE = 16384  # prompts
BATCH_SIZE = 32


class GreedyResponses:
    """A model's greedy responses, cached for the most recent prompts. Thread-safe.

    Calling it with a list of prompts returns a list of texts. The weights are fixed, for example those at the start of
    training; for references of a trainer's current policy, pass a function of the same signature instead. Prompts are
    rendered by the model's chat template without thinking. In bfloat16 a response may depend on the batch composition;
    the cache keeps one response per prompt.

    >>> from gram_jax.rewards.messages import prompt_of
    >>> generator = TextGenerator.load("tiny-random", compute_dtype="float32")
    >>> first, again = GreedyResponses(generator, max_new_tokens=4)([prompt_of("Hi")] * 2)
    >>> greedy = SamplingConfig(max_new_tokens=4, temperature=0)
    >>> first == again == generator.generate([prompt_of("Hi")], greedy).texts[0]
    True
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        cache_size: int = CACHE_SIZE,
    ):
        """cache_size: number of cached prompts. Raises DataError if max_new_tokens exceeds the model's context."""
        if not 0 < max_new_tokens < generator.cfg.context_length:
            raise DataError(
                f"max_new_tokens = {max_new_tokens}: expected at least one token, and fewer than the "
                f"{generator.cfg.context_length} positions of the model's context"
            )
        self.generator, self.cache_size = generator, cache_size
        self.sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0)
        self._responses: OrderedDict[Prompt, str] = OrderedDict()
        self._requested: dict[
            Prompt, np.ndarray
        ] = {}  # tokens of the prompts of all callers, in order
        self._generating, self._state = threading.Lock(), threading.Lock()

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.generator.tokenizer

    def __call__(self, prompts: Sequence[Prompt], timeout: float = -1) -> list[str]:
        """A response to each prompt.

        Calls that arrive during a generation wait for it, and the first to continue generates for all of them in one
        batch. timeout: in seconds, -1 for none. Raises DataError if the model's context is too short for a prompt,
        TimeoutError after the timeout.
        """
        if (found := self._cached(prompts)) is not None:
            return found
        # A prompt that is too long fails here, for its caller only.
        tokens = self.generator.encode_all(prompts, self.sampling.max_new_tokens)
        encoded = dict(zip(prompts, tokens, strict=True))
        with self._state:
            self._requested |= encoded
        if not self._generating.acquire(timeout=timeout):
            raise TimeoutError(f"no response was generated within {timeout} seconds")
        try:
            with self._state:
                requested, self._requested = self._requested, {}
            own = {x: encoded[x] for x in prompts if x not in self._responses}
            missing = {x: requested[x] for x in requested if x not in self._responses}
            self._generate_missing(own, own | missing)
            with self._state:
                found = [self._responses[prompt] for prompt in prompts]
                while len(self._responses) > self.cache_size:
                    self._responses.popitem(last=False)
            return found
        finally:
            self._generating.release()

    @property
    def pending(self) -> int:
        """Number of prompts that wait for the next generation."""
        return len(self._requested)

    def _generate_missing(
        self, own: dict[Prompt, np.ndarray], missing: dict[Prompt, np.ndarray]
    ) -> None:
        """Generate and cache; if the prompts of all callers fail, only those of this caller."""
        try:
            texts = self._generate(list(missing.values()))
        except Exception:
            if missing.keys() == own.keys():
                raise
            missing, texts = own, self._generate(list(own.values()))
        with self._state:
            self._responses |= zip(missing, texts, strict=True)

    def _cached(self, prompts: Sequence[Prompt]) -> list[str] | None:
        """The responses, if all are cached."""
        with self._state:
            if any(prompt not in self._responses for prompt in prompts):
                return None
            for prompt in prompts:
                self._responses.move_to_end(prompt)
            return [self._responses[prompt] for prompt in prompts]

    def _generate(self, tokens: list[np.ndarray]) -> list[str]:
        """Generate responses. Prompts are padded to a power of two or to whole batches, so that few programs are
        compiled.
        """
        if not tokens:
            return []
        count = len(tokens)
        batch_size = min(BATCH_SIZE, 1 << (count - 1).bit_length())
        filled = tokens + tokens[:1] * (-count % batch_size)
        found = self.generator.generate_from_tokens(filled, self.sampling, batch_size=batch_size)
        return found.texts[:count]
