"""What every command does alike: its parser, exit codes, one-line errors, quiet ends."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from ..errors import UsageError
from .terminal import printable


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which knows what a misspelt flag was meant to be."""

    def __init__(self, **options):
        # An abbreviation that works today is ambiguous once there is another flag.
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            self.error(f"there is no {unknown[0]}" + (f"; did you mean {near[0]}?" if near else "; --help lists all"))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(' '.join(message.split()))}\n")


def run(command: Callable[[], None], *, debug: bool = False) -> int:
    """Run a command and return its exit code.

    0 where it succeeded; 1 with one ``error:`` line on stderr for anything that went wrong (``debug`` raises it
    instead, with its traceback), and 2 if that is an option's value; 130 after Ctrl-C. What argparse finds wrong
    exits with 2 before.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a character still shows the others
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # it reports damaged pictures by lines of its own too
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {_line(message)}", file=sys.stderr)
            command()
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as in `| head -1`: nothing left to say
        _discard_output()
        return 1
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if debug:
            raise
        said: object = error
        if isinstance(error, MemoryError):
            said = "there is not enough memory; close other programs, or take a smaller model or --image-size"
        print(f"error: {_line(said)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it was about stdout itself
            _discard_output()
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _line(message: object) -> str:
    return printable(" ".join(str(message).split()))


def _discard_output():
    """Nothing more goes to stdout, so nothing can fail when Python flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
