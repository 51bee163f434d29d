"""Images are opened and squared ahead, in threads, so that whoever computes never waits for one that could be ready."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from .items import Item

Prepared = TypeVar("Prepared")


class Prefetch(Generic[Prepared]):
    """Prepares items ahead, in order; gives the first that is ready.

    Args:
        prepare: makes an item ready, in one of the threads. What it raises is given in place of the result.
        threads: how many at once.
        ahead: at most so many items are on their way or ready.
        most_bytes: of what sources hold in memory for them; a larger one goes alone.

    Attributes:
        waited: seconds in which :meth:`take` had nothing to give.
    """

    def __init__(
        self,
        items: Iterator[Item],
        prepare: Callable[[Item], Prepared],
        *,
        threads: int = 4,
        ahead: int = 32,
        most_bytes: int = 256 * 2**20,
    ) -> None:
        self._items, self._prepare, self._ahead, self._most_bytes = items, prepare, ahead, most_bytes
        self._reading = threading.Lock()  # one thread at a time advances the source
        self._changed = threading.Condition()
        self._ready: list[tuple[int, Item, Prepared | Exception]] = []
        self._sizes: dict[int, int] = {}  # of the items on their way or ready, as their source gave them
        self._bytes = self._next = 0
        self._over = self._closed = False
        self._error: BaseException | None = None
        self.waited = 0.0
        # Daemons: one that waits for a server must not keep the process after Ctrl-C.
        self._threads = [threading.Thread(target=self._run, name="prefetch", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Prefetch[Prepared]:
        return self

    def __exit__(self, *_: object) -> None:
        """No item is begun any more; those at hand end in their own time, and nobody sees them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, wait: bool) -> tuple[int, Item, Prepared | Exception] | None:
        """The first item that is ready, with its number; None where there is none.

        Args:
            wait: until there is one, or no more.
        """
        start = time.perf_counter()
        with self._changed:
            while wait and not self._ready and not self.ended:
                self._changed.wait()
            if wait:
                self.waited += time.perf_counter() - start
            if not self._ready:
                return None
            number, item, result = heapq.heappop(self._ready)
            self._bytes -= self._sizes.pop(number)
            self._changed.notify_all()
            return number, item, result

    @property
    def ended(self) -> bool:
        """Whether nothing will come any more."""
        return self._over and not self._sizes

    def check(self) -> None:
        """Raise what ended the source before its time."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            found = self._begin()
            if found is None:
                return
            number, item = found
            try:
                result: Prepared | Exception = self._prepare(item)
            except Exception as error:
                result = error
            with self._changed:
                heapq.heappush(self._ready, (number, item, result))
                self._changed.notify_all()

    def _begin(self) -> tuple[int, Item] | None:
        """The next item, once there is room for it."""
        with self._reading:
            with self._changed:
                while not self._over and not self._closed and len(self._sizes) >= self._ahead:
                    self._changed.wait()
                if self._over or self._closed:
                    return None
            item, error = None, None
            try:
                item = next(self._items, None)
            except BaseException as raised:
                error = raised
            with self._changed:
                if item is None:
                    self._over, self._error = True, error
                    self._changed.notify_all()
                    return None
                size = item.nbytes
                while not self._closed and self._sizes and self._bytes + size > self._most_bytes:
                    self._changed.wait()
                number, self._next = self._next, self._next + 1
                self._sizes[number] = size
                self._bytes += size
                return number, item
