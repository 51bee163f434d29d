"""Work spread over the cores of a Linux CPU.

MLX runs each of its CPU streams in a thread of its own, and an operation in one of them. OpenBLAS would bring threads
along, but they spin while they wait, help with nothing but matrix products, and serve one stream at a time. So it is
told to use one (``startup.py``), and what can be cut into pieces is: a stream for each core.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import mlx.core as mx

Piece = TypeVar("Piece")

_of_thread = threading.local()


@functools.cache
def _count() -> int:
    """Streams that, with OpenBLAS's threads in each, leave no core idle; at most eight."""
    if sys.platform != "linux":
        return 1  # Accelerate, on a Mac, spreads by itself
    try:
        threads: int = ctypes.CDLL(None).openblas_get_num_threads()
    except AttributeError:  # the BLAS in MLX's wheel has one
        threads = 1
    return max(1, min(8, len(os.sched_getaffinity(0)) // threads))


@functools.cache
def _further(count: int) -> list[mx.ThreadLocalStream]:
    return [mx.new_thread_local_stream(mx.DeviceType.cpu) for _ in range(count)]


def take_cores(cores: set[int]) -> None:
    """Let all threads of this process run on these cores only, of those it has; for Linux."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)
    _count.cache_clear()


def free_cores() -> int:
    """How many cores :func:`spread` would use: one for what is a piece itself."""
    return 1 if getattr(_of_thread, "spreading", False) else _count()


def spread(x: mx.array, pieces: Iterable[Piece], compute: Callable[[mx.array, Piece], mx.array]) -> list[mx.array]:
    """``compute(x, piece)`` for each piece, as many at a time as there are free cores.

    Each starts after the one before it on its core, so that the temporaries of few exist at a time.
    """
    cores = free_cores()
    streams: Sequence[mx.Stream | mx.ThreadLocalStream]
    streams = [mx.default_stream(mx.default_device()), *_further(cores - 1)]
    done: list[mx.array] = []
    outer, _of_thread.spreading = getattr(_of_thread, "spreading", False), True
    try:
        for i, piece in enumerate(pieces):
            with mx.stream(streams[i % cores]):
                done.append(compute(mx.depends([x], [done[i - cores]])[0] if i >= cores else x, piece))
    finally:
        _of_thread.spreading = outer
    return done
