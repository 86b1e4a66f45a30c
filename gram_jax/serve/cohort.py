"""Groups of callers that send a part of them at a time: the parts wait for each other and are compared together."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from gram_jax.scoring.request_batcher import DeadlineExceededError

Rate = Callable[[list[str], float], list[float]]


@dataclass(eq=False)
class _Group:
    responses: list[str] = field(default_factory=list)
    deadline: float = 0.0  # the latest of its members'
    waiting: int = 0
    closed: bool = False
    answer: "Future[list[float]]" = field(default_factory=Future)


class Cohorts:
    """Responses of one key and size within `wait` seconds of the first are a group, at most until it is full."""

    def __init__(self, wait: float):
        self.wait = wait
        self._open: dict[Any, _Group] = {}
        self._changed = threading.Condition()
        self._ending = False

    def rewards(
        self, key: Any, responses: Sequence[str], size: int, deadline: float, rate: Rate
    ) -> tuple[list[float], int]:
        """Rewards of these responses, and how many were compared.

        The last to come, or the first to tire, asks `rate`, with the latest deadline of the group. Raises
        DeadlineExceededError if the caller's own deadline (of time.monotonic) passes before, and what `rate` raises.
        """
        with self._changed:
            group = self._open.setdefault((key, size), _Group())
            at = len(group.responses)
            group.responses += responses
            group.deadline = max(group.deadline, deadline)
            mine = self._closes(group, (key, size), deadline)
        if mine:
            try:
                group.answer.set_result(rate(group.responses, group.deadline))
            except Exception as error:
                group.answer.set_exception(error)
        try:
            found = group.answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise DeadlineExceededError from None
        return found[at : at + len(responses)], len(group.responses)

    def close(self) -> None:
        """Let nobody wait any longer for others to come: open groups are compared as they are."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def _closes(self, group: _Group, key: Any, deadline: float) -> bool:
        """Wait until the group is closed; whether it was the caller who closed it."""
        end = time.monotonic() + self.wait
        group.waiting += 1
        try:
            while not group.closed:
                now = time.monotonic()
                if len(group.responses) >= key[1] or self._ending or now >= end:
                    group.closed = True
                    self._changed.notify_all()
                    return True
                if now >= deadline:
                    raise DeadlineExceededError
                self._changed.wait(min(end, deadline) - now)
            return False
        finally:
            group.waiting -= 1
            if (group.closed or not group.waiting) and self._open.get(key) is group:
                del self._open[key]
