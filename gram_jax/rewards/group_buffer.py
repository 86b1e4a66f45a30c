"""Responses of one group that arrive in several calls: the state that compares them with each other."""

import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from gram_jax.errors import GramWarning

MAX_GROUPS = 1024

# (responses of a group, deadline of time.monotonic) -> a reward for each
RateGroup = Callable[[list[str], float], list[float]]


@dataclass(eq=False)
class _Group:
    responses: list[str] = field(default_factory=list)
    deadline: float = 0.0  # the latest of its callers'
    waiting: int = 0
    closed: bool = False
    rewards: "Future[list[float]]" = field(default_factory=Future)


class GroupBuffer:
    """Open groups by key. May be used from several threads.

    `extend` returns at once, with the responses of earlier calls; `gather` blocks until the group is complete. wait:
    seconds that `gather` waits for a group to fill up.
    """

    def __init__(self, wait: float = 0.0):
        self.wait = wait
        self._open: OrderedDict[Hashable, _Group] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = self._warned = False

    def __len__(self) -> int:
        """Number of open groups."""
        return len(self._open)

    def extend(self, key: Hashable, responses: list[str], size: int | None) -> list[str]:
        """`responses`, followed by those of earlier calls that belong to the same group.

        size: responses of a complete group, after which a new one begins; None if it is not known: single responses
        are then compared with the last two. The groups of the last MAX_GROUPS keys are kept. Warns once if a group
        arrives in parts.
        """
        needed = size or 2
        with self._changed:
            earlier = self._open.pop(key, _Group()).responses
            if len(responses) >= needed:
                return responses
            self._warn_once(len(responses), needed, len(earlier))
            if size is None or len(earlier) + len(responses) < size:
                self._open[key] = _Group([*earlier, *responses][-needed:])
            while len(self._open) > MAX_GROUPS:
                self._open.popitem(last=False)
        return responses + earlier

    def gather(
        self, key: Hashable, responses: Sequence[str], size: int, deadline: float, rate: RateGroup
    ) -> tuple[list[float], int]:
        """Rewards of these responses, and the number of responses in their group.

        Responses of one key and size that arrive within `wait` seconds of the first are a group. The caller that
        completes it, or the first to reach the end of its wait, calls `rate` with the latest deadline of the group.
        Raises TimeoutError if the caller's own deadline (of time.monotonic) passes, and what `rate` raises.
        """
        with self._changed:
            group = self._open.setdefault((key, size), _Group())
            start = len(group.responses)
            group.responses += responses
            group.deadline = max(group.deadline, deadline)
            closes = self._wait_until_closed(group, (key, size), deadline)
        if closes:
            try:
                group.rewards.set_result(rate(group.responses, group.deadline))
            except Exception as error:
                group.rewards.set_exception(error)
        found = group.rewards.result(max(0.0, deadline - time.monotonic()))
        return found[start : start + len(responses)], len(group.responses)

    def close(self) -> None:
        """Stop waiting for responses: open groups are rated as they are."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_until_closed(self, group: _Group, key: tuple[Hashable, int], deadline: float) -> bool:
        """Whether this caller closed the group. Raises TimeoutError if its deadline passes before."""
        started = time.monotonic()
        group.waiting += 1
        try:
            ended = self._changed.wait_for(
                lambda: group.closed or self._closed or len(group.responses) >= key[1],
                min(self.wait, deadline - started),
            )
            if group.closed:
                return False
            if not ended and deadline < started + self.wait:
                raise TimeoutError
            group.closed = True
            self._changed.notify_all()
            return True
        finally:
            group.waiting -= 1
            if (group.closed or not group.waiting) and self._open.get(key) is group:
                del self._open[key]

    def _warn_once(self, found: int, needed: int, earlier: int) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"a group of responses arrives in parts: {found} of at least {needed} in one call, compared with {earlier} "
            "of earlier calls. A response without any other has 0.5. Try larger batches, or references (logged once)",
            category=GramWarning,
            stacklevel=2,
        )
