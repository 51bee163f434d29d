"""What every command of this package does alike: exit codes, one-line errors, quiet ends."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable


def run(command: Callable[[], None], *, debug: bool = False) -> int:
    """Run a command and return its exit code.

    0 where it succeeded; 1 with one ``error:`` line on stderr for anything that went wrong (``debug`` raises it
    instead, with its traceback); 130 after Ctrl-C. Usage errors exit with 2 before, in argparse.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
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
        return 1
    return 0
