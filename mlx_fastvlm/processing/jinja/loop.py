"""What a template's ``for`` goes through, and what its ``loop`` tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .values import Budget, Function, Refused, Undefined, equal, iterate, length

_MISSING = object()


class Loop:
    """A running ``for``: its elements, and what ``loop`` tells of them. It looks ahead only when it is asked to."""

    def __init__(self, values: Any, budget: Budget) -> None:
        self._values, self._iterator, self._budget = values, iterate(values, budget), budget
        self._length: int | None = None
        self._before = self._current = self._after = self._changed = _MISSING
        self.index0 = -1

    def __iter__(self) -> Iterator[Any]:
        while self._peek() is not _MISSING:
            self._before, self._current, self._after = self._current, self._after, _MISSING
            self.index0 += 1
            yield self._current

    def _peek(self) -> Any:
        if self._after is _MISSING:
            self._after = next(self._iterator, _MISSING)
        return self._after

    def _count(self) -> int:
        if self._length is None:
            try:
                self._length = length(self._values)
            except Refused:
                rest = list(self._iterator)
                self._iterator = iter(rest)
                self._length = len(rest) + self.index0 + 1 + (self._after is not _MISSING)
        return self._length

    def look(self, name: str) -> Any:
        """``loop.name``."""
        if name not in _LOOP:
            return Undefined(f"loop has no {name[:50]!r}")
        return _LOOP[name](self)

    def _previous(self) -> Any:
        return Undefined("there is no previous item") if self.index0 == 0 else self._before

    def _next(self) -> Any:
        return Undefined("there is no next item") if self._peek() is _MISSING else self._after

    def _cycle(self, budget: Budget, *values: Any) -> Any:
        return values[self.index0 % len(values)]

    def _has_changed(self, budget: Budget, *values: Any) -> bool:
        same = self._changed is not _MISSING and equal(self._changed, values, budget)
        self._changed = values
        return not same


_LOOP: dict[str, Callable[[Loop], Any]] = {
    "index": lambda loop: loop.index0 + 1,
    "index0": lambda loop: loop.index0,
    "revindex": lambda loop: loop._count() - loop.index0,
    "revindex0": lambda loop: loop._count() - loop.index0 - 1,
    "first": lambda loop: loop.index0 == 0,
    "last": lambda loop: loop._peek() is _MISSING,
    "length": lambda loop: loop._count(),
    "depth": lambda loop: 1,
    "depth0": lambda loop: 0,
    "previtem": lambda loop: loop._previous(),
    "nextitem": lambda loop: loop._next(),
    "cycle": lambda loop: Function("cycle", loop._cycle),
    "changed": lambda loop: Function("changed", loop._has_changed),
}
