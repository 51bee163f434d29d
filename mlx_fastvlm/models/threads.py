"""MLX's streams end before the thread that made them does, and before Python: else the process may be aborted.

So every way into a computation says so first: the tower, the decoder, reading, converting and saving a checkpoint. What
this does not reach: a thread that computes with MLX alone, and a daemon thread that still computes when the process
ends; the threads that MLX itself starts, two for each of Python's, stay until then.

Nor are those threads there in a child that ``os.fork`` makes, where MLX would wait for them for ever. So the same call
raises there.
"""

from __future__ import annotations

import atexit
import os
import threading

import mlx.core as mx

_of_thread = threading.local()
_computed = _forked = False


class _AtTheEnd:
    """Python drops a thread's locals in that thread, before it counts as ended."""

    def __del__(self) -> None:
        mx.clear_streams()


def end_streams_with_thread() -> None:
    """Called by whatever begins to compute in a thread that others may have started; costs next to nothing again.

    Raises:
        RuntimeError: in a process that was forked from one that had computed.
    """
    global _computed
    if _forked:
        raise RuntimeError(
            "This process was forked from one where MLX had computed, and its threads are missing here; start "
            "processes by 'spawn' (multiprocessing.set_start_method), or fork before anything is loaded."
        )
    _computed = True
    if threading.current_thread() is not threading.main_thread() and not hasattr(_of_thread, "end"):
        _of_thread.end = _AtTheEnd()


def _in_child() -> None:
    global _forked
    _forked = _computed


atexit.register(mx.clear_streams)
if hasattr(os, "register_at_fork"):  # where there is a fork
    os.register_at_fork(after_in_child=_in_child)
