"""What every command of this package does alike: exit codes, one-line errors, quiet ends."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from .errors import UsageError


def run(command: Callable[[], None], *, debug: bool = False) -> int:
    """Run a command and return its exit code.

    0 where it succeeded; 1 with one ``error:`` line on stderr for anything that went wrong (``debug`` raises it
    instead, with its traceback), and 2 if that is an option's value; 130 after Ctrl-C. What argparse finds wrong
    exits with 2 before.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as in `| head -1`: nothing left to say, or to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0
