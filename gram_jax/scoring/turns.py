"""Turns between clients: a large request delays the requests of other clients by one turn, not by its whole size."""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several clients: in order for each client, one client after the other. Not thread-safe.

    >>> queue = FairQueue[int]()
    >>> for client, item in (("a", 1), ("a", 2), ("b", 3)):
    ...     queue.append(client, item)
    >>> [queue.pop() for _ in range(len(queue))]
    [1, 3, 2]
    """

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, deque[T]] = OrderedDict()

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
        self._items.setdefault(client, deque()).append(item)

    def pop(self) -> T:
        """Take the first item of the client whose last turn is longest ago."""
        client, items = self._items.popitem(last=False)
        item = items.popleft()
        if items:
            self._items[client] = items
        return item

    def remove(self, client: Hashable, item: T) -> bool:
        """Take out an item; False if it is not here."""
        items = self._items.get(client, deque[T]())
        if item not in items:
            return False
        items.remove(item)
        if not items:
            del self._items[client]
        return True


class Turns:
    """At most `slots` threads at a time, which clients get in turn."""

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
        """Hold a slot. Raises TimeoutError if none is free before the deadline (of time.monotonic)."""
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
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.pop().set()
                else:
                    self._free += 1
