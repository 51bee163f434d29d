"""Weights stay in a Mac's memory while a model answers.

macOS may page out, or compress, what its GPU has not used for a moment, and the next token waits until it is back. What
MLX has wired stays, up to a limit, which is nothing unless somebody raises it. It is one for the process, so that it
is what all models that answer at a time need, and the old one is put back after the last.
"""

from __future__ import annotations

import threading

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

# For what a model needs beside its weights: KV caches, and arrays on their way.
BESIDE = 4 * 2**30

_lock = threading.Lock()
_answering: dict[int, tuple[int, int]] = {}  # by a model's id: who holds it, and its bytes
_before = 0


def most() -> int:
    """What Metal advises against exceeding, in bytes; 0 where nothing can be wired."""
    if not _on_gpu() or not mx.metal.is_available():
        return 0
    return int(mx.device_info().get("max_recommended_working_set_size", 0))


def _on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def hold(model: nn.Module) -> None:
    """Wire a model, until :func:`release` was called as often. Does nothing where there is no Metal."""
    global _before
    limit = most()
    if not limit:
        return
    with _lock:
        first = not _answering
        holders, size = _answering.get(id(model), (0, 0))
        size = size or sum(x.nbytes for _, x in tree_flatten(model.parameters()))
        _answering[id(model)] = holders + 1, size
        before = _wire(limit)
        _before = before if first else _before


def release(key: int) -> None:
    """Undo one :func:`hold` of the model with this ``id``."""
    with _lock:
        if key not in _answering:
            return
        holders, size = _answering[key]
        if holders > 1:
            _answering[key] = holders - 1, size
            return
        del _answering[key]
        mx.synchronize()  # nothing that still runs may lose its place
        if _answering:
            _wire(most())
        else:
            mx.set_wired_limit(_before)


def _wire(limit: int) -> int:
    """What all models that answer need, but no more than may be; returns the limit before."""
    return mx.set_wired_limit(min(limit, BESIDE + sum(size for _, size in _answering.values())))
