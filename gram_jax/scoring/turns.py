"""Turns between clients by cost: a large request delays those of other clients by one turn, not by its whole size."""

import math
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several clients: the next one is of the client with the least cost so far. Not thread-safe.

    The cost of an item is charged to its client when it is known. A client that has no items for a time gets no credit
    for it: its cost is then that of the client that was served last (start-time fair queueing, Goyal et al. 1996).

    >>> queue = FairQueue[str]()
    >>> for client, item in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2"), ("b", "b3")):
    ...     queue.append(client, item)
    >>> order = []
    >>> while queue:
    ...     client, item = queue.pop()
    ...     queue.charge(client, 5 if client == "a" else 2)
    ...     order.append(item)
    >>> order
    ['a1', 'b1', 'b2', 'b3', 'a2']
    """

    def __init__(self) -> None:
        self._items: dict[Hashable, deque[T]] = {}
        self._costs: dict[Hashable, float] = {}  # of clients, from the start of the queue
        self._now = 0.0  # cost of the client that was served last, before its turn

    def __len__(self) -> int:
        """Number of items of all clients."""
        return sum(map(len, self._items.values()))

    def __bool__(self) -> bool:
        """Whether there is an item."""
        return bool(self._items)

    def __iter__(self) -> Iterator[T]:
        """The items, those of each client together."""
        return (item for items in self._items.values() for item in items)

    def append(self, client: Hashable, item: T) -> None:
        """Put an item behind the others of its client."""
        if client not in self._items:
            self._costs[client] = max(self._costs.get(client, 0.0), self._now)
        self._items.setdefault(client, deque()).append(item)

    def pop(self) -> tuple[Hashable, T]:
        """Take the first item of the client with the least cost; returns both."""
        client = min(self._items, key=lambda client: self._costs[client])
        self._now = max(self._now, self._costs[client])
        item = self._items[client].popleft()
        self._clear(client)
        return client, item

    def charge(self, client: Hashable, cost: float) -> None:
        """Add what an item of this client costs."""
        self._costs[client] = max(self._costs.get(client, 0.0), self._now) + cost

    def remove(self, client: Hashable, item: T) -> bool:
        """Take out an item; False if it is not here."""
        items = self._items.get(client, deque[T]())
        if item not in items:
            return False
        items.remove(item)
        self._clear(client)
        return True

    def _clear(self, client: Hashable) -> None:
        if not self._items[client]:
            del self._items[client]
        if not self._items:
            self._now = max(self._costs.values())
        # The cost of a client without items counts until the others have reached it.
        self._costs = {
            one: cost for one, cost in self._costs.items() if cost > self._now or one in self._items
        }


class Turns:
    """At most `slots` threads at a time. The next slot is for the client that has held them for the least time.

    Only time that others waited for counts: a turn is charged if a thread waits as it ends.
    """

    def __init__(self, slots: int):
        self._free = slots
        self._waiting: FairQueue[threading.Event] = FairQueue()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Number of threads that wait for a slot."""
        return len(self._waiting)

    @contextmanager
    def turn(self, client: Hashable, deadline: float = math.inf) -> Iterator[None]:
        """Hold a slot. Raises TimeoutError after the deadline (of time.monotonic), or if none is free before."""
        if time.monotonic() > deadline:
            raise TimeoutError
        event = threading.Event()
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                event.set()
            else:
                self._waiting.append(client, event)
        left = deadline - time.monotonic()
        if not event.wait(None if math.isinf(left) else max(0.0, left)):
            with self._lock:
                if self._waiting.remove(client, event):
                    raise TimeoutError
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.charge(client, time.monotonic() - started)
                    self._waiting.pop()[1].set()
                else:
                    self._free += 1
