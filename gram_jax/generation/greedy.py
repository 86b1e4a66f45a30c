"""References that a policy writes: what it says when it takes the likeliest token each time, as in the paper's RLHF."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from gram_jax.errors import DataError
from gram_jax.generation.generator import Policy
from gram_jax.judge.messages import Prompt

NEW = 256  # tokens of a response, where nothing else is said: TRL's default length of a completion
REMEMBERED = 16384  # prompts, by default
ROWS = 32  # written at a time


class GreedyResponses:
    """A policy's greedy responses, kept for the prompts of late. May be called from several threads.

    The policy is one of fixed weights: what a training starts from, say. For references of a trainer's own policy as it
    is now, give a function of the same form that asks that. Prompts of messages are rendered by the model's own chat
    template, thinking switched off. In bfloat16 a token may depend on what is written beside it, and with it the
    rest of a response: all that is compared with one of them is compared with the same.

    >>> from gram_jax.rewards.messages import prompt_of
    >>> policy = Policy.load("tiny-random", compute="float32")
    >>> first, again = GreedyResponses(policy, new=4)([prompt_of("Hi")] * 2)
    >>> first == again == policy.write([prompt_of("Hi")], new=4, temperature=0).texts[0]
    True
    """

    def __init__(self, policy: Policy, *, new: int = NEW, remembered: int = REMEMBERED):
        """new: tokens of a response, at most; remembered: prompts whose response is kept for the next time.

        Raises DataError for a `new` that the model's context has no room for.
        """
        if not 0 < new < policy.cfg.context_length:
            raise DataError(
                f"new = {new}: expected at least one token, and fewer than the {policy.cfg.context_length} positions "
                "that the model was made for"
            )
        self.policy, self.new, self.remembered = policy, new, remembered
        self._written: OrderedDict[Prompt, str] = OrderedDict()
        self._wanted: dict[Prompt, None] = {}  # of all callers, in the order of their coming
        self._turn, self._look = threading.Lock(), threading.Lock()

    def __call__(self, prompts: Sequence[Prompt], wait: float = -1) -> list[str]:
        """A response to each prompt.

        Callers that come while others are served wait, and the first to go on writes for all of them in one batch.
        wait: for so many seconds at most (-1: however long it takes). Raises DataError for a prompt that leaves the
        model no room to answer, TimeoutError for a wait that was too long.
        """
        if (found := self._remember(prompts)) is not None:
            return found
        self.policy.encode_all(
            prompts, self.new
        )  # one that does not fit fails for its caller alone
        with self._look:
            self._wanted |= dict.fromkeys(prompts)
        if not self._turn.acquire(timeout=wait):
            raise TimeoutError(f"no response was written within {wait} seconds")
        try:
            with self._look:
                wanted, self._wanted = self._wanted, {}
            own = dict.fromkeys(prompt for prompt in prompts if prompt not in self._written)
            others = [x for x in wanted if x not in self._written and x not in own]
            return self._serve(prompts, list(own), others)
        finally:
            self._turn.release()

    def _serve(
        self, prompts: Sequence[Prompt], own: list[Prompt], others: list[Prompt]
    ) -> list[str]:
        try:
            texts = self._write([*own, *others])
        except Exception:
            if not others:
                raise
            others, texts = [], self._write(own)  # whoever else it was will learn of it alone
        with self._look:
            self._written |= zip((*own, *others), texts, strict=True)
            found = [self._written[prompt] for prompt in prompts]
            while len(self._written) > self.remembered:
                self._written.popitem(last=False)
        return found

    def _remember(self, prompts: Sequence[Prompt]) -> list[str] | None:
        """The responses, if all are kept."""
        with self._look:
            if any(prompt not in self._written for prompt in prompts):
                return None
            for prompt in prompts:
                self._written.move_to_end(prompt)
            return [self._written[prompt] for prompt in prompts]

    def _write(self, prompts: list[Prompt]) -> list[str]:
        """Filled up to a power of two, or to whole batches: a program for each number of rows would be compiled."""
        if not prompts:
            return []
        count = len(prompts)
        rows = min(ROWS, 1 << (count - 1).bit_length())
        filled = prompts + prompts[:1] * (-count % rows)
        return self.policy.write(filled, new=self.new, temperature=0, rows=rows).texts[:count]
