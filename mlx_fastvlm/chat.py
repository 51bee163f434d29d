"""``python -m mlx_fastvlm.chat``: talk about images in the terminal."""

from __future__ import annotations

import argparse
import sys

from .cli import flags, lines
from .cli.parser import Parser, run
from .cli.repl import COMMANDS, HELP, Repl
from .generation.session import ChatSession


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.chat``."""
    parser = Parser(
        prog="python -m mlx_fastvlm.chat",
        description="Chat with FastVLM about images.",
        epilog="example: fastvlm chat photo.jpg\n\n" + HELP,
    )
    parser.add_argument("words", nargs="*", metavar="IMAGE", help="images for the first question")
    flags.add_system_flag(parser)
    parser.add_argument("--debug", action="store_true", help=flags.DEBUG)
    flags.add_image_flags(parser)
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_cache_flags(parser)
    return parser


def _chat(arguments: argparse.Namespace) -> None:
    lines.prepare(COMMANDS)
    options = flags.options(arguments)  # what is wrong with them is told before the model loads
    model, processor = flags.load_chosen_model(arguments)
    Repl(
        ChatSession.from_options(model, processor, options),
        [*arguments.words, *(arguments.image or []), *getattr(arguments, "spilled", [])],
    ).run()


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.chat``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _chat(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
