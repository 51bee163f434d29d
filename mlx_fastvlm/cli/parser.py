"""What every command does alike: its parser, exit codes, one-line errors, quiet ends."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import UsageError
from .terminal import printable

LONGEST_LINE = 1000  # characters of an error: a tensor's name or a template's complaint may be megabytes
SOME_FAILED = 3  # the exit code of a command that did all it could, where some records are errors


# What other programs call a flag: spelt too unlike for difflib.
_ELSEWHERE = {
    "--resize-shape": "--image-size",
    "--max-new-tokens": "--max-tokens",
    "--do-sample": "--temperature",
    "--hf-model": "--model",
    "--model-path": "--model",
    "--image-file": "--image",
    "--conv-mode": "--system",
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that wraps a text of one line, leaves others as they are, and says each flag's default."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.nargs == 0 or action.required or not action.option_strings or text.endswith(")"):
            return text
        default = "none" if action.default is None else str(action.default).replace("%", "%%")
        return f"{text} ({default})".strip()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which knows what a misspelt flag was meant to be.

    Where it takes ``words``, they may stand anywhere among the flags.
    """

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today is ambiguous once there is another flag.
        super().__init__(allow_abbrev=False, **{"formatter_class": Help, **options})
        self.add_argument("--version", action="version", version=f"mlx-fastvlm {__version__}")

    def parse_args(  # type: ignore[override]  # its stub tells one kind of namespace from another
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if hasattr(parsed, "words") and not any(word.startswith("-") for word in unknown):
            parsed.words, unknown = [*parsed.words, *unknown], []
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = [_ELSEWHERE[flag]] if flag in _ELSEWHERE else difflib.get_close_matches(flag, known, n=1)
            self.error(f"there is no {flag}" + (f"; did you mean {near[0]}?" if near else "; --help lists all"))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_line(message)}\n")


def run(command: Callable[[], int | None], *, debug: bool = False) -> int:
    """Run a command and return its exit code.

    The command's own, or 0, where it succeeded; 1 with one ``error:`` line on stderr for anything that went wrong
    (``debug`` raises it instead, with its traceback), and 2 if that is an option's value; 130 after Ctrl-C. What
    argparse finds wrong exits with 2 before.
    """
    _replace_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a character still shows the others
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # it reports damaged images by lines of its own too
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {_line(message)}", file=sys.stderr)
            code = command()
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
    return code or 0


def _line(message: object) -> str:
    """A message as one line of a length that can be read."""
    text = " ".join(str(message).split())
    return printable(text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}...")


def _replace_closed_streams() -> None:
    """Where the shell closed a standard stream, nothing is read from it, and what is written to it is lost.

    Python has None there, and the next file that is opened gets the stream's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # until the process ends


def _discard_output() -> None:
    """Nothing more goes to stdout, so nothing can fail when Python flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
