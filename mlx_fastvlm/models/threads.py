"""MLX's streams end before the thread that made them does, and before Python: else the process may be aborted.

So every way into a computation says so first: the tower, the decoder, reading, converting and saving a checkpoint. What
this does not reach: a thread that computes with MLX alone, and a daemon thread that still computes when the process
ends; the threads that MLX itself starts, two for each of Python's, stay until then.
"""

from __future__ import annotations

import atexit
import threading

import mlx.core as mx

_of_thread = threading.local()


class _AtTheEnd:
    """Python drops a thread's locals in that thread, before it counts as ended."""

    def __del__(self):
        mx.clear_streams()


def end_streams_with_thread():
    """Called by whatever begins to compute in a thread that others may have started; costs next to nothing again."""
    if threading.current_thread() is not threading.main_thread() and not hasattr(_of_thread, "end"):
        _of_thread.end = _AtTheEnd()


atexit.register(mx.clear_streams)
