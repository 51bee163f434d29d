"""``python -m mlx_fastvlm.chat``: talk about images in the terminal."""

from __future__ import annotations

import argparse
import sys

from .cli import flags
from .cli.parser import Parser, run
from .cli.repl import HELP, Repl
from .generation.session import ChatSession


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.chat``."""
    parser = Parser(
        prog="python -m mlx_fastvlm.chat",
        description="Talk with FastVLM about images.",
        epilog="example: python -m mlx_fastvlm.chat --image photo.jpg\n\n" + HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--system", metavar="TEXT", help="a system prompt instead of the template's own")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    flags.add_image_flags(parser)
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_cache_flags(parser)
    return parser


def _chat(arguments: argparse.Namespace):
    try:
        import readline  # noqa: F401, PLC0415  gives input() line editing and history
    except ImportError:  # not on every system
        pass
    options = flags.options(arguments)  # what is wrong with them is told before the model loads
    model, processor = flags.load_chosen_model(arguments)
    Repl(ChatSession.from_options(model, processor, options), arguments.image or []).run()


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.chat``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _chat(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
