"""References that a policy writes: what it says when it takes the likeliest token each time, as in the paper's RLHF."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from gram_jax.data.record_types import Prompt
from gram_jax.errors import DataError
from gram_jax.rl.policy import Policy

REMEMBERED = 16384  # prompts whose response is kept: every epoch and every member of a group asks for it again
ROWS = 32  # written at a time


class GreedyResponses:
    """A policy's greedy responses, each written once. May be called from several threads.

    The policy is one of fixed weights: what a training starts from, say. For references of a trainer's own policy as it
    is now, give a function of the same form that asks that.

    >>> from gram_jax.rl.texts import prompt_of
    >>> policy = Policy.load("tiny-random", compute="float32")
    >>> first, again = GreedyResponses(policy, new=4)([prompt_of("Hi")] * 2)
    >>> first == again == policy.write([prompt_of("Hi")], new=4, temperature=0).texts[0]
    True
    """

    def __init__(self, policy: Policy, *, new: int = 256):
        """new: tokens of a response, at most."""
        if new < 1:
            raise DataError(f"new = {new}: expected at least one token")
        self.policy, self.new = policy, new
        self._written: OrderedDict[Prompt, str] = OrderedDict()
        self._wanted: dict[Prompt, None] = {}  # of all callers, in the order of their coming
        self._turn, self._look = threading.Lock(), threading.Lock()

    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        """A response to each prompt. Raises DataError for one that leaves the model no room to answer.

        Callers that come while others are served wait, and the first to go on writes for all of them in one batch.
        """
        self.policy.encode_all(
            prompts, self.new
        )  # one that does not fit fails for its caller alone
        with self._look:
            self._wanted |= dict.fromkeys(prompts)
        with self._turn:
            with self._look:
                wanted, self._wanted = self._wanted, {}
            wanted = [x for x in dict.fromkeys((*wanted, *prompts)) if x not in self._written]
            self._written |= zip(wanted, self._write(wanted), strict=True)
            found = [self._written[prompt] for prompt in prompts]
            for prompt in prompts:
                self._written.move_to_end(prompt)
            while len(self._written) > REMEMBERED:
                self._written.popitem(last=False)
        return found

    def _write(self, prompts: list[Prompt]) -> list[str]:
        """Filled up to a power of two, or to whole batches: a program for each number of rows would be compiled."""
        if not prompts:
            return []
        count = len(prompts)
        rows = min(ROWS, 1 << (count - 1).bit_length())
        filled = prompts + prompts[:1] * (-count % rows)
        return self.policy.write(filled, new=self.new, temperature=0, rows=rows).texts[:count]
