"""One writer at a time."""

from __future__ import annotations

import os
from pathlib import Path


def lock(descriptor: int, path: Path) -> None:
    """Hold a file until it is closed, or the process ends; ``OSError`` where another process does.

    Windows has no such locks, nor have some network disks: there nothing is refused.
    """
    try:
        import fcntl  # noqa: PLC0415  not on Windows

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who held it may have put another file there in between: then this lock is on nothing.
        alone = os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        alone = False
    except (ImportError, OSError):
        return
    if not alone:
        raise OSError(
            f"Another process is writing captions to {path}; wait until it has ended, or give another --output."
        )
