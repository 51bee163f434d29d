"""Ctrl-C at a chosen line: what a signal does at one moment, done at any."""

import contextlib
import sys
from pathlib import Path

import mlx_fastvlm

PACKAGE = str(Path(mlx_fastvlm.__file__).parent)
CACHES = (f"{PACKAGE}/cache/kv.py", f"{PACKAGE}/cache/bounded.py", "mlx_lm/models/cache.py")
PROMPT_CACHES = (*CACHES, f"{PACKAGE}/cache/prompt.py")
PLACES = (f"{PACKAGE}/generation/", f"{PACKAGE}/cache/", "mlx_lm/models/cache.py")


@contextlib.contextmanager
def interrupted_at(line, places=PLACES):
    """``KeyboardInterrupt`` before the so-and-so-many-th line that runs in ``places``.

    Gives the list of all such lines that ran, each as (file, number).
    """
    passed = []

    def trace(frame, event, argument):
        if not any(place in frame.f_code.co_filename for place in places):
            return None
        if event == "line":
            passed.append((frame.f_code.co_filename, frame.f_lineno))
            if len(passed) == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield passed
    finally:
        sys.settrace(before)


def last_times(passed):
    """For every line that ran, when it did so last: in a cache, that is in the last layer of the last step."""
    return sorted({place: moment for moment, place in enumerate(passed, 1)}.values())
