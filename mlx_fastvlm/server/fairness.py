"""The queue before the worker: clients take turns, however many requests each has in it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class QueueClosed(Exception):
    """Nobody takes from the queue any more."""


class FairQueue(Generic[Item]):
    """Items of several clients. The next is always of the client that was given least, its oldest first.

    This is start-time fair queueing: each client's count goes up by the cost of what it is given. One that has nothing
    waiting saves up nothing: it begins again with the count of whoever has had a turn last. So two clients that both
    wait are given the same, to within the cost of one item of each.

    Any thread may call any method.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[tuple[Item, int]]] = {}  # of clients with something waiting, the earliest first
        self._given: dict[str, int] = {}
        self._now = 0  # the count at the last turn
        self._changed = threading.Condition()
        self._woken = self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._lines.copy().values()))

    def put(self, item: Item, client: str, cost: int = 1) -> None:
        """Let an item wait; ``QueueClosed`` after :meth:`close`."""
        with self._changed:
            if self._closed:
                raise QueueClosed
            if client not in self._lines:
                self._lines[client] = deque()
                self._given[client] = max(self._now, self._given.get(client, 0))
            self._lines[client].append((item, cost))
            self._changed.notify_all()

    def take(self) -> Item | None:
        """The next item; None if there is none. Does not wait."""
        with self._changed:
            if not self._lines:
                return None
            client = min(self._lines, key=self._given.__getitem__)
            self._now = self._given[client]
            item, cost = self._lines[client].popleft()
            self._given[client] += cost
            # Whoever has had more than others keeps its place, also in a new line.
            self._lines[client] = self._lines.pop(client)
            self._tidy(client)
            return item

    def discard(self, item: Item) -> None:
        """Take out an item whose client has gone; one that is not there is none to take out."""
        with self._changed:
            for client, line in self._lines.items():
                kept = deque(entry for entry in line if entry[0] is not item)
                if len(kept) < len(line):
                    self._lines[client] = kept
                    self._tidy(client)
                    return

    def displace(self, share: int) -> Item | None:
        """Take out the latest item of whoever has most, if those are more than ``share``; None if nobody has."""
        with self._changed:
            client = max(self._lines, key=lambda name: len(self._lines[name]), default=None)
            if client is None or len(self._lines[client]) <= share:
                return None
            item, _ = self._lines[client].pop()
            self._tidy(client)
            return item

    def _tidy(self, client: str) -> None:
        """Forget clients that wait for nothing and owe nothing."""
        if not self._lines[client]:
            del self._lines[client]
        if not self._lines:
            self._given.clear()
            self._now = 0
        for other in [name for name, given in self._given.items() if given <= self._now and name not in self._lines]:
            del self._given[other]

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until something waits or :meth:`wake` was called; False if neither happened in time (seconds)."""
        with self._changed:
            happened = self._changed.wait_for(lambda: self._woken or bool(self._lines), timeout)
            self._woken = False
            return happened

    def wake(self) -> None:
        """Let :meth:`wait` return, the one that runs or else the next."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> list[Item]:
        """Refuse whatever comes from now on; returns what still waits."""
        with self._changed:
            self._closed = True
            left = [item for line in self._lines.values() for item, _ in line]
            self._lines.clear()
            return left
