"""Ctrl-C at a chosen line: what a signal does at one moment, done at any."""

import contextlib
import sys
from pathlib import Path

import mlx_fastvlm

PACKAGE = str(Path(mlx_fastvlm.__file__).parent)
CACHES = (f"{PACKAGE}/cache/kv.py", f"{PACKAGE}/cache/bounded.py", "mlx_lm/models/cache.py")
PLACES = (f"{PACKAGE}/generation/", f"{PACKAGE}/cache/", "mlx_lm/models/cache.py")


@contextlib.contextmanager
def interrupted_at(line, places=PLACES):
    """``KeyboardInterrupt`` before the so-and-so-many-th line that runs in ``places``.

    Gives a list whose length is, in the end, how many such lines ran.
    """
    passed = []

    def trace(frame, event, argument):
        if not any(place in frame.f_code.co_filename for place in places):
            return None
        if event == "line":
            passed.append(frame.f_lineno)
            if len(passed) == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield passed
    finally:
        sys.settrace(before)
