"""``fastvlm COMMAND ...`` and ``python -m mlx_fastvlm COMMAND ...``: calls the command of that name."""

from __future__ import annotations

import difflib
import importlib
import sys

from . import __version__
from .cli.sources import is_source

COMMANDS = {
    "generate": "ask about images",
    "caption": "ask about every image in folders, archives and lists",
    "chat": "chat about images in the terminal",
    "lora": "fine-tune on your own images and answers",
    "fuse": "merge trained adapters into their model",
    "convert": "convert, quantize and verify a checkpoint",
    "evaluate": "score answers to a file of questions",
    "benchmark": "time each step of an answer on this machine",
    "server": "serve a page and OpenAI's API over HTTP",
}

MODULES = {"server": "server.__main__"}  # of commands that are packages

USAGE = (
    'usage: fastvlm IMAGE ... ["QUESTION"] [FLAGS]\n       fastvlm COMMAND [FLAGS]\n\n'
    "commands, each with --help; the default is generate:\n"
) + "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())


def _begins_a_question(word: str) -> bool:
    """Whether a first word is no command's: a flag, an image, or a question of several words in quotes."""
    return word.startswith("-") or " " in word or is_source(word)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``fastvlm``: the exit code of the command that the first word names, 2 where there is none."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        print(f"mlx-fastvlm {__version__}")
        return 0
    if words[0] not in COMMANDS and _begins_a_question(words[0]):
        words = ["generate", *words]
    command, *flags = words
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: there is no command {command!r}; {advice}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"{__package__}.{MODULES.get(command, command)}")
    code: int = module.main(flags)
    return code


if __name__ == "__main__":
    sys.exit(main())
