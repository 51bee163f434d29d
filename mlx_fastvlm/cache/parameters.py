"""Whether a module's parameters are still those that something cached was made with."""

from __future__ import annotations

import copy
import io
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Parameters:
    """All arrays of a module as they were at one time. One object stands for them until any of them changes.

    A new array in an old one's place is another Python object. One that was changed in place (``weight *= 2``,
    ``weight[0] = 0``) is the same object with another array of MLX's behind it. Those are told apart by exporting the
    graph of the old and the new ones, which gives a node to each: there must be no more nodes than old ones. Nothing is
    computed for that.

    Attributes:
        fingerprint: of their values, once somebody has asked for it (``fingerprint.py``).
    """

    def __init__(self, arrays: list[mx.array]) -> None:
        self.fingerprint: str | None = None
        self._ids = [id(x) for x in arrays]
        # These share the arrays' values; let go as soon as one is replaced, so that no replaced model stays in memory.
        self._copies = [copy.copy(x) for x in arrays]
        self._graph = _graph(self._copies)
        copies = self._copies  # and not self, which would never be let go
        self._watched = [weakref.ref(x, lambda _: copies.clear()) for x in arrays]

    def are(self, arrays: list[mx.array]) -> bool:
        """Whether these are the arrays, and have the same values."""
        if self._ids != [id(x) for x in arrays] or len(self._copies) != len(arrays):
            return False
        copies = list(self._copies)
        graph = _graph(copies + arrays)
        if graph != self._graph:  # they may have been computed since, which makes the graph smaller
            self._graph = _graph(copies)
        return graph == self._graph


def _graph(arrays: list[mx.array]) -> str:
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return text.getvalue()


def _collect(values: Iterable[Any], found: list[mx.array]) -> None:
    """All arrays in nested dicts (which modules are), lists and tuples, always in the same order."""
    for value in values:
        if type(value) is mx.array:
            found.append(value)
        elif isinstance(value, dict):
            _collect(value.values(), found)
        elif isinstance(value, (list, tuple)):
            _collect(value, found)


_known: dict[int, tuple[weakref.ref[nn.Module], Parameters]] = {}
_lock = threading.RLock()  # the callback below may come while this thread holds it


def parameters_of(module: nn.Module) -> Parameters:
    """The same object as at the last call, if the module's parameters are the same, and another otherwise."""
    arrays: list[mx.array] = []
    _collect(module.values(), arrays)
    with _lock:
        known = _known.get(id(module))
        if known is not None and known[0]() is module and known[1].are(arrays):
            return known[1]
        parameters = Parameters(arrays)
        _known[id(module)] = weakref.ref(module, _forgetting(id(module))), parameters
        return parameters


def _forgetting(key: int) -> Any:
    """A callback that forgets a module, if another has not got its ``id`` meanwhile."""

    def forget(reference: weakref.ref[nn.Module]) -> None:
        with _lock:
            if key in _known and _known[key][0] is reference:
                del _known[key]

    return forget
