"""MLX's streams end before the thread that made them does, and before Python: else the process may be aborted."""

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
    """Called by whatever computes in a thread that others may have started."""
    if threading.current_thread() is not threading.main_thread() and not hasattr(_of_thread, "end"):
        _of_thread.end = _AtTheEnd()


atexit.register(mx.clear_streams)
