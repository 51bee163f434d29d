"""Lines typed at a terminal: editing and history, Tab, and a paste of several lines as one."""

from __future__ import annotations

import glob
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path


def prepare(commands: Sequence[str]) -> None:
    """Give ``input()`` line editing where there is readline, Tab for commands and paths, and pastes in one piece."""
    try:
        import readline  # noqa: PLC0415  not on every system; importing it is what gives input() line editing
    except ImportError:
        return

    def complete(text: str, state: int) -> str | None:
        found = completions(readline.get_line_buffer()[: readline.get_endidx()], text, commands)
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")


def completions(line: str, word: str, commands: Sequence[str]) -> list[str]:
    """What a word at the end of a line may become: a command where the line begins with it, else a path."""
    known = [command + " " for command in commands if command.startswith(word)] if line == word else []
    if word == line and word[:1] not in ("/", "~", "."):
        return known
    paths = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*")) if word or line.startswith("/") else []
    shown = [path + "/" if Path(path).is_dir() else path + " " for path in paths]
    if word.startswith("~"):
        home = os.path.expanduser("~")
        shown = ["~" + path.removeprefix(home) if path.startswith(home) else path for path in shown]
    return known + shown


def read_line(prompt: str) -> str:
    """A line, or the lines of a paste: what is there the moment that a line ends was not typed.

    Only a terminal is shown the prompt; in a pipe it would stand among the answers.

    Raises:
        EOFError, KeyboardInterrupt, UnicodeDecodeError: as ``input()``.
    """
    lines = [input(prompt if sys.stdin.isatty() else "")]
    while sys.stdin.isatty() and sys.platform != "win32" and select.select([sys.stdin], [], [], 0.02)[0]:
        lines.append(input())
    return "\n".join(lines).strip()
