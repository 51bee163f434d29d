"""``fastvlm COMMAND ...`` and ``python -m mlx_fastvlm COMMAND ...``: calls the command of that name."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "generate": "ask about images; the command that is meant where a flag comes first",
    "chat": "talk about images in the terminal",
    "convert": "convert, quantize and verify a checkpoint",
    "benchmark": "time each step of an answer on this machine",
}

USAGE = "usage: fastvlm [COMMAND] [FLAGS], each command with --help\n\ncommands:\n" + "\n".join(
    f"  {name:10} {what}" for name, what in COMMANDS.items()
)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``fastvlm``: the exit code of the command that the first word names."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if words[0].startswith("-"):
        words = ["generate", *words]
    if words[0] not in COMMANDS:
        print(f"error: there is no command {words[0]!r}; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"{__package__}.{words[0]}").main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
