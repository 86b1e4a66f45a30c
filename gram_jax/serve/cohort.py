"""Groups of callers that send one response at a time: the members wait for each other and are compared together."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Group:
    responses: list[str] = field(default_factory=list)
    rewards: list[float] | None = None
    error: Exception | None = None
    closed: bool = False


class Cohorts:
    """Responses of one key that arrive within `wait` seconds of the first, `size` of them at most, are a group."""

    def __init__(self, wait: float):
        self.wait = wait
        self._open: dict[Any, _Group] = {}
        self._changed = threading.Condition()

    def reward(
        self, key: Any, response: str, size: int, rate: Callable[[list[str]], list[float]]
    ) -> tuple[float, int]:
        """This response's reward, and how many were compared. The last to come, or the first to tire, asks `rate`."""
        with self._changed:
            group = self._open.setdefault(key, _Group())
            at = len(group.responses)
            group.responses.append(response)
            mine = len(group.responses) >= size
            end = time.monotonic() + self.wait
            while not mine and not group.closed:
                left = end - time.monotonic()
                if left <= 0:
                    mine = True
                else:
                    self._changed.wait(left)
            if mine and group.closed:
                mine = False
            if mine:
                group.closed = True
                self._open.pop(key, None)
        if mine:
            try:
                group.rewards = rate(group.responses)
            except Exception as error:
                group.error = error
            with self._changed:
                self._changed.notify_all()
        with self._changed:
            while group.rewards is None and group.error is None:
                self._changed.wait()
        if group.rewards is None:
            raise group.error or RuntimeError("a group without rewards")
        return group.rewards[at], len(group.responses)
